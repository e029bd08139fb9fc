"""The search spaces of scripts/spaces/: all their trials can be planned, and their ranges hold published values."""
import os

import pytest
from conftest import write_images

from distiller_zoo import distiller_dict, get_method
from experiments.search import Search
from experiments.table_file import ALONE, SPACES, TABLES, Pair, read_table
from options import student_options

pytest.importorskip('optuna')
pytest.importorskip('timm')


@pytest.mark.parametrize('name', [file.stem for file in SPACES.glob('*.toml')])
def test_the_spaces(tmp_path, monkeypatch, name):
    """All ranges can be planned, and so can the first trial of each row, which has published values."""
    monkeypatch.setattr(os, 'fsync', lambda handle: None)
    for split in ('train', 'val', 'test'):
        write_images(tmp_path / split, 1)
    table, arguments = read_table(SPACES / f'{name}.toml', has_ranges=True), []
    if name == 'own_data':      # smaller nets of the same families
        arguments = ['--data_dir', str(tmp_path), '--image_size', '32']
        table.pairs = [Pair('timm:convnext_atto', 'timm:mobilenetv3_small_050')]
    search = Search(table, tmp_path, arguments, 1, True)
    search.check_ranges()
    search.logs.mkdir()
    search.open()
    runs = [*iter(search.next_run, None)]
    for run in runs:
        cell, _, lock = search.claims[run]
        lock.release()
        for key, value in cell.published[0].items():
            part = next(part for part in cell.row.ranges if part.name == key)
            assert key == 'distill' or part.find(getattr(run.opt, key)) == value
        assert cell.published[0].keys() == cell.trials()[0].params.keys()
    assert len(runs) == len(search.cells)


def test_the_space_of_all_weights():
    """Every method has one weight, whose range spans two decades on either side of the published value."""
    learning = {name for name, method in distiller_dict.items() if method.spec.learns_classes}
    rows = read_table(SPACES / 'weights.toml', has_ranges=True).rows
    labels = {row.method: row.label for row in read_table(TABLES / 'cifar10_small.toml').rows}
    assert {row.method: row.label for row in rows} == labels and labels.keys() == {ALONE, *learning}
    for row in rows:
        if row.method != ALONE:
            weight, = row.ranges
            opt = student_options(['--path-t', 'x', '--distill', row.method, '--dataset', 'folder'])
            published = get_method(row.method).published_options(opt)[weight.name]
            ends = [published / 100, published * 100]
            assert [weight.low, weight.high] == pytest.approx(ends) and weight.is_log, row.label
