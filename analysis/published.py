"""Published accuracies (analysis/published.csv), and measures that compare methods over pairs of nets."""
import csv
import functools
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import NamedTuple

from distiller_zoo import get_method
from helper.cli import comma_list, has_auto
from options import flags

from .statistics import Mean


class Published(NamedTuple):
    """A row of analysis/published.csv."""

    top1: float                 # percent
    deviation: float | None     # standard deviation over the trials
    source: str
    epoch: str                  # 'best', 'last' or 'unknown'
    trials: int | None = None   # None if the source does not say how many

    def compares_with(self, epoch: str) -> bool:
        """Whether it is comparable with our accuracy of this epoch, 'best' or 'last'."""
        return self.epoch in (epoch, 'unknown')

    @property
    def average(self) -> Mean:
        """The figure as a mean; of an unknown number of trials, it counts as one."""
        return Mean(self.top1, self.deviation, self.trials or 1)


@functools.cache
def published_figures(dataset: str, *preferred: str) -> dict[tuple, Published]:
    """(teacher or '', student, method_key or 'alone') -> the figure of the first source that has one.

    preferred: the sources, in order; by default all, in the order of the file.
    """
    figures = {}
    for source in preferred or published_sources():
        for row in read_table('published.csv'):
            if (row['source'], row['dataset']) == (source, dataset):
                key = row['teacher'], row['student'], method_key(row['method'], parse_options(row))
                figures.setdefault(key, Published(float(row['top1']), float(row['std']) if row['std'] else None,
                                                  source, row['epoch'], int(row['trials']) if row['trials'] else None))
    return figures


def method_key(method: str, options: dict) -> str:
    """The name of a method, or of a sum of methods, followed by its non-default options."""
    return ', '.join(['+'.join(sorted(method.split('+'))), *(f'{k} {options[k]}' for k in sorted(options))])


def parse_options(row: dict) -> dict:
    """The options in a row of published.csv, 'name=value;name=value'."""
    return dict(text.split('=') for text in row['options'].split(';') if text)


def non_default_options(parameters: dict, options: dict) -> dict:
    """option -> value as text: the non-default options among those that published.csv lists for this method."""
    method = parameters['distill']
    names = {name for row in read_table('published.csv') if row['method'] == method for name in parse_options(row)}
    if has_auto(options.get('beta')):       # which no source has
        names.add('beta')
    if not names:
        return {}
    values, defaults = {name: options.get(name) for name in names}, flags(student=True).defaults
    run = SimpleNamespace(**{**defaults, **values, 'dataset': parameters['dataset']})
    defaults = {**defaults, **get_method(method).published_options(run)}
    return {name: comma_list(value) for name, value in values.items() if value != defaults[name]}


def published_sources() -> list[str]:
    """The sources of published.csv, in the order of the file."""
    return list(dict.fromkeys(row['source'] for row in read_table('published.csv')))


@functools.cache
def read_table(table: str) -> list[dict]:
    """The rows of a CSV file beside this module."""
    with open(Path(__file__).with_name(table), newline='') as file:
        return list(csv.DictReader(file))


class Improvement(NamedTuple):
    """The average relative improvement over a method."""

    percent: float | None               # None without pairs
    pairs: int                          # number of pairs of nets in the mean
    left_out: list[tuple[str, str]]     # (teacher, student) for which the method is not better than the student alone


def relative_improvement(top1: dict[tuple, float], ours: str) -> dict[str, Improvement]:
    """method -> the average relative improvement of the method `ours` over it.

    This is the mean of (ours - method) / (method - student alone) over the pairs of nets for which `top1` has all three
    accuracies. A pair is left out if the method is not better than the student alone: its quotient is undefined or has
    the wrong sign. Chen et al., AAAI 2021, arXiv:2012.03236.
    """
    results = {}
    for (teacher, student, method), other in top1.items():
        our, alone = top1.get((teacher, student, ours)), top1.get(('', student, 'alone'))
        if method not in (ours, 'alone') and None not in (our, alone):
            ratios, left_out = results.setdefault(method, ([], []))
            if other > alone:
                ratios.append((our - other) / (other - alone) * 100)
            else:
                left_out.append((teacher, student))
    return {method: Improvement(mean(ratios) if ratios else None, len(ratios), left_out)
            for method, (ratios, left_out) in results.items()}


def published_improvement(ours: str, epoch: str) -> dict[str, str]:
    """method -> the published average relative improvement of `ours` over it, in percent. epoch: best or last."""
    return {row['over']: row['ari'] for row in read_table('published_ari.csv')
            if row['of'] == ours and row['epoch'] in (epoch, 'unknown')}


def closed_gap(top1: dict[tuple, float], ours: str) -> tuple[float, int] | None:
    """(percent of the gap between students alone and their teachers that `ours` closes, number of pairs of nets).

    This is the sum of all improvements over the sum of all gaps. The SemCKD paper does not define its figure for the
    teacher, 68.34; this definition gives the nearest, 68.47 from its rounded table.
    """
    pairs = [(our, top1.get(('', student, 'alone')), top1.get(('', teacher, 'alone')))
             for (teacher, student, method), our in top1.items() if method == ours]
    pairs = [pair for pair in pairs if None not in pair]
    gap = sum(teacher - alone for _, alone, teacher in pairs)
    return (sum(our - alone for our, alone, _ in pairs) / gap * 100, len(pairs)) if gap > 0 else None
