"""--estimate: the time, memory and disk space of a run, from a few of its steps. Nothing is written."""
import contextlib
import functools
import io
import json
import sys
import time
from collections.abc import Callable, Sequence

import torch

from helper import distributed
from helper.cli import readable_bytes, readable_hours
from helper.device import Precision
from helper.errors import counted
from helper.loops import NullRun, train_epoch, validate

SECONDS = 5             # of timed steps
WARM_UP = 3             # untimed steps, which prepare buffers and algorithms
BATCHES = 8             # timed batches of the test set
LOG_BYTES = 1500        # an epoch's share of the JSON and TensorBoard files and of last.pth


class _EndOfTiming(Exception):
    """The timed part of an epoch is over."""


class Timer(NullRun):
    """Replaces a Run: times training steps or validation batches, and ends the epoch by _EndOfTiming."""

    def __init__(self, device: torch.device, max_batches: int | None = None):
        """max_batches: ends after so many, the same in all processes; not given: after SECONDS."""
        self.device, self.max_batches, self.batches, self.calls = device, max_batches, 0, 0
        self.marks = [(0, time.perf_counter())]     # (finished batches, time)

    def end_step(self, batches: int = 1) -> None:
        self.batches += batches
        self.calls += 1
        if self.device.type == 'cuda' and self.calls % 10 and self.max_batches is None:
            return          # synchronising at each step would slow a GPU down
        self.mark()
        (_, first), (_, last) = self.marks[min(WARM_UP, len(self.marks) - 1)], self.marks[-1]
        is_over = self.batches == self.max_batches if self.max_batches else \
            distributed.broadcast(lambda: last - first > SECONDS)
        if is_over:
            raise _EndOfTiming

    def stop_if_asked(self) -> None:
        self.end_step()

    def mark(self) -> None:
        """Synchronise with the device and record the time."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
        self.marks.append((self.batches, time.perf_counter()))

    def seconds_per_batch(self) -> float:
        """The mean after the warm-up, or after fewer batches if there are not enough."""
        (first_batch, start), *_, (last_batch, end) = self.marks[min(WARM_UP, len(self.marks) - 2):]
        return (end - start) / (last_batch - first_batch)


def _step_seconds(module, data, opt, precision, device, rate):
    optimizer, timer = module.make_optimizer(rate, opt), Timer(device)
    wrapped = distributed.wrap(module, device, find_unused_parameters=module.in_first_stage)
    with contextlib.suppress(_EndOfTiming):
        train_epoch(1, data.train_loader, wrapped, optimizer, opt, timer, precision)
        if timer.marks[-1][0] < timer.batches:      # on a GPU the last steps have no mark
            timer.mark()
    return timer.seconds_per_batch(), optimizer


def _validation_seconds(measure, loader, device):
    """The time of a pass over the loader by measure(loader, run), such as validate."""
    # All processes stop at the same batch, before their first exchange, because their numbers of batches can differ.
    timer = Timer(device, min(distributed.gather(min(BATCHES, len(loader)))))
    with contextlib.suppress(_EndOfTiming):
        measure(loader, timer)
    return timer.seconds_per_batch() * len(loader)


def _saved_bytes(state):
    file = io.BytesIO()
    torch.save(state, file)
    return file.getbuffer().nbytes


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
             first_passes: Sequence[tuple] = (), init_rate: float = 0.0, cache_bytes: int = 0) -> dict:
    """Time some steps, and print and return the costs of the run, last as a line of JSON. All processes call this.

    module: a distiller_zoo.TrainingTask on its device. checkpoint() returns the content of its checkpoints.
    first_passes: (net, loader) of each pass of a teacher before the first epoch. init_rate: of a first stage.
    cache_bytes: of the full teacher cache.
    """
    steps, before, after = len(data.train_loader), 0.0, 0.0
    for net, loader in first_passes:
        before += _validation_seconds(lambda images, timer, net=net: validate(images, net, timer), loader, device)
    if hasattr(module, 'prepare'):
        start = time.perf_counter()
        module.prepare(data)
        before += time.perf_counter() - start
    if module.in_first_stage:
        before += opt.init_epochs * steps * _step_seconds(module, data, opt, precision, device, init_rate)[0]
        module.end_first_stage()
    module.begin_epoch(opt.epochs, opt.epochs)      # no parameter is frozen in the last epoch
    step, optimizer = _step_seconds(module, data, opt, precision, device, opt.learning_rate)
    validate_module = functools.partial(module.validate, split=data.selection_split)
    validation = _validation_seconds(validate_module, data.selection_loader, device)
    # With a validation set, the test set is measured at the end, for the best and the last weights.
    if data.val_loader is not None and not opt.no_test:
        after = 2 * _validation_seconds(validate_module, data.test_loader, device)
    epoch, memory = steps * step + validation, _peak_bytes(device)

    content = checkpoint()
    if 'optimizer' in content:      # of a teacher's checkpoint; this one has made no step
        content['optimizer'] = optimizer.state_dict()
    state = {'module': module.state_dict(), 'optimizer': optimizer.state_dict()}
    checkpoints = 1 + opt.epochs // getattr(opt, 'save_freq', opt.epochs + 1)       # the best, and ckpt_epoch_N.pth
    disk = checkpoints * _saved_bytes(content) + 2 * _saved_bytes(state) + LOG_BYTES * opt.epochs
    costs = {
        'hours': (before + opt.epochs * epoch + after) / 3600, 'epochs': opt.epochs, 'seconds_per_epoch': epoch,
        'seconds_of_validation': validation, 'images_per_second': data.train_loader.n_samples / (steps * step),
        'memory_bytes': memory, 'disk_bytes': disk, 'teacher_cache_bytes': cache_bytes,
        **({'classes': data.num_classes} if data.has_labels else {})}
    _show(costs, before, after, device)
    return costs


def _show(costs, before, after, device):
    print(f'estimate, time: {readable_hours(costs["hours"])}, {counted(costs["epochs"], "epoch")} of '
          f'{costs["seconds_per_epoch"]:.1f} s, of which {costs["seconds_of_validation"]:.1f} s are the validation; '
          f'{costs["images_per_second"]:.0f} images/s'
          + (f'; {before:.0f} s before the first epoch' if before >= 1 else '')
          + (f'; {after:.0f} s for the test set at the end' if after >= 1 else ''))
    if costs['memory_bytes']:
        kind = 'GPU memory' if device.type == 'cuda' else 'memory'
        each = f' in each of {distributed.world_size()} processes' if distributed.world_size() > 1 else ''
        print(f'estimate, {kind}: {readable_bytes(costs["memory_bytes"])}{each} at the peak')
    cache = costs['teacher_cache_bytes']
    print(f'estimate, disk: {readable_bytes(costs["disk_bytes"])}'
          + (f', and {readable_bytes(cache)} of the teacher\'s cache when it is full' if cache else ''))
    print(json.dumps(costs), flush=True)
