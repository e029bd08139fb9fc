"""Every exported file beside the network that it was made of, on the whole test set, each in a process of its own."""
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helper.errors import UserError

from .deployed_net import NormalisedNet
from .formats import FORMATS
from .runtime_process import RuntimeProcess

TOLERANCE = 1e-4    # of logits, or of the largest logit where that is above 1


@dataclass
class Evaluation:
    """What the test set says of one side."""

    seen: int = 0
    right: int = 0                      # images whose first class is the true one
    like: int = 0                       # ... is that of the network
    difference: float = 0.0             # the largest of any logit from the network's
    largest: float = 0.0                # the network's largest logit
    failed: str | None = None           # why its runtime could not run it
    predicted: set[int] = field(default_factory=set)        # first classes given to any image
    true: set[int] = field(default_factory=set)             # classes of the images

    def add(self, logits: np.ndarray, expected: np.ndarray, target: np.ndarray) -> None:
        """Count a batch."""
        self.seen += len(target)
        self.predicted |= {*logits.argmax(1).tolist()}
        self.true |= {*target.tolist()}
        self.right += int((logits.argmax(1) == target).sum())
        self.like += int((logits.argmax(1) == expected.argmax(1)).sum())
        difference = float(np.abs(logits - expected).max())
        self.difference = max(self.difference, difference if np.isfinite(difference) else np.inf)
        self.largest = max(self.largest, float(np.abs(expected).max()))

    @property
    def top1(self) -> float:
        """Accuracy in %."""
        return 100 * self.right / self.seen

    @property
    def agreement(self) -> float:
        """For how many images, in %, the first class is that of the network."""
        return 100 * self.like / self.seen

    @property
    def single_class(self) -> int | None:
        """The class predicted for all images, although they have several; None if there is no such class."""
        return min(self.predicted) if len(self.predicted) == 1 < len(self.true) else None

    def fault(self, agreement: float | None) -> str:
        """Why a file of a format with this `agreement` (see formats.Format) is not good enough; '' for a good one."""
        if self.failed:
            return self.failed
        if agreement is not None:
            return '' if self.agreement >= agreement else \
                f'gives the same first class for {self.agreement:.2f} % of the test images; at least {agreement} % ' \
                f'are wanted'
        allowed = TOLERANCE * max(1.0, self.largest)
        return '' if self.difference <= allowed else \
            f'its logits differ by up to {self.difference:.2g}; at most {allowed:.2g} is allowed'

    def json(self) -> dict:
        return {'test images': self.seen, 'top-1 %': self.top1, 'same first class %': self.agreement,
                'largest difference of logits': self.difference}


@dataclass
class Evaluations:
    """Of the network itself, of each format, and of the teacher if there is one."""

    network: Evaluation = field(default_factory=Evaluation)
    formats: dict[str, Evaluation] = field(default_factory=dict)
    teacher: Evaluation | None = None


def compare(net: NormalisedNet, folder: Path, names: list[str], loader: Iterable, dtype: str, teacher=None,
            order: list[int] | None = None) -> Evaluations:
    """Run the files of the formats `names` in `folder` on all images of the loader, (images, target, index).

    dtype: of the images that the files take. teacher: a network that takes the loader's images, with the classes of the
    data. order: for each class of the data its number in `net`, if it differs. The first image also runs alone, which
    tests that a file takes batches of several sizes.
    """
    found = Evaluations(formats={name: Evaluation() for name in names}, teacher=Evaluation() if teacher else None)
    with contextlib.ExitStack() as stack:
        runtimes = {name: stack.enter_context(RuntimeProcess(folder / FORMATS[name].file)) for name in names}
        for images, target, _ in loader:
            batch, of_data = pixels(loader, images, dtype), target.cpu().numpy()
            target = of_data if order is None else np.asarray(order)[of_data]
            if not found.network.seen:
                _add(found, net, runtimes, batch[:1], target[:1], counted=False)
            _add(found, net, runtimes, batch, target)
            if teacher:
                logits = _logits(teacher, images)
                found.teacher.add(logits, logits, of_data)
    return found


def _add(found, net, runtimes, batch, target, counted=True):
    expected = _logits(net, torch.from_numpy(batch))
    if not np.isfinite(expected).all():
        raise UserError("what the network gives is not finite: its run diverged; nothing is exported")
    if counted:
        found.network.add(expected, expected, target)
    for name, process in runtimes.items():
        outcome = found.formats[name]
        if outcome.failed:
            continue
        try:
            logits = process.ask(batch)[0]
        except UserError as error:
            outcome.failed = str(error)
            continue
        if logits.shape != expected.shape:
            outcome.failed = f'gives logits of shape {logits.shape} for {len(batch)} images'
        elif counted:
            outcome.add(logits, expected, target)


def _logits(net, images: Tensor):
    with torch.no_grad():
        return net(images).float().cpu().numpy()


def pixels(loader, images: Tensor, dtype: str) -> np.ndarray:
    """A loader's images (N, 3, S, S) as an export takes them: of 0 to 255 as uint8, or of 0 to 1 as float32."""
    whole = loader.normalise.to_pixels(images).permute(0, 3, 1, 2).contiguous().cpu()
    return (whole if dtype == 'uint8' else whole / 255).numpy()
