"""Latency of one image in onnxruntime, in 32 and 8 bits alternately: nets with random weights, min/max ranges."""
import tempfile
from argparse import ArgumentTypeError
from pathlib import Path

from dataset.normalise import CIFAR_MEAN, CIFAR_STD
from export.deployed_net import DeployedNet, NormalisedNet
from export.formats import FORMATS, Export
from export.int8 import Calibration
from export.latency import ROUNDS, SINGLES, measure_rows
from models.find import build

from .common import CLASSES

FILES = 'ResNet18,224 MobileNetV2_Imagenet,224 timm:mobilenetv3_small_050,224 resnet8,32'
THREADS = (1, 2)
PROTOCOL = f'median of {ROUNDS} rounds of {SINGLES} images'


def net_and_pixels(text: str) -> tuple[str, int]:
    """Parse an argument 'NET,PIXELS' into (NET, PIXELS)."""
    name, _, pixels = text.rpartition(',')
    if not pixels.isdecimal() or not 8 <= int(pixels) <= 4096:
        raise ArgumentTypeError(f'{text}: give NET,PIXELS, as resnet8,32')
    return name, int(pixels)


def add_arguments(add):
    add('--files', type=net_and_pixels, nargs='+', default=[net_and_pixels(text) for text in FILES.split()],
        metavar='NET,PIXELS', help='nets and their image sizes')


def measure(opt, device):
    """A row for each net and number of threads."""
    for name, size in opt.files:
        net = NormalisedNet(build(name, CLASSES, size, '--files'), CIFAR_MEAN, CIFAR_STD).eval().requires_grad_(False)
        network = DeployedNet(name, net, {'inputs': {'size': size}}, '')
        with tempfile.TemporaryDirectory() as folder:
            images = network.example(16, 'uint8').numpy()
            calibration = Calibration(lambda images=images: [images], None, methods=('minmax', ))
            export = Export(network, 'uint8', Path(folder), calibration)
            for form in ('onnx', 'int8'):
                FORMATS[form].write(export, export.file(form))
            for threads in THREADS:
                plain, int8 = measure_rows({name: (export, {'onnx': None, 'int8': None})}, threads)
                yield {'net': name, 'pixels': size, 'threads': threads, 'MMACs': plain['MACs'] / 1e6,
                       '32 bits MB': plain['MB'], '8 bits MB': int8['MB'], '32 bits ms': plain['p50 ms'],
                       '8 bits ms': int8['p50 ms'], 'speed': plain['p50 ms'] / int8['p50 ms']}
