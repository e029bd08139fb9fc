"""Training with the teacher's cache, full and while it is filled, beside training without, in turn."""
import contextlib
import io
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from dataset.teacher_cache import CACHED_OUTPUTS, TeacherOutputLoader, open_cache
from distiller_zoo import get_method
from helper.compile import keep_memory
from helper.device import Precision
from helper.errors import UserError
from helper.loops import train_epoch

from .common import alternate, build
from .loader import loaders

PAIRS = ('resnet110,resnet20,kd', 'resnet32x4,resnet8x4,kd', 'resnet20,resnet8,kd')


class Side:
    """Training without a cache, with one that is 'filling' (empty before each round), or 'full' (of random numbers)."""

    def __init__(self, state, pair, opt, device, folder):
        self.pair, self.device, self.folder = pair, device, Path(folder) / state
        self.loader, _ = loaders(opt, device)
        self.distiller, self.optimizer, self.options = build(pair, opt, device, True, opt.compile)
        self.precision, rounds = Precision(opt.amp, device), opt.rounds + 1
        if state == 'without':
            self.loaders = [self.loader] * rounds
        elif state == 'filling':
            self.loaders = [self.cached(str(number)) for number in range(rounds)]
        else:
            rng = np.random.default_rng(0)
            for file in self.cached('full').cache.files.values():
                file.write(np.arange(file.slots), rng.normal(size=(file.slots, file.width)).astype(np.float32))
            self.loaders = [self.cached('full')] * rounds

    def cached(self, name):
        data = SimpleNamespace(train_loader=self.loader, test_loader=self.loader, image_size=32,
                               n_train=self.loader.n_samples)
        opt = SimpleNamespace(teacher_cache=str(self.folder / name), model_t=self.pair[0], dataset='random')
        with contextlib.redirect_stdout(io.StringIO()):
            cache = open_cache(opt, self.distiller.spec.needs, self.distiller.teacher, data, self.device)
        return TeacherOutputLoader(self.loader, cache, self.distiller.teacher_outputs)

    def round(self):
        train_epoch(1, self.loaders.pop(), self.distiller, self.optimizer, self.options, precision=self.precision)


def measure(opt, device):
    """A row for each state of the cache and each pair."""
    if device.type == 'cpu':
        keep_memory()
    rows = []
    for pair in opt.pair or PAIRS:
        name = pair.rpartition(',')[2]
        if not get_method(name).spec.is_cacheable(CACHED_OUTPUTS):
            raise UserError(f'--pair {pair}: {name} needs more of the teacher than the cache keeps; give another')
        with tempfile.TemporaryDirectory() as folder:
            sides = {state: Side(state, pair.split(','), opt, device, folder).round
                     for state in ('without', 'filling', 'full')}
            speed = alternate(sides, opt.batch_size * opt.steps, opt, device)
        rows += [{'pair': pair, 'cache': state, 'images/s': s, 'ratio': s / speed['without']}
                 for state, s in speed.items()]
    return rows
