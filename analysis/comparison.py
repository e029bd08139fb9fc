"""Figures of students and their teacher on the test set, with their numbers; for scripts/visualize.py."""
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from helper.class_metrics import class_report, predictions
from helper.cli import table
from helper.errors import UserError, printable
from models.base import Net

from . import metrics, net_figures
from .figures import shorten

NEEDED = {'tsne': 4, 'cka': 4, 'gradcam': 1}        # test images; other figures use the logits for the whole test set
LONGEST = 40                # characters of the name of a net or class


@dataclass(eq=False)
class ComparedNet:
    """A net of the figures; logits: (N, classes), for the whole test set."""

    name: str
    flag: str
    checkpoint: str
    net: nn.Module
    logits: Tensor | None = None
    mistakes: list[int] = field(default_factory=list)       # rows of logits: wrong predictions, the surest first

    @property
    def has_stages(self) -> bool:
        return isinstance(self.net, Net)

    def check(self, outputs: Tensor) -> Tensor:
        """The outputs of this net. Raises UserError unless they are finite."""
        if not outputs.isfinite().all():
            raise UserError(f'{self.flag} {self.checkpoint}: its outputs are not finite, so the run diverged; leave it '
                            f'out')
        return outputs


@dataclass
class Comparison:
    """Everything that the figures are made from. Each draw_ function takes it and returns (figure, its numbers)."""

    teacher: ComparedNet
    students: list[ComparedNet]
    data: object
    opt: object
    index: Tensor | None = None                                     # (N,), numbers of the test images
    target: Tensor | None = None                                    # (N,), their classes
    images: dict[int, Tensor] = field(default_factory=dict)         # number -> preprocessed image (3, H, W)
    numbers: dict[str, list[int]] = field(default_factory=dict)     # figure -> numbers of its test images

    @property
    def nets(self) -> list[ComparedNet]:
        return [self.teacher, *self.students]

    def batch(self, figure: str) -> tuple[list[int], Tensor]:
        """(numbers, images (N, 3, H, W)) of a figure's test images, without unreadable ones."""
        numbers = [n for n in self.numbers[figure] if n in self.images]
        if len(numbers) < NEEDED[figure]:
            raise UserError(f'--only: too few of the test images of {figure} can be read; leave it out')
        return numbers, torch.stack([self.images[n] for n in numbers])

    def class_names(self, labels: Tensor | None = None) -> list[str]:
        """The names of the classes of these labels (N,), or of all classes, made fit for a figure."""
        names = self.data.classes if labels is None else [self.data.classes[label] for label in labels.tolist()]
        return [shorten(printable(name), LONGEST) for name in names]

    def class_reports(self) -> dict[str, dict]:
        """net -> its helper.class_metrics.class_report on the whole test set."""
        return {net.name: class_report(predictions(net.logits, self.target), self.data.classes) for net in self.nets}


def draw_tsne(comparison):
    numbers, images = comparison.batch('tsne')
    labels = comparison.data.test_labels[numbers]
    points = {}
    for net in comparison.nets:
        if net.has_stages:
            embeddings = net.check(metrics.embeddings(net.net, images, comparison.opt.data.batch_size))
            points[net.name] = metrics.tsne(embeddings, comparison.opt.seed)
    figure = net_figures.tsne({name: xy.numpy() for name, xy in points.items()}, labels.numpy(),
                              comparison.class_names(labels.unique()))
    return figure, {'images': numbers, 'labels': labels.tolist(),
                    'points': {name: xy.tolist() for name, xy in points.items()}}


def draw_correlations(comparison):
    differences = {net.name: metrics.correlation_difference(net.logits, comparison.teacher.logits)
                   for net in comparison.students}
    figure = net_figures.correlations({name: difference.numpy() for name, difference in differences.items()},
                                      comparison.class_names())
    return figure, {'images': len(comparison.target),
                    'classes': [printable(name) for name in comparison.data.classes],
                    'mean difference': {name: difference.mean().item() for name, difference in differences.items()}}


def draw_cka(comparison):
    numbers, images = comparison.batch('cka')
    students = [net for net in comparison.students if net.has_stages]
    values = metrics.stage_cka(comparison.teacher.net, [net.net for net in students], images)
    matrices = {net.name: matrix for net, matrix in zip(students, values, strict=True)}
    figure = net_figures.cka({name: matrix.numpy() for name, matrix in matrices.items()}, comparison.teacher.name)
    return figure, {'images': len(numbers), 'rows': 'student', 'columns': 'teacher',
                    'cka': {name: matrix.tolist() for name, matrix in matrices.items()}}


def draw_grad_cam(comparison):
    numbers, images = comparison.batch('gradcam')
    loader, labels = comparison.data.test_loader, comparison.data.test_labels[numbers]
    images = images.to(loader.device)
    drawn, predictions = {}, {}
    for net in comparison.nets:
        if not net.has_stages:
            continue
        try:
            maps, logits = metrics.grad_cam(net.net, images)
        except LookupError as error:
            print(f'{net.name}: {error}, so it is not in gradcam')
            continue
        probability, predicted = logits.softmax(1).cpu().max(1)
        captions = [f'{name}, {share:.0%}'
                    for name, share in zip(comparison.class_names(predicted), probability.tolist(), strict=True)]
        drawn[net.name] = maps.cpu().numpy(), captions, (predicted == labels).tolist()
        predictions[net.name] = {'predicted': predicted.tolist(), 'probability': probability.tolist()}
    if not drawn:
        raise UserError('--only: gradcam can show none of these nets; leave it out')
    pixels = loader.normalise.to_pixels(images).cpu()
    figure = net_figures.grad_cam(pixels.numpy(), [f'image {n}' for n in numbers], comparison.class_names(labels),
                                  drawn)
    return figure, {'images': numbers, 'labels': labels.tolist(), 'nets': predictions}


def draw_calibration(comparison):
    teacher, target = comparison.teacher.logits, comparison.target
    calibrations, numbers, rows = {}, {}, []
    for net in comparison.nets:
        calibration = calibrations[net.name] = metrics.calibration(net.logits, target)
        is_student = net is not comparison.teacher
        values = {'top-1 %': metrics.top1(net.logits, target),
                  'agreement %': metrics.top1(net.logits, teacher.argmax(1)) if is_student else None,
                  'KL': metrics.mean_kl(net.logits, teacher) if is_student else None, 'ECE %': calibration.ece * 100,
                  'NLL': nn.functional.cross_entropy(net.logits, target).item()}
        rows.append((net.name, *('' if value is None else f'{value:.{2 if "%" in name else 4}f}'
                                 for name, value in values.items())))
        numbers[net.name] = {'checkpoint': net.checkpoint, **values, 'bins': {
            name: getattr(calibration, name).tolist() for name in ('count', 'confidence', 'accuracy')}}
    print(f'\n{table(("net", *values), rows, "<>>>>>")}\n')
    return net_figures.calibration(calibrations), {'images': len(target), 'nets': numbers}


def draw_confusion(comparison):
    target, count = comparison.target, comparison.data.num_classes
    matrices = {net.name: torch.bincount(target * count + net.logits.argmax(1), minlength=count**2).view(count, count)
                for net in comparison.nets}
    figure = net_figures.confusion({name: matrix.numpy() for name, matrix in matrices.items()},
                                   comparison.class_names())
    return figure, {'nets': comparison.class_reports()}


def draw_classes(comparison):
    reports = comparison.class_reports()
    recall = {name: np.array([row['recall'] for row in report['classes']], float) for name, report in reports.items()}
    images = torch.bincount(comparison.target, minlength=comparison.data.num_classes)
    figure = net_figures.class_accuracy(recall, comparison.class_names(), images.tolist())
    means = {name: {key: value for key, value in report.items() if key != 'classes'}
             for name, report in reports.items()}
    return figure, {'classes': [*comparison.data.classes], 'images': images.tolist(), 'nets': means,
                    'accuracy %': {name: values.tolist() for name, values in recall.items()}}


def draw_mistakes(comparison):
    target, loader, classes = comparison.target, comparison.data.test_loader, comparison.data.classes
    sheets, rows = [], {}
    for net in comparison.students:
        predicted, true, confidence = predictions(net.logits, target)[:, net.mistakes]
        predicted, true, confidence = predicted.long(), true.long(), confidence.tolist()
        numbers = comparison.index[net.mistakes].tolist()
        rows[net.name] = [
            {'image': number, 'file': comparison.data.test_name(number), 'class': classes[label],
             'predicted': classes[other], 'confidence': share} for number, label, other, share
            in zip(numbers, true.tolist(), predicted.tolist(), confidence, strict=True)]
        if numbers:
            images = torch.stack([comparison.images[n] for n in numbers]).to(loader.device)
            wrong = (net.logits.argmax(1) != target).sum().item()
            captions = zip(comparison.class_names(predicted), confidence, strict=True)
            sheets.append(net_figures.ContactSheet(
                f'{net.name}: {wrong:,} of {len(target):,} test images wrong; true class above, predicted below',
                loader.normalise.to_pixels(images).cpu().numpy(), numbers, comparison.class_names(true),
                [f'{name}, {share:.0%}' for name, share in captions]))
    return net_figures.mistakes(sheets), {'images': len(target), 'nets': rows}


DRAW = {'tsne': draw_tsne, 'correlations': draw_correlations, 'cka': draw_cka, 'gradcam': draw_grad_cam,
        'calibration': draw_calibration, 'confusion': draw_confusion, 'classes': draw_classes,
        'mistakes': draw_mistakes}
