"""Exports of a student: what is written, by what it is checked, what reads it again."""
import contextlib
import csv
import dataclasses
import errno
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CLASSES, CPU, Here, Hostile, data_options
from PIL import Image
from torch import nn

import scripts.export_student as export_student
import scripts.predict as predict
import train_student
import train_teacher
from dataset import get_dataloaders
from dataset.folder import scan
from export import int8, latency, model_card, verify
from export import load as load_module
from export.deployed_net import NormalisedNet, open_deployed_net
from export.formats import FORMATS, Export
from export.load import check_config, find_export
from export.runtime_process import RuntimeProcess
from helper.checkpoint import load_checkpoint
from helper.errors import UserError
from models import model_dict
from models.find import build

onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
INPUTS = {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.25, 0.3], 'size': 16, 'interpolation': 'bilinear'}
FILES = [form.file for form in FORMATS.values()]


@pytest.fixture(scope='module')
def run(call, small, tmp_path_factory):
    """The folder of a student that knows its four colours well; its teacher is beside it."""
    save = tmp_path_factory.mktemp('run')
    flags = [*small, '--save_dir', save, '--epochs', 25, '--learning_rate', 0.01]
    call(train_teacher.main, '--model', 'resnet14', *flags)
    teacher = next(save.glob('models/*/resnet14_best.pth'))
    call(train_student.main, '--path_t', teacher, *flags)
    return next(save.glob('student_model/*'))


@pytest.fixture(scope='module')
def export(call, run, tmp_path_factory):
    """That student in all formats. What was printed is in printed.txt beside it."""
    out = tmp_path_factory.mktemp('shipped') / 'export'
    with (out.parent / 'printed.txt').open('w') as file, contextlib.redirect_stdout(file):
        call(export_student.main, run, '--out', out, '--int8', '--fp16', '--num_workers', 0)
    return out


@pytest.fixture
def here(monkeypatch):
    """For tests of what is around the processes."""
    for module in (verify, predict):
        monkeypatch.setattr(module, 'RuntimeProcess', Here)


@pytest.fixture(scope='module')
def photographs(tree):
    """(the files of the test images, their pixels (N, 3, 16, 16) uint8)."""
    files = scan(tree)[0]['test'].files
    return files, np.stack([np.asarray(Image.open(file)).transpose(2, 0, 1) for file in files])


def checkpoint_of(folder, net, arch, **more):
    """A checkpoint of a net with random weights."""
    folder.mkdir(exist_ok=True)
    torch.save({'format_version': 1, 'model': net.state_dict(), 'arch': arch, 'num_classes': 4, 'inputs': INPUTS,
                'classes': [*CLASSES], **more}, folder / 'net_best.pth')
    return folder / 'net_best.pth'


def opened(path, arch=None):
    data = SimpleNamespace(num_classes=4, classes=(), inputs=INPUTS, crop_pct=1.0)
    return open_deployed_net(str(path), data, '', arch)


def expected_logits(checkpoint, pixels):
    """Of the network, by its own code and the formula of the loader."""
    saved = load_checkpoint(str(checkpoint), '')
    net = build(saved['arch'], 4, 16)
    net.load_state_dict(saved['model'])
    mean, std = (torch.tensor(saved['inputs'][key]).view(3, 1, 1) for key in ('mean', 'std'))
    with torch.no_grad():
        return net.eval()((torch.from_numpy(pixels) / 255 - mean) / std).numpy()


def test_all_files(export, run, photographs):
    assert {file.name for file in export.iterdir()} == {*FILES, 'config.json', 'MODEL_CARD.md', 'model_card.json'}
    assert not [*export.parent.glob('.*')]
    config = json.loads((export / 'config.json').read_text())
    assert config['classes'] == [*CLASSES] and config['dtype'] == 'uint8' and config['inputs']['size'] == 16
    described = json.loads((export / 'model_card.json').read_text())
    for name in ('config.json', *FILES):
        content = (export / name).read_bytes()
        assert described['files'][name]['sha256'] == hashlib.sha256(content).hexdigest()
        assert described['files'][name]['bytes'] == len(content)
    _, pixels = photographs
    logits = expected_logits(run / 'resnet8_best.pth', pixels)
    labels = scan(_data(run))[0]['test'].labels.numpy()
    top1 = 100 * float((logits.argmax(1) == labels).mean())
    best = json.loads((run / 'test_best_metrics.json').read_text())['test_acc']
    assert described['accuracy']['measured for this export']['top-1 %'] == pytest.approx(top1) == pytest.approx(best)
    assert described['accuracy']['teacher']['top-1 %'] > 50
    assert described['training']['method'] == 'kd' and described['training']['seed'] == 1
    text, of_int8 = (export / 'MODEL_CARD.md').read_text(), described['files']['student_int8.onnx']
    assert f'`student_int8.onnx`: {of_int8["ranges"]} ranges; layers in float: none.' in text
    printed = (export.parent / 'printed.txt').read_text().splitlines()
    assert sum(line.startswith(f'student_int8.onnx: {of_int8["ranges"]} ranges; on held-out') for line in printed) == 1
    assert sum(line.startswith('student_int8.onnx: ') and 'speed for one image' in line for line in printed) == 1
    assert all(name in text for name in FILES) and 'taught by resnet14 with `kd`' in text and '| licence |' in text


def _data(run):
    return Path(json.loads((run / 'parameters.json').read_text())['data_dir'])


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name in ('pt2', 'safetensors')))
                                  for name in FORMATS])     # these two start torch; the export itself compares them
def test_each_format_is_the_network(export, run, photographs, name):
    """By its own runtime, for one image and for several, as near as the card says."""
    _, pixels = photographs
    logits = expected_logits(run / 'resnet8_best.pth', pixels)
    with RuntimeProcess(export / FORMATS[name].file, 1) as process:
        found = np.concatenate([process.run(part)[0] for part in (pixels[:1], pixels[1:])])
        assert process.run(pixels[:2], 3)[1].shape == (3,) and process.peak > 1e7
    said = json.loads((export / 'model_card.json').read_text())['files'][FORMATS[name].file]
    difference = np.abs(found - logits).max()
    assert difference == pytest.approx(said['largest difference of logits'], rel=0.05, abs=2e-5)
    assert (found.argmax(1) == logits.argmax(1)).mean() >= 0.97
    exact = FORMATS[name].agreement is None
    assert difference < 1e-4 if exact else 1e-6 < difference < 0.1 * np.abs(logits).max()


@pytest.mark.slow
def test_its_cost(call, run, export, tmp_path, monkeypatch):
    """Beside a teacher of which there is a folder with config.json and model.safetensors, as --path-t takes it."""
    timm = pytest.importorskip('timm')
    from safetensors.torch import save_file
    monkeypatch.setattr(latency, 'ROUNDS', 2)
    folder = tmp_path / 'teacher'
    folder.mkdir()
    save_file(timm.create_model('resnet10t', num_classes=4).state_dict(), folder / 'model.safetensors')
    (folder / 'config.json').write_text(json.dumps({
        'architecture': 'resnet10t', 'num_classes': 4, 'pretrained_cfg': {**INPUTS, 'input_size': [3, 16, 16]}}))
    out = tmp_path / 'out'
    call(export_student.main, run, '--path-t', folder, '--out', out, '--formats', 'safetensors', '--latency')
    rows = json.loads((out / 'latency.json').read_text())['rows']
    assert [(row['net'], row['runtime']) for row in rows] == [
        ('teacher timm:resnet10t', 'PyTorch'), ('student resnet8', 'PyTorch')]
    for row in rows:
        assert 0 < row['p50 ms'] <= row['p95 ms'] and row['images/s at 64'] > 0 and row['peak MB'] > 10
    assert rows[0]['parameters'] > rows[1]['parameters'] and rows[0]['MACs'] > rows[1]['MACs']
    picture = (out / 'latency.svg').read_text()
    assert 'student resnet8, PyTorch' in picture and '$' not in picture
    sizes = [(export / FORMATS[name].file).stat().st_size for name in ('int8', 'fp16', 'onnx')]
    assert sizes == sorted(sizes) and len({*sizes}) == 3


@pytest.mark.slow
def test_the_cost_of_all_formats(call, run, tmp_path, monkeypatch):
    monkeypatch.setattr(latency, 'ROUNDS', 2)
    out = tmp_path / 'out'
    call(export_student.main, run, '--out', out, '--int8', '--fp16', '--latency', '--num_workers', 0)
    rows = json.loads((out / 'latency.json').read_text())['rows']
    assert [row['net'].split()[0] for row in rows] == ['teacher'] * 5 + ['student'] * 5
    assert [row['runtime'] for row in rows[:5]] == [row['runtime'] for row in rows[5:]] == [*latency.RUNTIMES.values()]
    for row in rows:
        assert 0 < row['p50 ms'] <= row['p95 ms'] and row['images/s at 64'] > 0 and row['peak MB'] > 10
    assert 'student resnet8, ONNX int8' in (out / 'latency.svg').read_text()
    sizes = {row['runtime']: row['MB'] for row in rows[5:]}
    assert sizes['ONNX int8'] < sizes['ONNX fp16'] < sizes['ONNX'] and rows[0]['parameters'] > rows[5]['parameters']


def test_multiplications(tmp_path):
    """Against the shapes of the layers."""
    student, count = opened(checkpoint_of(tmp_path / 'net', build('resnet8', 4, 16), 'resnet8')), []

    def see(layer, inputs, output):
        count.append(output[0].numel() * layer.weight[0].numel())
    for layer in student.net.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(see)
    assert latency.count_macs(student) == sum(count)


@pytest.mark.parametrize('name', ['onnx', 'int8', 'safetensors'])
def test_what_it_sees(call, export, run, photographs, tmp_path, capsys, name):
    """predict.py gives the network's probabilities, as a table, CSV and JSON."""
    files, pixels = photographs
    logits = torch.from_numpy(expected_logits(run / 'resnet8_best.pth', pixels))
    call(predict.main, export / FORMATS[name].file, *files, '--output', tmp_path / 'found.json', '--batch_size', 10)
    found = json.loads((tmp_path / 'found.json').read_text())
    assert [entry['image'] for entry in found] == files
    near = 0.1 if name == 'int8' else 1e-5
    for entry, probabilities in zip(found, logits.softmax(1).tolist(), strict=True):
        assert len(entry['classes']) == 4
        values = [place['probability'] for place in entry['classes']]
        assert values == sorted(values, reverse=True)
        for place in entry['classes']:
            assert place['probability'] == pytest.approx(probabilities[CLASSES.index(place['class'])], abs=near)


def test_of_a_folder_and_as_a_table(call, export, tree, photographs, capsys):
    files, _ = photographs
    call(predict.main, export, tree / 'test', '--top', 2, '--format', 'csv')
    out, err = capsys.readouterr()
    rows = [*csv.reader(io.StringIO(out))]
    assert rows[0] == ['image', 'rank', 'class', 'probability'] and len(rows) == 1 + 2 * len(files)
    assert [row[0] for row in rows[1::2]] == files and 'student.onnx' in err
    call(predict.main, export, files[0], '--top', 1)
    assert capsys.readouterr().out.splitlines()[2].startswith(f'{files[0]}  ant ')


def fails(call, capsys, main, *arguments):
    """The one line with which it ends."""
    with pytest.raises(SystemExit) as caught:
        call(main, *arguments)
    err = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and err[-1].startswith('error: ')
    assert not any(line.startswith(('Traceback', 'error: ')) for line in err[:-1])
    return err[-1]


@pytest.mark.usefixtures('here')
def test_a_format_that_disagrees_is_not_written(call, run, tmp_path, monkeypatch, capsys):
    plain = FORMATS['safetensors']

    def write(export, file):
        other = dataclasses.replace(export.network, net=opened(run / 'resnet8_best.pth').net)
        next(iter(other.net.parameters())).data.mul_(1.01)
        plain.write(dataclasses.replace(export, network=other), file)
    monkeypatch.setitem(FORMATS, 'safetensors', dataclasses.replace(plain, write=write))
    flags = [run, '--formats', 'safetensors', '--out']
    line = fails(call, capsys, export_student.main, *flags, tmp_path / 'none')
    assert 'nothing is exported: student.safetensors' in line and not [*tmp_path.iterdir()]
    line = fails(call, capsys, export_student.main, *flags, tmp_path / 'out', '--int8')
    assert 'not written: student.safetensors: its logits differ by up to ' in line and 'is allowed' in line
    assert {file.name for file in (tmp_path / 'out').iterdir()} == {
        'student_int8.onnx', 'config.json', 'MODEL_CARD.md', 'model_card.json'}


def test_too_few_of_the_same_class():
    outcome, logits = verify.Evaluation(), np.eye(4, dtype=np.float32)
    outcome.add(logits[[0, 1, 2, 2]], logits, np.arange(4))
    assert outcome.fault(75) == '' and outcome.fault(97) == \
        'predicts the same class as the network for 75.00 % of the test images; at least 97 % are required'
    assert 'differ by up to 1; at most 0.0001 is allowed' in outcome.fault(None)
    outcome = verify.Evaluation()
    outcome.add(logits * np.nan, logits, np.arange(4))
    assert 'inf' in outcome.fault(None)


def test_a_float_input_and_an_earlier_export(call, run, photographs, tmp_path):
    """The second export takes the place of the first, whole."""
    out = tmp_path / 'out'
    out.mkdir()
    shutil.copy(run / 'resnet8_best.pth', out / 'student_int8.onnx')      # of an earlier export
    call(export_student.main, run, '--out', out, '--formats', 'onnx', '--input', 'float')
    assert {file.name for file in out.iterdir()} == {'student.onnx', 'config.json', 'MODEL_CARD.md', 'model_card.json'}
    with RuntimeProcess(out / 'student.onnx') as process:
        found, _ = process.run(photographs[1][:5].astype(np.float32) / 255)
    assert np.abs(found - expected_logits(run / 'resnet8_best.pth', photographs[1][:5])).max() < 1e-4


@pytest.mark.parametrize('images_in', ['memory', 'disk'])
@pytest.mark.parametrize('wanted, count', [(16, 16), (10**6, 24)])
def test_calibration_images(tree, images_in, wanted, count):
    """Of all classes, and others than those that choose: together at most all training images."""
    data = get_dataloaders(data_options(data_dir=str(tree), images_in=images_in, num_workers=0), CPU)
    flags = SimpleNamespace(calibration=wanted, int8_ranges=None)
    calibration = export_student.int8_calibration(flags, data, 'uint8', None)
    train = scan(tree)[0]['train']
    number = {np.asarray(Image.open(file)).transpose(2, 0, 1).tobytes(): i for i, file in enumerate(train.files)}
    loader = calibration.held_out()
    held_out = np.concatenate([verify.pixels(loader, images, 'uint8') for images, *_ in loader])
    first, other = ([number[image.tobytes()] for image in images]
                    for images in (np.concatenate([*calibration.batches()]), held_out))
    assert len(first) == len(other) == len({*first, *other}) / 2 == count
    assert {*train.labels[first].tolist()} == {*train.labels[other].tolist()} == {0, 1, 2, 3}


def test_calibration_needs_two_images():
    with pytest.raises(UserError, match='^--int8: .* but the data have 1 training image; give data with at least two'):
        export_student.int8_calibration(SimpleNamespace(), SimpleNamespace(n_train=1), 'uint8', None)


def test_unknown_ranges(call, run, tmp_path, capsys):
    line = fails(call, capsys, export_student.main, run, '--out', tmp_path / 'out', '--int8', '--int8_ranges', 'median')
    assert '--int8_ranges' in line and all(name in line for name in ('median', *int8.METHODS))


class Batches(list):
    """A loader of uint8 images (N, 3, S, S) that are not normalised."""
    normalise = SimpleNamespace(to_pixels=lambda images: images.permute(0, 2, 3, 1))


class Halves(nn.Module):
    """Says which half of an image (N, 3, 32, 32) is brighter. Only white pixels activate channel 1, which is unused."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.fc = nn.Conv2d(3, 2, 1), nn.Conv2d(2, 1, 16, 16), nn.Linear(4, 2)
        for weights in self.parameters():
            weights.data.zero_()
        self.first.weight.data[0], self.first.weight.data[1], self.first.bias.data[1] = 1 / 3, 1e4, -2.9e4
        self.second.weight.data[0, 0] = 1 / 256
        self.fc.weight.data[0, :2] = self.fc.weight.data[1, 2:] = 1

    def forward(self, images):
        return self.fc(self.second(self.first(images / 255).relu()).flatten(1))


@pytest.fixture(scope='module')
def outlier(tmp_path_factory):
    """write_int8's arguments `plain`, `net` and `calibration`. The first layer has an outlier: a white pixel."""
    net, random, labels = Halves().eval().requires_grad_(False), torch.Generator().manual_seed(0), torch.arange(64) % 2
    images = torch.randint(50, 90, (64, 3, 32, 32), dtype=torch.uint8, generator=random)
    for image, label in zip(images, labels, strict=True):
        image[:, 16 * label:16 * label + 16] += 50
    images[0, :, 0, 0] = 255
    calibration = int8.Calibration(lambda: (part.numpy() for part in images[:32].split(5)),
                                     lambda: Batches([(images[32:], labels[32:], None)]))
    folder = tmp_path_factory.mktemp('outlier')
    network = SimpleNamespace(net=net, example=lambda batch, dtype: images[:batch])
    FORMATS['onnx'].write(Export(network, 'uint8', folder, None), folder / 'plain.onnx')
    model = onnx.load(folder / 'plain.onnx')
    for node in model.graph.node:
        node.name = ''      # as of the nodes that onnxruntime fuses
    onnx.save(model, folder / 'plain.onnx')
    return {'plain': folder / 'plain.onnx', 'net': net, 'calibration': calibration}


def in_8_bits(outlier, file, *methods):
    """What write_int8 returns, and the accuracy of its file on the held-out images in %."""
    calibration = dataclasses.replace(outlier['calibration'], methods=methods)
    details = int8.write_int8(**{**outlier, 'calibration': calibration}, file=file, dtype='uint8', agreement=97)
    [(images, labels, _)] = calibration.held_out()
    return details, 100 * (Here(file).run(images.numpy())[0].argmax(1) == labels.numpy()).mean()


@pytest.mark.usefixtures('here')
def test_the_best_ranges(outlier, tmp_path, capsys):
    """The outlier widens the ranges of minmax, and the accuracy is that of guessing."""
    details, top1 = in_8_bits(outlier, tmp_path / 'x.onnx', *int8.METHODS)
    assert details['ranges'] == 'percentile' and details['layers in float'] == [] and top1 == 100
    [line] = capsys.readouterr().out.splitlines()
    assert line.startswith('x.onnx: percentile ranges; on held-out training images: minmax: top-1 50.00, the same '
                           'class for 50.00 %, logits differ by up to 9.4e-01; entropy: top-1 ')
    assert '; percentile: top-1 100.00, the same class for 100.00 %, ' in line
    assert [file.name for file in tmp_path.iterdir()] == ['x.onnx']
    content = (tmp_path / 'x.onnx').read_bytes()
    in_8_bits(outlier, tmp_path / 'x.onnx', 'percentile')
    assert (tmp_path / 'x.onnx').read_bytes() == content


def test_the_order_of_ranges():
    """Those that reach the agreement first, then by the accuracy, the agreement and the difference."""
    worst_first = [verify.Evaluation(failure='no file'), verify.Evaluation(100, 70, 96, 0.1),
                   verify.Evaluation(100, 60, 97, 0.1), verify.Evaluation(100, 61, 97, 0.3),
                   verify.Evaluation(100, 61, 98, 0.2), verify.Evaluation(100, 61, 98, 0.1)]
    qualities = [int8._quality(result, 97) for result in worst_first]
    assert sorted(qualities) == qualities and len({*qualities}) == 6


def computed_by(file, tmp_path):
    """Operator -> count, of the nodes that onnxruntime runs for a file."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / 'optimised.onnx'), 3
    onnxruntime.InferenceSession(file, options)
    return Counter(node.op_type for node in onnx.load(tmp_path / 'optimised.onnx').graph.node)


def test_a_copy_of_a_net_of_torchvision_computes_the_same():
    pytest.importorskip('torchvision')
    net = NormalisedNet(build('torchvision:resnet18', 4, 32), INPUTS['mean'], INPUTS['std']).eval()
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(net.copy()(images), net(images))


def test_onnxruntime_computes_all_convolutions_in_8_bits(export, tmp_path):
    """Also those of a residual block, whose inputs are read twice."""
    operators = computed_by(export / 'student_int8.onnx', tmp_path)
    assert operators['QLinearConv'] == 9 and operators['QLinearAdd'] == 3 and not operators['Conv']


@pytest.mark.usefixtures('here')
def test_layers_in_float(outlier, tmp_path, capsys, monkeypatch):
    """Those on both sides of the outlier, and not the last one."""
    details, top1 = in_8_bits(outlier, tmp_path / 'x.onnx', 'minmax')
    layers = details['layers in float']
    operators = {node.name: node.op_type for node in onnx.load(tmp_path / 'x.onnx').graph.node}
    assert [operators[layer] for layer in layers] == ['Conv', 'Conv'] and top1 == 100
    assert 'Gemm' in operators.values() and 'QuantizeLinear' in operators.values()
    assert f'x.onnx: less than 97 % of the same class, so these layers stay in float: {", ".join(layers)}; on ' \
           f'held-out training images then: top-1 100.00, ' in capsys.readouterr().out
    monkeypatch.setattr(int8, 'MOST_FLOAT_LAYERS', 1)
    details, top1 = in_8_bits(outlier, tmp_path / 'x.onnx', 'minmax')
    assert len(details['layers in float']) <= 1 and top1 < 97


@pytest.mark.parametrize('int8, line', [(0.5, 'faster here than student.onnx, 2.00 times its'),
                                        (1.25, 'not faster here than student.onnx, 0.80 times its')])
def test_the_speed_of_8_bits(outlier, tmp_path, monkeypatch, int8, line):
    class Timed(Here):
        def __init__(self, file, threads):
            assert threads == 1
            self.seconds = {'student.onnx': 1, 'student_int8.onnx': int8}[file.name]

        def run(self, images, count=1):
            return None, np.full(count, self.seconds)
    monkeypatch.setattr(latency, 'RuntimeProcess', Timed)
    network = SimpleNamespace(example=lambda batch, dtype: torch.zeros(batch, 3, 32, 32, dtype=torch.uint8))
    assert latency.compare_int8(Export(network, 'uint8', tmp_path, None)) == \
        f'student_int8.onnx: {line} speed for one image on 1 thread'


@pytest.mark.usefixtures('here')
def test_what_was_filled_in_stays(call, run, tmp_path):
    flags = [run, '--out', tmp_path / 'out', '--formats', 'safetensors']
    call(export_student.main, *flags)
    file = tmp_path / 'out' / 'MODEL_CARD.md'
    text = file.read_text()
    assert 'measured for this export, on the 24 test images of folder | ' in text
    file.write_text(text.replace('| licence |  |', '| licence | MIT, as the data |'))
    call(export_student.main, *flags)
    assert '| licence | MIT, as the data |' in file.read_text() and '| contact |  |' in file.read_text()
    filled = json.loads((tmp_path / 'out' / 'model_card.json').read_text())['to be filled in']
    assert filled == {**dict.fromkeys(model_card.TO_FILL_IN), 'licence': 'MIT, as the data'}


@pytest.mark.usefixtures('here')
def test_its_teacher(call, run, export, tmp_path):
    """From any file that a teacher may come from."""
    call(export_student.main, run, '--out', tmp_path / 'out', '--formats', 'onnx', '--path_t',
         export / 'student.safetensors', '--model_t', 'resnet8')
    accuracy = json.loads((tmp_path / 'out' / 'model_card.json').read_text())['accuracy']
    assert accuracy['teacher']['top-1 %'] == accuracy['measured for this export']['top-1 %']


def test_nothing_is_lost(call, run, tmp_path, capsys, monkeypatch):
    """A folder with other things is refused; a disk that fills leaves the earlier export."""
    (tmp_path / 'full').mkdir()
    (tmp_path / 'full' / 'thesis.tex').write_text('years')
    line = fails(call, capsys, export_student.main, run, '--out', tmp_path / 'full')
    assert f'--out {tmp_path / "full"}: holds other things than an export' in line
    assert (tmp_path / 'full' / 'thesis.tex').read_text() == 'years'
    (tmp_path / 'full' / 'thesis.tex').rename(tmp_path / 'full' / 'config.json')        # of something else
    assert 'holds other things' in fails(call, capsys, export_student.main, run, '--out', tmp_path / 'full')
    (tmp_path / 'earlier').mkdir()
    (tmp_path / 'earlier' / 'student.onnx').write_text('an earlier one')

    def full(export, file):
        file.write_text('half of')
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setitem(FORMATS, 'pt2', dataclasses.replace(FORMATS['pt2'], write=full))
    line = fails(call, capsys, export_student.main, run, '--out', tmp_path / 'earlier', '--formats', 'pt2')
    assert 'No space left on device' in line and 'an earlier file is unchanged' in line
    assert [file.read_text() for file in (tmp_path / 'earlier').iterdir()] == ['an earlier one']
    assert {path.name for path in tmp_path.iterdir()} == {'full', 'earlier'}


@pytest.mark.usefixtures('here')
def test_odd_places(call, run, tmp_path, capsys, monkeypatch):
    """A link stays one; what cannot be replaced is refused before anything is done."""
    (tmp_path / 'disk').mkdir()
    (tmp_path / 'link').symlink_to('disk')
    flags = [run, '--formats', 'safetensors', '--out']
    call(export_student.main, *flags, tmp_path / 'link')
    assert (tmp_path / 'link').is_symlink() and (tmp_path / 'disk' / 'student.safetensors').exists()
    monkeypatch.chdir(tmp_path / 'disk')
    assert '--out .: cannot be replaced' in fails(call, capsys, export_student.main, *flags, '.')
    assert 'cannot be written' in fails(call, capsys, export_student.main, *flags, tmp_path / ('x' * 300))


def test_the_earlier_export_returns(tmp_path, monkeypatch):
    """Where the new one cannot take its place, or Ctrl-C comes between."""
    out, real = tmp_path / 'out', Path.rename
    out.mkdir()
    (out / 'student.onnx').write_text('an earlier one')
    for error in (KeyboardInterrupt, OSError):
        def rename(self, target, error=error):
            if self.name == 'new':
                raise error
            return real(self, target)
        monkeypatch.setattr(Path, 'rename', rename)
        with pytest.raises((KeyboardInterrupt, UserError)), export_student.new_folder(out):
            pass
        assert [file.read_text() for file in out.iterdir()] == ['an earlier one'] and [*tmp_path.iterdir()] == [out]


def test_a_signal_leaves_nothing(tmp_path):
    """As of a scheduler, whose time is up."""
    with pytest.raises(SystemExit) as caught, export_student.new_folder(tmp_path / 'out') as folder:
        (folder / 'student.onnx').write_text('half of')
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert caught.value.code == 143 and not [*tmp_path.iterdir()]
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


@pytest.mark.skipif(sys.platform == 'win32', reason='no limit of a file\'s size')
@pytest.mark.slow
@pytest.mark.parametrize('name', ['safetensors', 'pt2', 'onnx'])
def test_a_file_that_may_not_grow(run, tmp_path, name):
    """Whatever a library does then: one line, and nothing is left."""
    command = 'ulimit -f 100; exec "$0" "$@"'
    done = subprocess.run(['bash', '-c', command, sys.executable, export_student.__file__, run, '--out', tmp_path / 'x',
                           '--formats', name], capture_output=True, text=True)
    assert done.returncode == 2 and [line[:7] for line in done.stderr.splitlines()] == ['error: '], done.stderr
    assert 'an earlier file is unchanged' in done.stderr and not [*tmp_path.iterdir()]


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('library', ['onnxruntime', 'onnx', 'safetensors'])
def test_without_a_library(call, run, export, photographs, tmp_path, capsys, monkeypatch, library):
    real = export_student.find_spec
    for module in (export_student, load_module):
        monkeypatch.setattr(module, 'find_spec', lambda name: None if name == library else real(name))
    line = fails(call, capsys, export_student.main, run, '--out', tmp_path / 'out')
    assert f'needs {library}; pip install -r requirements-export.txt' in line
    if library == 'onnxruntime':        # a folder: what can be run here is taken
        line = fails(call, capsys, predict.main, export / 'student.onnx', photographs[0][0])
        assert 'student.onnx: needs onnxruntime; pip install onnxruntime' in line
        call(predict.main, export, photographs[0][0])
        assert 'student.pt2' in capsys.readouterr().err


@pytest.mark.parametrize('flag, value, wanted', [
    ('calibration', 2, 'int8'), ('int8_ranges', 'entropy', 'int8'), ('threads', 2, 'latency')])
def test_a_flag_that_would_do_nothing(call, run, tmp_path, capsys, flag, value, wanted):
    line = fails(call, capsys, export_student.main, run, '--out', tmp_path / 'out', f'--{flag}', value)
    assert line == f'error: --{flag} {value}: has no effect without --{wanted}; add --{wanted}'


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('case', ['no run', 'no data', 'other data', 'diverged', 'hostile', 'no teacher',
                                  'state', 'long name'])
def test_what_cannot_be_exported(call, run, tree, tmp_path, capsys, case):
    out, more, given = ['--out', tmp_path / 'out', '--formats', 'pt2'], [], tmp_path / 'net'
    data = ['--dataset', 'folder', '--data_dir', tree, '--image_size', 16, '--batch_size', 16]
    net = build('resnet8', 4, 16)
    if case == 'no run':
        words = 'no such file'
    elif case == 'state':
        given, words = tmp_path / 'last.pth', 'is the state of a run of an earlier version'
        torch.save({'module': {}, 'identity': {}, 'stage': 'train'}, given)
        more = data
    elif case == 'long name':
        given, words = 'x' * 300, 'no such file'
    elif case == 'no data':
        given, words = checkpoint_of(given, net, 'resnet8'), 'give --dataset and --data_dir'
    elif case == 'other data':
        given, words = run, 'has 10 classes and images of 32 pixels'
        more = ['--dataset', 'digits']
    elif case == 'diverged':
        next(iter(net.parameters())).data.fill_(float('nan'))
        given, more, words = checkpoint_of(given, net, 'resnet8'), data, 'has NaN among its values'
    elif case == 'hostile':
        given.mkdir()
        torch.save(Hostile(tmp_path / 'mark'), given / 'net_best.pth')
        given, more, words = given / 'net_best.pth', data, 'RUN_OR_CHECKPOINT'
    else:
        given, more, words = run, ['--path_t', tmp_path / 'no.pth'], '--path-t'
    assert words in fails(call, capsys, export_student.main, given, *out, *more)
    assert not (tmp_path / 'out').exists() and not (tmp_path / 'mark').exists()


def copy_of(run, folder, **parameters):
    """The run in another folder, with other parameters in its parameters.json."""
    shutil.copytree(run, folder)
    known = json.loads((folder / 'parameters.json').read_text())
    (folder / 'parameters.json').write_text(json.dumps({**known, **parameters}))
    return folder


@pytest.mark.usefixtures('here')
def test_a_run_names_a_file_of_code(call, run, tmp_path):
    """As its teacher's net, in a parameters.json from a stranger: it is not run."""
    (tmp_path / 'net.py').write_text(f'open({str(tmp_path / "mark")!r}, "w")\n')
    other = copy_of(run, tmp_path / 'other', model_t=f'{tmp_path / "net.py"}:build')
    call(export_student.main, other, '--out', tmp_path / 'out', '--formats', 'safetensors')
    assert not (tmp_path / 'mark').exists()


@pytest.mark.parametrize('parameters', [{'model_t': None}, {'distill': 'kd\n# New'}, {'dataset': 'folder\n# New'}])
def test_odd_parameters_of_a_run(run, export, parameters):
    described = json.loads((export / 'model_card.json').read_text())
    known = {**json.loads((run / 'parameters.json').read_text()), **parameters}
    described['training'] = {name: known[key] for name, key in model_card.OF_THE_RUN.items()
                             if known.get(key) is not None}
    text = model_card.as_markdown(described, json.loads((export / 'config.json').read_text()))
    assert '\n# New' not in text and text.startswith('# resnet8\n')


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('parameters, words', [({'path_t': 'no.pth'}, 'no such file'),
                                               ({'path_t': __file__}, 'not a PyTorch checkpoint'),
                                               ({'teacher (checksum)': 5}, 'no longer the net that taught')])
def test_a_teacher_that_has_gone(call, run, tmp_path, capsys, parameters, words):
    """The student is exported without it; a line says so, and the card gives no accuracy of another net."""
    other = copy_of(run, tmp_path / 'other', **parameters)
    call(export_student.main, other, '--out', tmp_path / 'out', '--formats', 'safetensors')
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith('without the teacher: '))
    assert words in line and line.endswith('; give it by --path-t')
    assert json.loads((tmp_path / 'out' / 'model_card.json').read_text())['accuracy']['teacher'] is None


@pytest.mark.parametrize('name', ['onnx', 'pt2', 'safetensors'])
def test_a_truncated_file(call, export, photographs, tmp_path, capsys, name):
    shutil.copy(export / 'config.json', tmp_path)
    content = (export / FORMATS[name].file).read_bytes()
    (tmp_path / FORMATS[name].file).write_bytes(content[:len(content) // 2])
    line = fails(call, capsys, predict.main, tmp_path, photographs[0][0])
    assert f'{FORMATS[name].file}: damaged, cut short, or not ' in line and 'Error' not in line


@pytest.mark.parametrize('name', ['student.onnx', 'student.safetensors', 'config.json'])
def test_a_changed_byte(call, export, photographs, tmp_path, capsys, name):
    """The model card has the SHA-256 of each file. Without a card a line says that nothing was compared."""
    shutil.copytree(export, tmp_path / 'x')
    file = tmp_path / 'x' / name
    content = bytearray(file.read_bytes())
    if name == 'config.json':
        content = content.replace(b'"cat"', b'"cow"')
    else:
        content[-5] ^= 1
    file.write_bytes(content)
    given = tmp_path / 'x' / ('student.onnx' if name == 'config.json' else name)
    assert f'{name}: damaged or changed since the export' in fails(call, capsys, predict.main, given, photographs[0][0])
    (tmp_path / 'x' / 'model_card.json').write_text('{"files": {}}')
    assert 'has no SHA-256 of ' in fails(call, capsys, predict.main, given, photographs[0][0])
    (tmp_path / 'x' / 'model_card.json').unlink()
    with pytest.raises(UserError, match='no such'):
        find_export(str(tmp_path / 'nowhere'), 'EXPORT')
    find_export(str(given), 'EXPORT')
    assert 'has no model_card.json, so the SHA-256' in capsys.readouterr().err


def test_one_class_for_all_images():
    outcome, logits = verify.Evaluation(), np.eye(4, dtype=np.float32)
    outcome.add(logits[[2, 2]], logits[[2, 2]], np.array([1, 1]))
    assert outcome.single_class is None         # all images are of one class
    outcome.add(logits[[2]], logits[[2]], np.array([0]))
    assert outcome.single_class == 2
    outcome.add(logits[[1]], logits[[1]], np.array([2]))
    assert outcome.single_class is None


@pytest.mark.usefixtures('here')
def test_a_network_of_one_class(call, run, tmp_path, capsys):
    content = load_checkpoint(str(run / 'resnet8_best.pth'), '')
    content['model']['fc.weight'].zero_()
    content['model']['fc.bias'].copy_(torch.tensor([0., 0., 1., 0.]))
    torch.save(content, tmp_path / 'net_best.pth')
    shutil.copy(run / 'parameters.json', tmp_path)
    metrics = json.loads((run / 'test_best_metrics.json').read_text())
    (tmp_path / 'test_best_metrics.json').write_text(json.dumps({**metrics, 'epoch': 7}))       # of another checkpoint
    call(export_student.main, tmp_path / 'net_best.pth', '--out', tmp_path / 'out', '--formats', 'safetensors')
    out = capsys.readouterr().out
    assert 'predicts the class cat for all 24 test images' in out
    assert 'net_best.pth: test_best_metrics.json beside it is of another checkpoint (epoch 7, not ' in out
    described = json.loads((tmp_path / 'out' / 'model_card.json').read_text())
    assert described['accuracy']['best epoch'] is None and not described['training']
    assert 'predicts the class cat for all test images' in (tmp_path / 'out' / 'MODEL_CARD.md').read_text()


@pytest.mark.parametrize('change', [
    {'classes': ['ant']}, {'classes': 'abcd'}, {'classes': ['\ud800', 'b', 'c', 'd']}, {'num_classes': 5},
    {'dtype': 'int8'}, {'model_args': {'pretrained': 1}},
    {'model_args': {'checkpoint_path': 'x'}}, {'inference_net': 3}, {'inputs': {}}, {'arch': None}, 'inputs size',
    'crop', 'no dictionary', 'no JSON'])
def test_an_odd_configuration(call, export, photographs, tmp_path, capsys, change):
    shutil.copytree(export, tmp_path / 'x')
    file = tmp_path / 'x' / 'config.json'
    config = json.loads(file.read_text())
    if change == 'inputs size':
        config['inputs']['size'] = 10**9
    elif change == 'crop':
        config['inputs']['crop_pct'] = 0.5
    elif change == 'no dictionary':
        config = [config]
    elif change != 'no JSON':
        config |= change
    file.write_text('{' if change == 'no JSON' else json.dumps(config))
    assert 'EXPORT' in fails(call, capsys, predict.main, tmp_path / 'x', photographs[0][0])


@pytest.mark.parametrize('library, net', [('timm', 'hf-hub:a/b'), ('timm', 'local-dir:/tmp'),
                                          ('torchvision', 'fcn_resnet50')])
def test_a_configuration_that_names_an_address(call, export, photographs, tmp_path, capsys, library, net):
    """Or a net for which its library would fetch weights: nothing is opened or fetched."""
    shutil.copy(export / 'student.safetensors', tmp_path)
    config = json.loads((export / 'config.json').read_text())
    (tmp_path / 'config.json').write_text(json.dumps({**config, 'library': library, 'architecture': net}))
    assert 'has no such net' in fails(call, capsys, predict.main, tmp_path, photographs[0][0])


def test_a_configuration_of_another_net(call, export, photographs, tmp_path, capsys):
    """More classes than the file gives."""
    shutil.copy(export / 'student.onnx', tmp_path)
    config = json.loads((export / 'config.json').read_text())
    config |= {'classes': [*CLASSES, 'emu'], 'num_classes': 5}
    (tmp_path / 'config.json').write_text(json.dumps(config))
    assert 'returns (1, 4) for 1 images and 5 classes' in fails(call, capsys, predict.main, tmp_path, photographs[0][0])


def test_images_that_are_none(call, export, photographs, tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'text.png').write_text('no image')
    for given, words in (('empty', 'holds no image'), ('nowhere', 'no such file or folder'),
                         ('text.png', 'format that is read); --skip_bad_images leaves it out')):
        assert words in fails(call, capsys, predict.main, export, tmp_path / given)
    for place in (tmp_path, tmp_path / 'nowhere' / 'found.csv'):
        line = fails(call, capsys, predict.main, export, photographs[0][0], '--output', place)
        assert line == f'error: --output {place}: give a file in a folder that exists'
    assert 'holds no export' in fails(call, capsys, predict.main, tmp_path, photographs[0][0])
    assert 'not a file of an export' in fails(call, capsys, predict.main, tmp_path / 'text.png', photographs[0][0])
    line = fails(call, capsys, predict.main, export, tmp_path / 'text.png', '--skip_bad_images')
    assert 'none of the 1 images can be read' in line
    call(predict.main, export, tmp_path / 'text.png', photographs[0][0], '--skip_bad_images')
    out, err = capsys.readouterr()
    assert len(out.splitlines()) == 3 and '1 unreadable image skipped' in err


@pytest.mark.usefixtures('here')
@pytest.mark.parametrize('arch', ['timm:vit_tiny_patch16_224,depth=2,patch_size=4', 'torchvision:mobilenet_v3_small'])
def test_weights_without_this_repository(call, tree, tmp_path, monkeypatch, arch):
    """The lines of the model card load them, with the library alone."""
    pytest.importorskip('timm')
    torch.manual_seed(0)
    checkpoint = checkpoint_of(tmp_path / 'net', build(arch, 4, 16), arch)
    out = tmp_path / 'out'
    call(export_student.main, checkpoint, '--out', out, '--formats', 'safetensors', '--dataset', 'folder',
         '--data_dir', tree, '--image_size', 16, '--batch_size', 16)
    lines = model_card.loading_code(json.loads((out / 'config.json').read_text()))
    assert lines in (out / 'MODEL_CARD.md').read_text() and 'export' not in lines
    monkeypatch.chdir(out)
    names = {}
    exec(lines, names)
    student = opened(checkpoint)
    images = student.example(3, 'uint8')
    mean, std = (torch.tensor(INPUTS[key]).view(3, 1, 1) for key in ('mean', 'std'))
    found = names['net']((images / 255 - mean) / std)
    assert torch.allclose(found, student.net(images), atol=1e-5)


@pytest.mark.usefixtures('here')
def test_another_net_than_the_student(call, run, tmp_path, small):
    """SimKD deploys the student's body, the projector and the teacher's classifier."""
    teacher = next(run.parents[1].glob('models/*/resnet14_best.pth'))
    call(train_student.main, '--path_t', teacher, '--distill', 'simkd', *small, '--save_dir', tmp_path)
    out = tmp_path / 'out'
    call(export_student.main, next(tmp_path.glob('student_model/*')), '--out', out, '--formats', 'safetensors', 'onnx')
    config = json.loads((out / 'config.json').read_text())
    assert config['inference_net'] == 'simkd' and check_config(config, '')
    assert {'student.onnx', 'student.safetensors'} <= {file.name for file in out.iterdir()}


@pytest.mark.usefixtures('here')
def test_a_net_of_ones_own(call, tree, tmp_path, capsys):
    file = tmp_path / 'mine.py'
    file.write_text('from models import model_dict\n\n\ndef build(num_classes):\n'
                    '    return model_dict["resnet8"](num_classes=num_classes)\n')
    arch = f'{file}:build'
    checkpoint = checkpoint_of(tmp_path / 'net', build(arch, 4, 16), arch)
    flags = ['--out', tmp_path / 'out', '--dataset', 'folder', '--data_dir', tree, '--image_size', 16,
             '--batch_size', 16, '--formats', 'pt2']
    assert 'whose code is only run if you say so' in fails(call, capsys, export_student.main, checkpoint, *flags)
    call(export_student.main, checkpoint, *flags, '--model', arch)
    assert (tmp_path / 'out' / 'student.pt2').exists()


FAMILIES = ['timm:resnet10t', 'timm:resnet18', 'timm:convnext_atto', 'timm:vit_tiny_patch16_224,depth=2',
            'timm:efficientnet_b0', 'timm:mobilenetv3_small_050', 'timm:regnetx_002', 'timm:regnety_002',
            'timm:mixer_s32_224', 'timm:deit_tiny_patch16_224,depth=2',
            'timm:swin_tiny_patch4_window7_224,depths=(1,1,1,1)', 'timm:pvt_v2_b0', 'timm:ghostnet_050',
            'timm:densenet121', 'timm:vgg11', 'timm:repvgg_a0', 'timm:mobileone_s0', 'timm:fastvit_t8',
            'timm:efficientformerv2_s0', 'timm:mobilevit_xxs', 'timm:poolformer_s12', 'timm:edgenext_xx_small',
            'timm:levit_128s', 'timm:eva02_tiny_patch14_224,depth=2', 'timm:hardcorenas_a', 'timm:dla46_c',
            'torchvision:resnet18', 'torchvision:mobilenet_v2', 'torchvision:mobilenet_v3_small',
            'torchvision:shufflenet_v2_x0_5', 'torchvision:squeezenet1_1', 'torchvision:mnasnet0_5',
            'torchvision:regnet_y_400mf', 'torchvision:efficientnet_b0', 'torchvision:densenet121',
            'torchvision:vgg11', 'torchvision:alexnet', 'torchvision:googlenet', 'torchvision:inception_v3',
            'torchvision:convnext_tiny', 'torchvision:swin_t', 'torchvision:vit_b_32']


@pytest.mark.slow
@pytest.mark.parametrize('arch', [*model_dict, *FAMILIES])
def test_every_net(tmp_path, arch):
    """To torch.export and ONNX; each logit agrees to 1e-4 of the largest, for two sizes of the batch."""
    size = 224 if ':' in arch or arch.endswith('imagenet') else 32
    torch.manual_seed(0)
    path = checkpoint_of(tmp_path / 'net', build(arch, 4, size), arch, inputs={**INPUTS, 'size': size})
    student = opened(path)
    export = Export(student, 'uint8', tmp_path, None)
    images = student.example(3, 'uint8')
    with torch.no_grad():
        logits = student.net(images).numpy()
    for name in ('pt2', 'onnx'):
        file = tmp_path / FORMATS[name].file
        FORMATS[name].write(export, file)
        with RuntimeProcess(file) as process:
            found = np.concatenate([process.run(part.numpy())[0] for part in (images[:1], images[1:])])
        assert np.abs(found - logits).max() <= 1e-4 * max(1e-3, np.abs(logits).max()), name


def test_predictions_replace_no_photograph(call, tmp_path, capsys):
    """As in  predict.py EXPORT --output *.jpg, where the first photograph becomes the output."""
    photo = tmp_path / 'a.jpg'
    photo.write_bytes(b'mine')
    line = fails(call, capsys, predict.main, 'export', tmp_path / 'b.jpg', '--output', photo)
    assert f'--output {photo}: has the name of an image' in line and photo.read_bytes() == b'mine'
