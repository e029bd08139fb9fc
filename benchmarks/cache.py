"""Training with the teacher's cache, full and while it is filled, beside training without, in turn."""
import contextlib
import io
import tempfile
from types import SimpleNamespace

from dataset import get_dataloaders
from dataset.teacher_cache.layout import CACHED_OUTPUTS
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import get_method
from helper.device import Precision
from helper.errors import UserError
from helper.loops import train_epoch
from options import student_options

from .common import CLASSES, build, compare, fill_with_noise, memory_loader

PAIRS = ('resnet110,resnet20,kd', 'resnet32x4,resnet8x4,kd', 'resnet20,resnet8,kd')
PHOTOGRAPHS = ('timm:convnext_atto,ResNet18,kd', 'ResNet34,ResNet18,kd', 'timm:vit_small_patch16_224,ResNet18,kd')


def add_arguments(add):
    add('--photographs', action='store_true',
        help='the training images of {data_dir}/imagenet at 224 pixels, with --cache_epochs 1 and --cache_topk all; a '
             'round is an epoch')


def open_data(opt, device):
    """(Data, the flags of train_student.py for it): random images of 32 pixels, or with --photographs ImageNet's."""
    if not opt.photographs:
        loader = memory_loader(opt, device)
        return SimpleNamespace(train_loader=loader, selection_loader=loader, selection_split='test', image_size=32,
                               n_train=loader.n_samples, selection_labels=loader.target.cpu(), num_classes=CLASSES), []
    flags = ['--dataset', 'imagenet', '--data_dir', opt.data_dir, '--cache_epochs', '1', '--cache_topk', 'all',
             '--num_workers', str(opt.num_workers), '--seed', '0', '--teacher_cache']
    with contextlib.redirect_stdout(io.StringIO()):     # the classes without images
        return get_dataloaders(student_options(['--path-t', '-', '--batch_size', str(opt.batch_size), *flags]),
                               device), flags


def training(state, data, flags, pair, opt, device, folder):
    """A function that trains for a round: 'without' a cache, 'filling' an empty one, or with a 'full' one.

    data, flags: of open_data.
    """
    rounds, precision = opt.rounds + 1, Precision(opt.amp, device)
    distiller, optimizer, options = build(pair, opt, device, compiled=opt.compile, size=data.image_size,
                                          classes=data.num_classes, flags=flags)
    loader = data.train_loader

    def cached_loader(name):
        options.teacher_cache = f'{folder}/{name}'
        with contextlib.redirect_stdout(io.StringIO()):
            cache = open_cache(options, distiller.spec.needs, distiller.teacher, data, device)
        return TeacherOutputLoader(loader, cache, distiller.teacher_outputs)

    def train(training_loader):
        train_epoch(1, training_loader, distiller, optimizer, options, precision=precision)
    if state == 'without':
        loaders = [loader] * rounds
    elif state == 'filling':
        loaders = [cached_loader(f'round {number}') for number in range(rounds)]
    else:
        fill_with_noise(cached_loader('full').cache)
        loaders = [cached_loader('full')] * rounds
    return lambda: train(loaders.pop())


def measure(opt, device):
    """A row for each state of the cache and each pair."""
    for pair in opt.pair or (PHOTOGRAPHS if opt.photographs else PAIRS):
        method = pair.rpartition(',')[2]
        spec = get_method(method).spec
        if not spec.is_cacheable(CACHED_OUTPUTS) or len(spec.views) > 1:
            raise UserError(f'--pair {pair}: {method} needs more of the teacher than the cache keeps; give another')
        data, flags = open_data(opt, device)
        with tempfile.TemporaryDirectory() as folder:
            sides = {state: training(state, data, flags, pair, opt, device, folder)
                     for state in ('without', 'filling', 'full')}
            yield from compare('cache', sides, data.train_loader.n_samples, opt, device, pair=pair)
