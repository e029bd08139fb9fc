"""What an epoch is watched by: averages that stay on the device, a check for NaN, and a progress bar or lines."""
import math
import sys
import threading
import time
from collections import deque
from datetime import timedelta

import torch
from torch import nn
from tqdm import tqdm

from . import distributed
from .device import finest
from .errors import UserError

tqdm.set_lock(threading.RLock())    # the default lock is shared between processes; one that is killed leaves it locked


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples, over all processes."""

    def __init__(self):
        self.names, self.sums, self.samples = [], None, 0

    @torch.no_grad()
    def update(self, terms: dict, logits: torch.Tensor, target: torch.Tensor) -> None:
        """terms: name -> scalar mean over the batch; logits (N, classes) or None. Nothing is read back.

        target: (N,), or with mixed images (N, classes), of which the larger share counts as the class.
        """
        n = len(target)
        target = target.argmax(1) if target.dim() == 2 else target
        values = {name: term * n for name, term in terms.items()}
        if logits is not None:
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            values |= {'top1': hits[:, 0].sum() * 100, 'top5': hits.sum() * 100}
        names, values = list(values), torch.stack([value.to(finest(value.device)) for value in values.values()])
        if self.sums is None:
            self.names = names
            self.sums = torch.zeros_like(values)
        self.sums += values
        self.samples += n

    @property
    def on_cpu(self) -> bool:
        """Whether the averages can be read without waiting for a GPU."""
        return self.sums is not None and self.sums.device.type == 'cpu'

    def state(self) -> dict:
        """This process's sums, for a checkpoint."""
        return {'names': self.names, 'sums': None if self.sums is None else self.sums.cpu(), 'samples': self.samples}

    def restore(self, states: list[dict], device: torch.device) -> None:
        """Continue from what state() returned here, or in several processes. Raises ValueError for other values."""
        for state in states:
            names, sums, samples = list(state['names']), state['sums'], state['samples']
            if not isinstance(samples, int) or samples < 0 or sums.shape != (len(names),) or not sums.isfinite().all():
                raise ValueError('meter')
            sums = sums.to(device, finest(device))
            self.sums = sums.clone() if self.sums is None else self.sums + sums
            self.names, self.samples = names, self.samples + samples

    def averages(self, everywhere: bool = True) -> dict:
        """name -> average so far. The only method that waits for the device.

        everywhere: over all processes, which must then all call this; otherwise over this process alone.
        """
        own = self.names, [] if self.sums is None else self.sums.tolist(), self.samples
        parts = [part for part in (distributed.gather(own) if everywhere else [own]) if part[2]]
        samples = sum(part[2] for part in parts)
        sums = [sum(column) for column in zip(*(part[1] for part in parts), strict=True)]
        return {name: value / samples for name, value in zip(parts[0][0] if parts else [], sums, strict=True)}


class ClassCount:
    """Counts the classes that a net predicts for the test images, over all processes, without waiting for the GPU."""

    def __init__(self):
        self.seen = None        # bool (2, classes): which are predicted, which have images

    def update(self, logits: torch.Tensor, target: torch.Tensor) -> None:
        """logits (N, classes), target (N,)."""
        if self.seen is None:
            self.seen = torch.zeros(2, logits.shape[1], dtype=torch.bool, device=logits.device)
        self.seen[0].index_fill_(0, logits.argmax(1), True)
        self.seen[1].index_fill_(0, target, True)

    def counts(self) -> tuple[int, int]:
        """(classes that are predicted at least once, classes with at least one image). All processes call this."""
        parts = [part for part in distributed.gather(None if self.seen is None else self.seen.cpu())
                 if part is not None]
        return tuple(torch.stack(parts).any(0).sum(1).tolist()) if parts else (0, 0)


def describe(averages: dict) -> str:
    """The averages for a person to read, without top-5."""
    words = [f'{name} {value:.4g}' for name, value in averages.items() if name not in ('top1', 'top5')]
    if 'top1' in averages:
        words.append(f'top-1 {averages["top1"]:.2f}')
    return ', '.join(words)


class FiniteCheck:
    """Ends a run whose loss becomes NaN or infinite. On a GPU the losses are read some steps later, without waiting."""

    def __init__(self, epoch: int, optimizer, advice: str = 'lower --learning_rate'):
        """advice: what the user can do about it, the end of the error message."""
        self.epoch, self.optimizer, self.advice = epoch, optimizer, advice
        self.on_the_way = deque()       # copies from the GPU that have not arrived yet

    def add(self, step: int, terms: dict) -> None:
        """terms: name -> scalar tensor, 'loss' among them. Raises UserError for this step or for an earlier one."""
        names, values = list(terms), torch.stack([t.detach().float() for t in terms.values()])
        if values.device.type != 'cuda':        # the events below are CUDA's
            self.check(step, names, values)
            return
        copy = values.to('cpu', non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.on_the_way.append((arrived, step, names, copy))
        while self.on_the_way and self.on_the_way[0][0].query():
            self.check(*self.on_the_way.popleft()[1:])

    def check(self, step: int, names: list[str], values: torch.Tensor) -> None:
        """Raises UserError unless the loss among these values, on the CPU, is finite."""
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms['loss']):
            raise UserError(f'the loss diverged in epoch {self.epoch}, at step {step} ({describe(terms)}) at learning '
                            f'rate {self.optimizer.param_groups[0]["lr"]:g}; {self.advice}')

    def flush(self) -> None:
        """Wait for all copies and check them: before an epoch's end or a checkpoint."""
        while self.on_the_way:
            arrived, *seen = self.on_the_way.popleft()
            arrived.synchronize()
            self.check(*seen)

    def check_weights(self, module: nn.Module) -> None:
        """Before the weights are saved: a finite loss can still give an update, or running statistics, that ruin them.

        Waits for the device. Raises UserError.
        """
        weights = [value for value in module.state_dict().values() if value.is_floating_point()]
        if not all(torch.stack([weight.isfinite().all() for weight in weights]).tolist()):
            raise UserError(f'the weights are no longer finite in epoch {self.epoch}, at learning rate '
                            f'{self.optimizer.param_groups[0]["lr"]:g}; {self.advice}')


class Progress:
    """A tqdm bar where stderr is a terminal, plain lines where stdout is a file. A context manager around an epoch.

    Call step after every batch. The meter is read, which waits for the device, only every print_freq steps. Counts the
    images of all processes.
    """

    def __init__(self, title: str, loader, print_freq: int, done: int = 0):
        """done: steps of this epoch that were already made before an interruption."""
        self.title, self.steps, self.print_freq, self.done = title, len(loader), print_freq, done
        self.world = distributed.world_size()
        self.batch = loader.batch_size * self.world
        self.total = loader.n_samples
        self.images = 0
        self.terminal = sys.stderr.isatty() and distributed.is_main()
        self.images_per_second = 0.0

    def __enter__(self):
        self.start = self.shown = time.perf_counter()
        self.bar = tqdm(total=self.total, initial=self.done * self.batch, desc=self.title, unit='img', leave=False,
                        disable=not self.terminal)
        return self

    def __exit__(self, *exception):
        self.bar.close()
        self.images_per_second = self.images / (time.perf_counter() - self.start)

    def step(self, images: int, meter: Meter) -> None:
        """Count a batch of `images` in each process."""
        self.done += 1
        self.images += images * self.world
        self.bar.update(images * self.world)
        due = self.done % self.print_freq == 0
        # A bar on a terminal is also refreshed once a second where the meter can be read without waiting.
        if not due and not (self.terminal and meter.on_cpu and time.perf_counter() - self.shown > 1):
            return
        self.shown = time.perf_counter()
        averages = meter.averages(everywhere=due)
        if self.terminal:
            self.bar.set_postfix_str(describe(averages))
        if not due or sys.stdout.isatty():
            return
        speed = self.images / (time.perf_counter() - self.start)
        left = timedelta(seconds=round(max(0, self.total - self.done * self.batch) / speed))
        print(f'{self.title} [{self.done}/{self.steps}]  {describe(averages)}, {speed:.0f} images/s, {left} left',
              flush=True)
