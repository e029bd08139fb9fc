"""Averages over an epoch, which stay on the device, and the progress bar that shows them."""
import sys
import threading
import time
from datetime import timedelta

import torch
from tqdm import tqdm

from . import distributed
from .device import most_precise_float

tqdm.set_lock(threading.RLock())    # tqdm's own lock is shared between processes; a killed one leaves it locked


OF_LABELS = ('ce', 'top1', 'top5')      # averages over the labelled images alone


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples, over all processes."""

    def __init__(self):
        self.names, self.sums, self.samples, self.labelled = [], None, 0, 0

    @torch.no_grad()
    def update(self, terms: dict, logits: torch.Tensor, target: torch.Tensor, images: int | None = None) -> None:
        """Add a batch, without waiting for the device. terms: name -> scalar mean over the batch.

        logits: (N, classes) or None. target: (N,), or (N, classes) for mixed images, whose larger share counts.
        images: their number, if some have no label and are not in logits and target; 'ce' is a mean over the others.
        """
        labelled = len(target)
        n = images or labelled
        target = target.argmax(1) if target.dim() == 2 else target
        sums = {name: term * (labelled if name in OF_LABELS else n) for name, term in terms.items()}
        if logits is not None and labelled:
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            sums |= {'top1': hits[:, 0].sum() * 100, 'top5': hits.sum() * 100}
        batch = torch.stack([value.to(most_precise_float(value.device)) for value in sums.values()])
        if self.sums is None:
            self.names, self.sums = list(sums), torch.zeros_like(batch)
        elif self.names != list(sums):      # restored from an older version, which also averaged losses of weight 0
            self.sums = self.sums[[self.names.index(name) for name in sums]]
            self.names = list(sums)
        self.sums += batch
        self.samples, self.labelled = self.samples + n, self.labelled + labelled

    def state(self) -> dict:
        """This process's sums, for a checkpoint."""
        return {'names': self.names, 'sums': None if self.sums is None else self.sums.cpu(), 'samples': self.samples,
                'labelled': self.labelled}

    def restore(self, states: list[dict], device: torch.device) -> None:
        """Add the sums that state() returned in one or several processes. Raises ValueError for other values."""
        for state in states:
            names, sums, samples = list(state['names']), state['sums'], state['samples']
            labelled = state.get('labelled', samples)       # not in states of older versions
            if not all(isinstance(n, int) and n >= 0 for n in (samples, labelled)) or \
                    sums.shape != (len(names),) or not sums.isfinite().all():
                raise ValueError('meter')
            sums = sums.to(device, most_precise_float(device))
            self.sums = sums.clone() if self.sums is None else self.sums + sums
            self.names, self.samples, self.labelled = names, self.samples + samples, self.labelled + labelled

    def averages(self, everywhere: bool = True) -> dict:
        """name -> average so far; waits for the device. everywhere: over all processes, which must all call this."""
        part = self.names, [] if self.sums is None else self.sums.tolist(), self.samples, self.labelled
        parts = [part for part in (distributed.gather(part) if everywhere else [part]) if part[2]]
        samples, labelled = (sum(part[i] for part in parts) for i in (2, 3))
        columns = zip(*(part[1] for part in parts), strict=True)
        return {name: sum(column) / (labelled if name in OF_LABELS else samples)
                for name, column in zip(parts[0][0] if parts else [], columns, strict=True)}


def describe(averages: dict) -> str:
    """The averages as text for the terminal, without top-5."""
    texts = [f'{name} {value:.4g}' for name, value in averages.items() if name not in ('top1', 'top5')]
    if 'top1' in averages:
        texts.append(f'top-1 {averages["top1"]:.2f}')
    return ', '.join(texts)


class Progress:
    """The progress of an epoch over all processes: a tqdm bar if stderr is a terminal, lines if stdout is a file."""

    def __init__(self, title: str, loader, print_freq: int, done: int = 0):
        """done: steps of this epoch that were already made before an interruption."""
        self.title, self.steps, self.print_freq, self.done = title, len(loader), print_freq, done
        self.world, self.total = distributed.world_size(), loader.n_samples
        self.batch = loader.batch_size * self.world
        self.images, self.images_per_second = 0, 0.0
        self.on_terminal = sys.stderr.isatty() and distributed.is_main()

    def __enter__(self):
        self.start = self.shown_at = time.perf_counter()
        self.bar = tqdm(total=self.total, initial=self.done * self.batch, desc=self.title, unit='img', leave=False,
                        disable=not self.on_terminal)
        return self

    def __exit__(self, *exception):
        self.bar.close()
        self.images_per_second = self.images / (time.perf_counter() - self.start)

    def step(self, images: int, meter: Meter) -> None:
        """Count a batch of `images` in each process."""
        self.done += 1
        self.images += images * self.world
        self.bar.update(images * self.world)
        is_due, now = self.done % self.print_freq == 0, time.perf_counter()
        # Reading the meter waits for a GPU. Elsewhere a bar on a terminal is also refreshed once a second.
        is_refresh = self.on_terminal and meter.sums.device.type == 'cpu' and now - self.shown_at > 1
        if not is_due and not is_refresh:
            return
        self.shown_at = now
        averages = describe(meter.averages(everywhere=is_due))
        if self.on_terminal:
            self.bar.set_postfix_str(averages)
        if is_due and not sys.stdout.isatty():
            speed = self.images / (time.perf_counter() - self.start)
            left = timedelta(seconds=round(max(0, self.total - self.done * self.batch) / speed))
            print(f'{self.title} [{self.done}/{self.steps}]  {averages}, {speed:.0f} images/s, {left} left', flush=True)
