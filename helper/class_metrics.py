"""Per-class metrics and calibration of a net, from its predictions for a test set."""
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from . import distributed
from .device import most_precise_float

BINS = 15           # of the confidence, as in Guo et al.
CLASS_METRICS = ('name', 'images', 'recall', 'precision', 'f1', 'predicted_as')      # of a class in class_report


def predictions(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """(3, N) on the device: predicted class, true class and confidence of each image, from logits (N, classes).

    The confidence is the probability of the predicted class. float64, or float32 on a device without it.
    """
    dtype = most_precise_float(logits.device)
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
    """The metrics of each class as a dictionary for JSON, in percent, from predictions (3, N) of a test set.

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
            'classes': [dict(zip(CLASS_METRICS, column, strict=True)) for column in columns]}


def _without_nan(values):
    return [None if math.isnan(value) else value for value in values.tolist()]
