"""The metrics of each class (helper.class_metrics.class_report): read, averaged over trials, and as text."""
import math
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from helper.errors import printable
from helper.files import read_json

FILE = 'test_best_classes.json'     # in the folder of a run
MEANS = {'macro_f1': 'macro F1', 'balanced_acc': 'balanced accuracy', 'ece': 'ECE'}     # key of a report -> its name
MOST_ROWS, WORST_ROWS = 30, 10      # a table shows at most MOST_ROWS classes; of more, the worst


def read_class_report(folder: Path, epoch) -> dict | None:
    """The report of each class in a run's folder, with printable names; None without one of this epoch.

    Raises UserError for a damaged file, ValueError or another exception for one with other content.
    """
    if not (folder / FILE).is_file():
        return None
    report = read_json(folder / FILE, f'{folder}: {FILE}')
    classes = [{'name': printable(row['name']), **{key: _percent(row[key]) for key in ('recall', 'precision', 'f1')},
                'images': int(row['images'])} for row in report['classes']]
    means = {key: _percent(report[key]) for key in MEANS}
    return {**means, 'images': int(report['images']), 'classes': classes} if report['epoch'] == epoch else None


def _percent(value):
    """The number, or None. Raises ValueError for another one than 0 to 100."""
    if value is not None and not 0 <= value <= 100 + 1e-9:
        raise ValueError(f'a figure of a class is {value}')
    return value


def mean_report(reports: Sequence[dict | None]) -> dict | None:
    """The mean of the reports of several trials: MEANS, and name, images and recall of each class.

    None unless all have a report of the same classes.
    """
    if not reports or None in reports:
        return None
    if len({tuple(row['name'] for row in report['classes']) for report in reports}) > 1:
        return None
    columns = zip(*(report['classes'] for report in reports), strict=True)
    classes = [{**rows[0], 'recall': None if None in (recalls := [row['recall'] for row in rows]) else mean(recalls)}
               for rows in columns]
    means = {key: None if None in (values := [report[key] for report in reports]) else mean(values) for key in MEANS}
    return {**means, 'classes': classes}


def worst_classes(classes: Sequence[dict], most: int = WORST_ROWS) -> list[dict]:
    """The classes with the lowest recall, without those that have no test images."""
    return sorted((row for row in classes if row['recall'] is not None), key=lambda row: row['recall'])[:most]


def shown_classes(classes: Sequence[dict]) -> Sequence[dict]:
    """The rows of a table: all classes in their order, or the worst if they are too many."""
    return classes if len(classes) <= MOST_ROWS else worst_classes(classes)


def two_digits(value: float | None) -> str:
    """'75.27'; '–' for None."""
    return '–' if value is None or math.isnan(value) else f'{value:.2f}'


def worst_text(classes: Sequence[dict], most: int = 3) -> str:
    """'cat: 62.00, dog: 70.10, deer: 71.00': the recall of the worst classes."""
    return ', '.join(f'{printable(row["name"])}: {two_digits(row["recall"])}' for row in worst_classes(classes, most))


def describe_report(report: dict) -> str:
    """The means and the worst classes of a report as a line."""
    classes = report['classes']
    empty = sum(row['recall'] is None for row in classes)
    return f'{", ".join(f"{name} {two_digits(report[key])}" for key, name in MEANS.items())}; worst classes: ' \
           f'{worst_text(classes)}' + (f'; left out: {empty} without test images' if empty else '')
