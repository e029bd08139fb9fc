"""Training with the teacher's cache, full and while it is filled, beside training without, in turn."""
import contextlib
import io
import tempfile
from types import SimpleNamespace

from dataset.teacher_cache import CACHED_OUTPUTS, TeacherOutputLoader, open_cache
from distiller_zoo import get_method
from helper.device import Precision
from helper.errors import UserError
from helper.loops import train_epoch

from .common import build, compare, fill_with_noise, memory_loader

PAIRS = ('resnet110,resnet20,kd', 'resnet32x4,resnet8x4,kd', 'resnet20,resnet8,kd')


def training(state, pair, opt, device, folder):
    """A function that trains for a round 'without' a cache, 'filling' an empty one, or with a 'full' one."""
    loader, rounds, precision = memory_loader(opt, device), opt.rounds + 1, Precision(opt.amp, device)
    distiller, optimizer, options = build(pair, opt, device, compiled=opt.compile)
    data = SimpleNamespace(train_loader=loader, selection_loader=loader, selection_split='test', image_size=32,
                           n_train=loader.n_samples, selection_labels=loader.target.cpu())

    def cached_loader(name):
        options.teacher_cache = f'{folder}/{name}'
        with contextlib.redirect_stdout(io.StringIO()):
            cache = open_cache(options, distiller.spec.needs, distiller.teacher, data, device)
        return TeacherOutputLoader(loader, cache, distiller.teacher_outputs)
    if state == 'without':
        loaders = [loader] * rounds
    elif state == 'filling':
        loaders = [cached_loader(f'round {number}') for number in range(rounds)]
    else:
        fill_with_noise(cached_loader('full').cache)
        loaders = [cached_loader('full')] * rounds
    return lambda: train_epoch(1, loaders.pop(), distiller, optimizer, options, precision=precision)


def measure(opt, device):
    """A row for each state of the cache and each pair."""
    for pair in opt.pair or PAIRS:
        method = pair.rpartition(',')[2]
        if not get_method(method).spec.is_cacheable(CACHED_OUTPUTS):
            raise UserError(f'--pair {pair}: {method} needs more of the teacher than the cache keeps; give another')
        with tempfile.TemporaryDirectory() as folder:
            sides = {state: training(state, pair, opt, device, folder) for state in ('without', 'filling', 'full')}
            yield from compare('cache', sides, opt.batch_size * opt.steps, opt, device, pair=pair)
