"""What papers have published (analysis/published.csv), and the figures that compare methods over pairs of nets."""
import csv
import functools
from pathlib import Path
from statistics import mean
from types import SimpleNamespace
from typing import NamedTuple

from distiller_zoo import get_method
from options import flags

HERE = Path(__file__).resolve().parent


class Published(NamedTuple):
    """A figure of analysis/published.csv."""

    top1: float                 # percent
    deviation: float | None     # standard deviation of the trials
    source: str
    epoch: str                  # 'best', 'last', or 'unknown' if the source does not say it

    def compares_with(self, epoch: str) -> bool:
        """Whether it may be compared with our accuracy of this epoch, 'best' or 'last'."""
        return self.epoch in (epoch, 'unknown')


@functools.cache
def published_figures(dataset: str, *preferred: str) -> dict[tuple, Published]:
    """(teacher or '', student, way or 'alone') -> the figure of the first of the preferred sources that has one; if no
    source is preferred, of all in the order of the file."""
    figures = {}
    for source in preferred or published_sources():
        for row in read_table('published.csv'):
            if (row['source'], row['dataset']) == (source, dataset):
                name = row['teacher'], row['student'], method_key(row['method'], options_of(row))
                figures.setdefault(name, Published(float(row['top1']), float(row['std']) if row['std'] else None,
                                                   source, row['epoch']))
    return figures


def method_key(method: str, options: dict) -> str:
    """The name of a method, or a sum of methods, with its options other than the default ones."""
    return ', '.join(['+'.join(sorted(method.split('+'))), *(f'{k} {options[k]}' for k in sorted(options))])


def options_of(row: dict) -> dict:
    """The options of a row of published.csv, 'name=value;name=value'."""
    return dict(text.split('=') for text in row['options'].split(';') if text)


def non_default_options(parameters: dict, options: dict) -> dict:
    """option -> value as text, for the options that distinguish a method's published figures; without the defaults."""
    method = parameters['distill']
    names = {name for row in read_table('published.csv') if row['method'] == method for name in options_of(row)}
    if not names:
        return {}
    usual = flags(student=True).defaults
    run = SimpleNamespace(**{**usual, **{name: options.get(name) for name in names}, 'dataset': parameters['dataset']})
    usual = {**usual, **get_method(method).published_options(run)}
    return {name: str(options.get(name)) for name in names if options.get(name) != usual[name]}


def published_sources() -> list[str]:
    """Whose figures there are, in the order of the file."""
    return list(dict.fromkeys(row['source'] for row in read_table('published.csv')))


@functools.cache
def read_table(table: str) -> list[dict]:
    """The rows of a CSV file beside this module."""
    with open(HERE / table, newline='') as file:
        return list(csv.DictReader(file))


class Improvement(NamedTuple):
    """The average relative improvement over a method."""

    percent: float | None               # None without pairs
    pairs: int                          # the number of pairs of nets in the mean
    left_out: list[tuple[str, str]]     # (teacher, student) whose method is not better than the student alone


def relative_improvement(top1: dict[tuple, float], ours: str) -> dict[str, Improvement]:
    """method -> the average relative improvement of the method `ours` over it.

    (ours - method) / (method - student alone), the mean over the pairs of nets for which `top1` has the three. A pair
    where the method is not better than the student alone has no such quotient: it divides by zero, or its sign turns.
    Chen et al., AAAI 2021, arXiv 2012.03236.
    """
    found = {}
    for (teacher, student, method), other in top1.items():
        own, alone = top1.get((teacher, student, ours)), top1.get(('', student, 'alone'))
        if method not in (ours, 'alone') and None not in (own, alone):
            ratios, left_out = found.setdefault(method, ([], []))
            if other > alone:
                ratios.append((own - other) / (other - alone) * 100)
            else:
                left_out.append((teacher, student))
    return {method: Improvement(mean(ratios) if ratios else None, len(ratios), left_out)
            for method, (ratios, left_out) in found.items()}


def published_improvement(ours: str, epoch: str) -> dict[str, str]:
    """method -> the published average relative improvement of the method `ours` over it, in percent.

    epoch: 'best' or 'last'; a figure of the other epoch is left out.
    """
    return {row['over']: row['ari'] for row in read_table('published_ari.csv')
            if row['of'] == ours and row['epoch'] in (epoch, 'unknown')}


def closed_gap(top1: dict[tuple, float], ours: str) -> tuple[float, int] | None:
    """(how much of the gap from students alone to their teachers `ours` closes, in percent, over how many pairs).

    The sum of all improvements over the sum of all gaps. The SemCKD paper does not define its figure for the teacher,
    68.34; this reading comes nearest: 68.47 from its rounded table.
    """
    pairs = [(own, top1.get(('', student, 'alone')), top1.get(('', teacher, 'alone')))
             for (teacher, student, method), own in top1.items() if method == ours]
    pairs = [pair for pair in pairs if None not in pair]
    gap = sum(teacher - alone for _, alone, teacher in pairs)
    return (sum(own - alone for own, alone, _ in pairs) / gap * 100, len(pairs)) if gap > 0 else None
