"""Averages over an epoch that stay on the device, the figures of each class, the check for NaN, the progress bar."""
import math
import sys
import threading
import time
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import NamedTuple

import torch
from torch import nn
from tqdm import tqdm

from . import distributed
from .device import finest
from .errors import UserError
from .optim import base_rate

BINS = 15           # of the confidence, as in Guo et al.
CLASS_FIGURES = ('name', 'images', 'recall', 'precision', 'f1', 'predicted_as')      # of a class in class_report

tqdm.set_lock(threading.RLock())    # tqdm's own lock is shared between processes; a killed one leaves it locked


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples, over all processes."""

    def __init__(self):
        self.names, self.sums, self.samples = [], None, 0

    @torch.no_grad()
    def update(self, terms: dict, logits: torch.Tensor, target: torch.Tensor) -> None:
        """Add a batch, without waiting for the device. terms: name -> scalar mean over the batch.

        logits: (N, classes) or None. target: (N,), or (N, classes) for mixed images, whose larger share counts.
        """
        n = len(target)
        target = target.argmax(1) if target.dim() == 2 else target
        sums = {name: term * n for name, term in terms.items()}
        if logits is not None:
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            sums |= {'top1': hits[:, 0].sum() * 100, 'top5': hits.sum() * 100}
        batch = torch.stack([value.to(finest(value.device)) for value in sums.values()])
        if self.sums is None:
            self.names, self.sums = list(sums), torch.zeros_like(batch)
        elif self.names != list(sums):      # restored from an older version, which also averaged losses of weight 0
            self.sums = self.sums[[self.names.index(name) for name in sums]]
            self.names = list(sums)
        self.sums += batch
        self.samples += n

    def state(self) -> dict:
        """This process's sums, for a checkpoint."""
        return {'names': self.names, 'sums': None if self.sums is None else self.sums.cpu(), 'samples': self.samples}

    def restore(self, states: list[dict], device: torch.device) -> None:
        """Add the sums that state() returned in one or several processes. Raises ValueError for other values."""
        for state in states:
            names, sums, samples = list(state['names']), state['sums'], state['samples']
            if not isinstance(samples, int) or samples < 0 or sums.shape != (len(names),) or not sums.isfinite().all():
                raise ValueError('meter')
            sums = sums.to(device, finest(device))
            self.sums = sums.clone() if self.sums is None else self.sums + sums
            self.names, self.samples = names, self.samples + samples

    def averages(self, everywhere: bool = True) -> dict:
        """name -> average so far; waits for the device. everywhere: over all processes, which must all call this."""
        part = self.names, [] if self.sums is None else self.sums.tolist(), self.samples
        parts = [(names, sums, n) for names, sums, n in (distributed.gather(part) if everywhere else [part]) if n]
        samples = sum(n for _, _, n in parts)
        columns = zip(*(sums for _, sums, _ in parts), strict=True)
        return {name: sum(column) / samples for name, column in zip(parts[0][0] if parts else [], columns, strict=True)}


def predictions(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(3, N) on the device: predicted class, true class and confidence of each image, from logits (N, classes).

    The confidence is the probability of the predicted class. float64, or float32 on a device without it.
    """
    dtype = finest(logits.device)
    confidence = logits.float().softmax(1).amax(1)
    return torch.stack([logits.argmax(1).to(dtype), target.to(dtype), confidence.to(dtype)])


def gather_predictions(batches: list[torch.Tensor]) -> torch.Tensor:
    """(3, N) on the CPU: the predictions of all batches in all processes, which must all call this."""
    mine = torch.cat(batches, 1).cpu().double() if batches else torch.empty(3, 0, dtype=torch.float64)
    return torch.cat(distributed.gather(mine), 1)


class Calibration(NamedTuple):
    """Test images in equal bins of the confidence, (0, 1]. Empty bins have the values 0."""

    count: torch.Tensor         # (bins,), number of images
    confidence: torch.Tensor    # (bins,), mean probability of the predicted class
    accuracy: torch.Tensor      # (bins,), fraction of correct predictions
    ece: float                  # expected calibration error


def calibrate(confidence: torch.Tensor, is_correct: torch.Tensor, bins: int = BINS) -> Calibration:
    """Calibration from the confidence (N,) and whether each prediction is correct (N,), both float64.

    Guo et al., ICML 2017, arXiv:1706.04599: ECE is the mean of |accuracy - confidence| over the bins, weighted by their
    images.
    """
    bin_index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count, confidence, correct = (torch.bincount(bin_index, weights, bins)
                                  for weights in (None, confidence, is_correct))
    divisor = count.clamp(min=1)
    return Calibration(count, confidence / divisor, correct / divisor,
                       ((correct - confidence).abs().sum() / len(bin_index)).item())


def class_report(predictions: torch.Tensor, classes: Sequence[str]) -> dict:
    """The figures of each class as a dictionary for JSON, in percent, from predictions (3, N) of a test set.

    'macro_f1', 'balanced_acc' (mean recall), 'ece' (15 bins), 'images', and 'classes': for each class its name, number
    of images, recall, precision, F1, and its row of the confusion matrix without zeros, the most frequent first. As in
    scikit-learn, but without its import, which takes a second. Recall and F1 of a class without images, and the
    precision of one that is never predicted, are None and left out of the means.
    """
    predicted, true = predictions[:2].long()
    count = len(classes)
    images, times_predicted = (torch.bincount(labels, minlength=count).double() for labels in (true, predicted))
    hits = torch.bincount(true[true == predicted], minlength=count).double()
    recall, precision = 100 * hits / images, 100 * hits / times_predicted       # NaN for 0 / 0
    f1 = (200 * hits / (images + times_predicted)).where(images > 0, torch.nan)
    rows = [{} for _ in classes]
    pairs, counts = (true * count + predicted).unique(return_counts=True)
    for pair, number in sorted(zip(pairs.tolist(), counts.tolist(), strict=True), key=lambda item: -item[1]):
        row, name = rows[pair // count], classes[pair % count]
        row[name] = row.get(name, 0) + number       # classes of Hugging Face may share a name
    columns = zip(classes, images.int().tolist(), *(_without_nan(values) for values in (recall, precision, f1)), rows,
                  strict=True)
    return {'images': len(true), 'macro_f1': f1.nanmean().item(), 'balanced_acc': recall.nanmean().item(),
            'ece': 100 * calibrate(predictions[2], (true == predicted).double()).ece,
            'classes': [dict(zip(CLASS_FIGURES, column, strict=True)) for column in columns]}


def _without_nan(values):
    return [None if math.isnan(value) else value for value in values.tolist()]


def describe(averages: dict) -> str:
    """The averages as text for the terminal, without top-5."""
    texts = [f'{name} {value:.4g}' for name, value in averages.items() if name not in ('top1', 'top5')]
    if 'top1' in averages:
        texts.append(f'top-1 {averages["top1"]:.2f}')
    return ', '.join(texts)


class FiniteCheck:
    """Ends a run whose loss becomes NaN or infinite. On a GPU the losses are read some steps later, without waiting."""

    def __init__(self, epoch: int, optimizer, advice: str = 'lower --learning_rate'):
        """advice: ends the error message."""
        self.epoch, self.optimizer, self.advice = epoch, optimizer, advice
        self._pending = deque()     # copies from the GPU that may not have arrived: (event, step, names, values)

    def add(self, step: int, terms: dict) -> None:
        """Check the terms of a step, name -> scalar tensor, with 'loss'. Raises UserError, also for a past step."""
        names, values = list(terms), torch.stack([t.detach().float() for t in terms.values()])
        if values.device.type != 'cuda':        # the events below are CUDA's
            self._check(step, names, values)
            return
        copy = values.to('cpu', non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((arrived, step, names, copy))
        while self._pending and self._pending[0][0].query():
            self._check(*self._pending.popleft()[1:])

    def flush(self) -> None:
        """Wait for all copies and check them: before the end of an epoch or a checkpoint."""
        while self._pending:
            arrived, *terms = self._pending.popleft()
            arrived.synchronize()
            self._check(*terms)

    def _check(self, step, names, values):
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms['loss']):
            raise UserError(f'the loss diverged in epoch {self.epoch}, at step {step} ({describe(terms)}) at learning '
                            f'rate {base_rate(self.optimizer):g}; {self.advice}')

    def check_weights(self, module: nn.Module) -> None:
        """Raise UserError for weights that are not finite: a finite loss can still give an update that ruins them."""
        weights = [value for value in module.state_dict().values() if value.is_floating_point()]
        if not all(torch.stack([weight.isfinite().all() for weight in weights]).tolist()):
            raise UserError(f'the weights are no longer finite in epoch {self.epoch}, at learning rate '
                            f'{base_rate(self.optimizer):g}; {self.advice}')


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
