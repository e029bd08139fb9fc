"""Compare every exported file with its network on the whole test set, each in a separate process."""
import contextlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from helper.class_metrics import predictions
from helper.errors import UserError, counted

from .deployed_net import NormalisedNet
from .runtime_process import RuntimeProcess

QAT_TOLERANCE = 1.0     # accuracy, in percentage points, that a --qat student's file may lose
TOLERANCE = 1e-4        # of logits; relative to the network's largest logit if that is above 1


@dataclass
class Evaluation:
    """Counts over the test set, for the network, a file or the teacher."""

    images: int = 0
    correct: int = 0
    agreeing: int = 0                   # images with the same predicted class as the network's
    difference: float = 0.0             # largest absolute difference of a logit from the network's
    largest: float = 0.0                # the network's largest absolute logit
    failure: str | None = None          # why the file cannot be run
    predicted: set[int] = field(default_factory=set)        # predicted classes
    true: set[int] = field(default_factory=set)             # classes of the images

    def add(self, logits: np.ndarray, expected: np.ndarray, target: np.ndarray) -> None:
        """Count a batch. expected: the network's logits."""
        prediction, difference = logits.argmax(1), float(np.abs(logits - expected).max())
        self.images += len(target)
        self.correct += int((prediction == target).sum())
        self.agreeing += int((prediction == expected.argmax(1)).sum())
        self.difference = max(self.difference, difference if np.isfinite(difference) else np.inf)
        self.largest = max(self.largest, float(np.abs(expected).max()))
        self.predicted |= {*prediction.tolist()}
        self.true |= {*target.tolist()}

    @property
    def top1(self) -> float:
        """Accuracy in %."""
        return 100 * self.correct / self.images

    @property
    def agreement(self) -> float:
        """Images, in %, with the same predicted class as the network's."""
        return 100 * self.agreeing / self.images

    @property
    def single_class(self) -> int | None:
        """The class predicted for all images, if they have several classes; else None."""
        return min(self.predicted) if len(self.predicted) == 1 < len(self.true) else None

    def fault(self, required: float | None) -> str:
        """Why a file must be rejected, '' if it need not. required: Format.agreement, which decides what is compared.
        """
        if self.failure:
            return self.failure
        allowed = TOLERANCE * max(1.0, self.largest)
        if required is None and self.difference > allowed:
            return f'its logits differ by up to {self.difference:.2g}; at most {allowed:.2g} is allowed'
        if required is not None and self.agreement < required:
            return (f'predicts the same class as the network for {self.agreement:.2f} % of the test images; at least '
                    f'{required} % are required')
        return ''

    def fault_of_qat(self, rounded: 'Evaluation') -> str:
        """Why the file of a --qat student must be rejected, '' if it need not. rounded: its network in PyTorch.

        PyTorch and onnxruntime can round a value near the middle of two integers to different ones. In a deep net this
        changes as many classes as 8 bits do, so the accuracy is compared, not the classes.
        """
        if self.failure or self.top1 >= rounded.top1 - QAT_TOLERANCE:
            return self.failure or ''
        return f'its accuracy is {self.top1:.2f} %, and the rounded network has {rounded.top1:.2f} %; at most ' \
               f'{QAT_TOLERANCE} less is allowed'

    def json(self) -> dict:
        return {'test images': self.images, 'top-1 %': self.top1, 'same first class %': self.agreement,
                'largest difference of logits': self.difference}


@dataclass
class Evaluations:
    network: Evaluation
    formats: dict[str, Evaluation]          # of the exported files
    teacher: Evaluation | None
    predictions: Tensor | None = None       # (3, N), of the network: helper.class_metrics.predictions


def evaluate(net: NormalisedNet, files: dict[str, Path], loader: Iterable, dtype: str, teacher=None,
             order: list[int] | None = None) -> Evaluations:
    """Run the network, its exported files and the teacher on all images of the loader.

    files: name in Evaluations.formats -> file. dtype: of the images that the files take. teacher: a network that takes
    the loader's images and has the classes of the data. order: for each class of the data its number in `net`, if the
    numbers differ. The first image also runs alone, to test that a file takes batches of any size.
    """
    results = Evaluations(Evaluation(), {name: Evaluation() for name in files}, Evaluation() if teacher else None)
    batches = []
    with contextlib.ExitStack() as stack:
        processes = {name: stack.enter_context(RuntimeProcess(file)) for name, file in files.items()}
        for images, target, _ in loader:
            batch, target = pixels(loader, images, dtype), target.cpu().numpy()
            if not results.network.images:
                _run_files(results, processes, batch[:1], _logits(net, torch.from_numpy(batch[:1])), None)
            expected = _logits(net, torch.from_numpy(batch))
            if not np.isfinite(expected).all():
                raise UserError('the outputs of the network are not finite: its run diverged; nothing is exported')
            classes = target if order is None else np.asarray(order)[target]
            results.network.add(expected, expected, classes)
            batches.append(predictions(torch.from_numpy(expected), torch.from_numpy(classes)))
            _run_files(results, processes, batch, expected, classes)
            if teacher:
                logits = _logits(teacher, images)
                results.teacher.add(logits, logits, target)
    results.predictions = torch.cat(batches, 1)
    return results


def _run_files(results, processes, batch, expected, classes):
    """Run a batch in all processes. classes: of its images; None: do not count it."""
    for name, process in processes.items():
        result = results.formats[name]
        if result.failure:
            continue
        try:
            logits = process.run(batch)[0]
        except UserError as error:
            result.failure = str(error)
            continue
        if logits.shape != expected.shape:
            result.failure = f'returns logits of shape {logits.shape} for {counted(len(batch), "image")}'
        elif classes is not None:
            result.add(logits, expected, classes)


def _logits(net, images: Tensor):
    with torch.no_grad():
        return net(images).float().cpu().numpy()


def pixels(loader, images: Tensor, dtype: str) -> np.ndarray:
    """A loader's images (N, 3, S, S) as an export takes them: uint8 from 0 to 255, or float32 from 0 to 1."""
    integers = loader.normalise.to_pixels(images).permute(0, 3, 1, 2).contiguous().cpu()
    return (integers if dtype == 'uint8' else integers / 255).numpy()
