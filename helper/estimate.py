"""--estimate: the time, memory and disk space of a run, from a few of its steps. Nothing is written."""
import contextlib
import json
import sys
import time
from collections.abc import Callable

import torch
from torch import nn

from . import distributed
from .cli import readable_bytes, readable_hours
from .device import Precision
from .loops import NullRun, train_epoch, validate

SECONDS = 5             # of timed steps
WARM_UP = 3             # untimed steps, which prepare buffers and algorithms
BATCHES = 8             # timed batches of the test set
LOG_BYTES = 1500        # an epoch's share of the JSON and TensorBoard files and of last.pth


class _Enough(Exception):
    """The timed part of an epoch is over."""


class Timer(NullRun):
    """Replaces a Run: times training steps or validation batches, and ends the epoch by _Enough."""

    def __init__(self, device: torch.device, most: int | None = None):
        """most: batches after which it ends, the same in all processes; not given: after SECONDS."""
        self.device, self.most, self.batches, self.calls = device, most, 0, 0
        self.marks = [(0, time.perf_counter())]     # (finished batches, time)

    def end_step(self, batches: int = 1) -> None:
        self.batches += batches
        self.calls += 1
        if self.device.type == 'cuda' and self.calls % 10 and self.most is None:
            return          # synchronising at each step would slow a GPU down
        self.mark()
        (_, first), (_, last) = self.marks[min(WARM_UP, len(self.marks) - 1)], self.marks[-1]
        is_over = self.batches == self.most if self.most else distributed.broadcast(lambda: last - first > SECONDS)
        if is_over:
            raise _Enough

    def stop_if_asked(self) -> None:
        self.end_step()

    def mark(self) -> None:
        """Synchronise with the device and record the time."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        self.marks.append((self.batches, time.perf_counter()))

    def seconds_per_batch(self) -> float:
        """The mean after the warm-up, or after fewer batches if there are not enough."""
        marks = self.marks[min(WARM_UP, len(self.marks) - 2):]
        return (marks[-1][1] - marks[0][1]) / (marks[-1][0] - marks[0][0])


def _step_seconds(module, data, opt, precision, device, rate):
    optimizer, timer = module.make_optimizer(rate, opt), Timer(device)
    wrapped = distributed.wrap(module, device, unused=module.in_first_stage)
    with contextlib.suppress(_Enough):
        train_epoch(1, data.train_loader, wrapped, optimizer, opt, timer, precision)
        if timer.marks[-1][0] < timer.batches:      # on a GPU the last steps have no mark
            timer.mark()
    return timer.seconds_per_batch(), optimizer


def _validation_seconds(net, loader, device):
    # All processes stop at the same batch, before their first exchange, because their numbers of batches can differ.
    timer = Timer(device, min(distributed.gather(min(BATCHES, len(loader)))))
    with contextlib.suppress(_Enough):
        validate(loader, net, timer)
    return timer.seconds_per_batch() * len(loader)


class _Sink:
    """A file that only counts its bytes."""

    bytes = 0

    def write(self, content) -> int:
        self.bytes += len(content)
        return len(content)

    def flush(self) -> None:
        pass


def _saved_bytes(state):
    sink = _Sink()
    torch.save(state, sink)
    return sink.bytes


def _peak_bytes(device):
    """The peak memory: of tensors on a GPU, of the whole process on a CPU; None if unknown."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:     # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def estimate(opt, module, data, precision: Precision, device: torch.device, checkpoint: Callable,
             teacher: nn.Module | None = None, init_rate: float = 0.0, cache_bytes: int = 0) -> dict:
    """Time some steps of a run, print and return the costs of the whole run; all processes call this.

    module: a distiller_zoo.Vanilla on its device. checkpoint() returns the content of its checkpoints. teacher: given
    if the run validates it first. init_rate: the rate of a first stage. cache_bytes: the size of the full teacher's
    cache.

    Returns {'hours', 'epochs', 'seconds_per_epoch', 'seconds_of_validation', 'images_per_second', 'memory_bytes' (of
    one process; None if unknown), 'disk_bytes', 'teacher_cache_bytes', 'classes'}. The last printed line is the same as
    JSON.
    """
    steps, before = len(data.train_loader), 0.0
    if teacher is not None:
        before += _validation_seconds(teacher, data.test_loader, device)
    if hasattr(module, 'prepare'):
        start = time.perf_counter()
        module.prepare(data)
        before += time.perf_counter() - start
    if module.in_first_stage:
        before += opt.init_epochs * steps * _step_seconds(module, data, opt, precision, device, init_rate)[0]
        module.end_first_stage()
    module.begin_epoch(1, opt.epochs)
    step, optimizer = _step_seconds(module, data, opt, precision, device, opt.learning_rate)
    validation = _validation_seconds(module.inference_net(), data.test_loader, device)
    epoch = steps * step + validation

    content = checkpoint()
    if 'optimizer' in content:      # of a teacher's checkpoint; this one has made no step
        content['optimizer'] = optimizer.state_dict()
    best = _saved_bytes(content)
    state = _saved_bytes({'module': module.state_dict(), 'optimizer': optimizer.state_dict()})
    kept = opt.epochs // getattr(opt, 'save_freq', opt.epochs + 1)      # ckpt_epoch_N.pth
    found = {
        'hours': (before + opt.epochs * epoch) / 3600, 'epochs': opt.epochs, 'seconds_per_epoch': epoch,
        'seconds_of_validation': validation, 'images_per_second': data.n_train / (steps * step),
        'memory_bytes': _peak_bytes(device), 'disk_bytes': (1 + kept) * best + 2 * state + LOG_BYTES * opt.epochs,
        'teacher_cache_bytes': cache_bytes, 'classes': data.num_classes}
    _show(found, before, device)
    return found


def _show(found, before, device):
    kind = 'GPU memory' if device.type == 'cuda' else 'memory'
    print(f'estimate, time: {readable_hours(found["hours"])}, {found["epochs"]} epochs of '
          f'{found["seconds_per_epoch"]:.1f} s, of which {found["seconds_of_validation"]:.1f} s are the validation; '
          f'{found["images_per_second"]:.0f} images/s'
          + (f'; {before:.0f} s before the first epoch' if before >= 1 else ''))
    if found['memory_bytes']:
        each = f' in each of {distributed.world_size()} processes' if distributed.world_size() > 1 else ''
        print(f'estimate, {kind}: {readable_bytes(found["memory_bytes"])}{each} at the peak')
    cache = found['teacher_cache_bytes']
    print(f'estimate, disk: {readable_bytes(found["disk_bytes"])}'
          + (f', and {readable_bytes(cache)} of the teacher\'s cache when it is full' if cache else ''))
    print(json.dumps(found), flush=True)
