"""The report of a table: its figures and its conclusion follow from the runs' files and the published figures."""
import base64
import csv
import functools
import json
import os
import re
import shlex
import shutil
import subprocess
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from random import Random
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
from conftest import ROOT, rows_of_table

from analysis.published import Published
from analysis.statistics import Difference, Mean, beyond_by_chance, difference, sampling_sigma, signed, weighted_sum
from distiller_zoo import get_method
from experiments import report_charts
from experiments.conclusion import Conclusion, conclude
from experiments.folder_check import note_owner
from experiments.progress import DONE, FAILED, LEFT, Progress
from experiments.report import render
from experiments.report_text import as_csv, compression, figure, latex, markdown, millions, notes, plain
from experiments.results import (
    Cell,
    TableResults,
    Trial,
    count_parameters,
    epoch_of_published,
    published_for,
)
from experiments.table_file import TABLES, Pair, Row, Table, read_table
from helper.cli import values
from helper.files import read_json
from helper.run_folder import RunPaths
from options import student_options, teacher_options
from scripts import report, reproduce

TABLE = 'semckd_cifar100'
ROWS = {'Student': 'alone', 'KD': 'kd', 'FitNet': 'hint', 'AT': 'attention', 'SP': 'similarity', 'VID': 'vid',
        'HKD': 'hkd', 'SemCKD': 'semckd'}
EPOCHS = 3


def classes_of(top1: float) -> dict:
    """The figures of 40 classes: of the first three top1 - 3, - 2 and - 1 are found."""
    rows = [{'name': name, 'images': 5, 'recall': top1 + min(n - 3, 0), 'precision': None, 'f1': 50.0}
            for n, name in enumerate(['<b>cat</b>', 'dog | x', *(f'class {n}' for n in range(38))])]
    return {'epoch': 2, 'images': 200, 'macro_f1': top1 / 2, 'balanced_acc': top1, 'ece': 5.0, 'classes': rows}


def write_run(argv: list[str], pair: str, top1: float, last: float) -> None:
    """The files of a finished run, as the command `words` would leave them, with these accuracies."""
    student = Path(argv[0]).stem == 'train_student'
    opt = (student_options if student else teacher_options)(argv[1:])
    if student:
        opt.model_t = 'resnet8x4_double' if get_method(opt.distill).spec.auxiliary_teacher else pair.split()[0]
    paths = (RunPaths.of_student if student else RunPaths.of_teacher)(opt)
    folder = paths.folder
    folder.mkdir(parents=True)
    content = {**values(opt), 'Total params': 1.25 if pair else 5.0, 'Total time': 0.5 if student else 1800,
               'processes': 1, 'machine': 'a <fast> machine', 'versions': 'torch 9',
               'command': shlex.join(['python', *argv])}
    picture = {'attention': [[0.25, 0.75], [1.0, 0.0]]} if getattr(opt, 'distill', '') == 'semckd' else {}
    curve = [top1 - 1, top1, last]
    history = [{'epoch': epoch, 'test_acc': accuracy, 'seconds': 600.0, 'train': {'images_per_second': 1000.0},
                **picture} for epoch, accuracy in enumerate(curve, 1)]
    for name, values_of in (('parameters', content), ('history', history),
                          ('test_best_metrics', {'test_acc': top1, 'test_acc_top5': 90.0, 'epoch': 2}),
                          *([('test_best_classes', classes_of(top1))] if pair == 'vgg13 -> ShuffleV2' else [])):
        (folder / f'{name}.json').write_text(json.dumps(values_of))
    paths.best.touch()


@pytest.fixture(scope='module')
def table(tmp_path_factory, call):
    """(the folder from which the table ran, {(row, pair): [(top-1, last) of each trial]}, the teachers' accuracies)."""
    folder = tmp_path_factory.mktemp('table')
    draw, figures, teachers, comment = Random(7), {}, {}, ''
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        lines = []
        patch.setattr('builtins.print', lambda text='', **_: lines.extend(text.splitlines()))
        call(reproduce.main, TABLE, '--dry-run', '--epochs', EPOCHS)
        for line in lines:
            if line.startswith('# '):
                comment = line[2:]
            elif line:
                argv = shlex.split(line, comments=True)[2:]
                pair, _, row = comment.partition(', ')
                top1 = round(draw.uniform(60, 80), 2)
                last = round(top1 - draw.uniform(0, 1), 2)
                if comment.startswith('teacher '):
                    teachers[comment.split()[1]] = top1
                    write_run(argv, '', top1, last)
                elif comment.startswith('auxiliary '):
                    write_run(argv, comment.rpartition(' ')[2], top1, last)
                elif 'the same run as above' in line:
                    same = next(key for key in figures if key[0] == row and key[1].split()[2] == pair.split()[2])
                    figures[row, pair] = figures[same]
                else:
                    figures.setdefault((row, pair), []).append((top1, last))
                    write_run(argv, pair, top1, last)
    return folder, figures, teachers


@pytest.fixture(scope='module')
def texts(table, call):
    """kind of file -> the report of the whole table."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(table[0])
        call(report.main, TABLE, '--epochs', EPOCHS)
    return {file.suffix[1:]: file.read_text() for file in (table[0] / 'save' / TABLE).glob('report.*')}


@functools.cache
def published():
    """{(teacher, student, method): (top-1, deviation)} of the paper."""
    with open(ROOT / 'analysis' / 'published.csv', newline='') as file:
        return {(row['teacher'], row['student'], row['method']): (float(row['top1']), float(row['std']))
                for row in csv.DictReader(file) if (row['source'], row['dataset']) == ('SemCKD', 'cifar100')}


def expected(figures, row, pair, epoch='best'):
    """What the report should say of a cell."""
    best, last = zip(*figures[row, pair], strict=True)
    teacher, _, student = pair.split()
    theirs, their_deviation = published()['' if row == 'Student' else teacher, student, ROWS[row]]
    ours = {'best': best, 'last': last}[epoch]
    sigma = ((stdev(ours) ** 2 + their_deviation ** 2) / 4) ** 0.5      # of the means of 4 trials
    return {'best': mean(best), 'best_std': stdev(best), 'last': mean(last), 'last_std': stdev(last),
            'published': theirs, 'published_std': their_deviation, 'difference': mean(ours) - theirs,
            'sigma': sigma}


def improvement(figures, epoch='best'):
    """{row: (SemCKD's average relative improvement over it in percent or None, the pairs that do not count)}."""
    top1 = {key: mean(trial[epoch == 'last'] for trial in trials) for key, trials in figures.items()}
    pairs, found = list(dict.fromkeys(pair for _, pair in figures)), {}
    for row in ROWS:
        if row not in ('Student', 'SemCKD'):
            better = [pair for pair in pairs if top1[row, pair] > top1['Student', pair]]
            ratios = [(top1['SemCKD', pair] - top1[row, pair]) / (top1[row, pair] - top1['Student', pair]) * 100
                      for pair in better]
            found[row] = mean(ratios) if ratios else None, [pair for pair in pairs if pair not in better]
    return found


def gain_over(figures, row, over, pairs, epoch):
    """The mean over the pairs of row minus `over`, and its sigma. A student alone that two pairs share is one mean."""
    terms = {}
    for pair in pairs:
        for sign, label in ((1, row), (-1, over)):
            of, student = expected(figures, label, pair), pair.split()[2]
            key = label, student if label == 'Student' else pair
            weight, *_ = terms.get(key, (0,))
            terms[key] = weight + sign / len(pairs), of[epoch], of[f'{epoch}_std']
    return (sum(weight * value for weight, value, _ in terms.values()),
            sum((weight * deviation) ** 2 / 4 for weight, _, deviation in terms.values()) ** 0.5)


def change(value, sigma):
    """The texts of a difference in the page."""
    clear = abs(value) > 2 * sigma
    return [*(['▲' if value > 0 else '▼'] if clear else []), signed(value, 2), *(['(more than 2 σ)'] if clear else [])]


def highest(figures, pair, epoch):
    """The row whose mean is higher than all others', as it is shown."""
    first, second = sorted(ROWS, key=lambda row: -expected(figures, row, pair)[epoch])[:2]
    shown = [f'{expected(figures, row, pair)[epoch]:.2f}' for row in (first, second)]
    return first if shown[0] != shown[1] else None


def test_csv(table, texts):
    _, figures, _ = table
    lines = list(csv.DictReader(texts['csv'].splitlines()))
    assert [(line['row'], f'{line["teacher"]} -> {line["student"]}') for line in lines] == [*figures]
    assert len(lines) == 56
    for line in lines:
        assert (line['method'], line['trials'], line['source']) == (ROWS[line['row']], '4', 'SemCKD')
        found = expected(figures, line['row'], f'{line["teacher"]} -> {line["student"]}')
        assert {key: float(line[key]) for key in found} == pytest.approx(found, rel=1e-12)


def page_cell(page, row, pair):
    """The HTML of a cell of the table of accuracies."""
    place = list(ROWS).index(row) * 7 + list(dict.fromkeys(str(pair) for pair in read_table(
        ROOT / 'scripts' / 'tables' / f'{TABLE}.toml').pairs)).index(pair)
    return re.search(rf'<button data-dialog="cell-{place}">(.*?)</button>', page, re.S)[1]


def test_page(table, texts):
    _, figures, teachers = table
    pairs = list(dict.fromkeys(pair for _, pair in figures))
    gains = {epoch: improvement(figures, epoch) for epoch in ('best', 'last')}
    with open(ROOT / 'analysis' / 'published_ari.csv', newline='') as file:
        published_gains = {row['over']: float(row['ari']) for row in csv.DictReader(file) if row['of'] == 'semckd'}
    head, *rows = rows_of_table(texts['html'], '<table id="accuracy"')
    assert [texts for _, texts in head] == [['method'], *([pair.split()[0], f'→ {pair.split()[2]}'] for pair in pairs),
                                            ['SemCKD', 'ARI %'], ['gain', 'over KD']]
    rows, foot = rows[:8], rows[8:]
    assert [cells[0][1] for cells in rows] == [[row] for row in ROWS]
    for row, (_, *cells, ari, gain) in zip(ROWS, rows, strict=True):
        for pair, (attributes, said) in zip(pairs, cells, strict=True):
            found = expected(figures, row, pair)
            assert float(attributes['data-best']) == pytest.approx(found['best'], rel=1e-12)
            assert float(attributes['data-last']) == pytest.approx(found['last'], rel=1e-12)
            compared = []
            for epoch in ('best', 'last'):
                of = expected(figures, row, pair, epoch)
                compared += change(of['difference'], of['sigma'])
                compared += [text for over in ('Student', 'KD') if over != row
                             for text in change(*gain_over(figures, row, over, [pair], epoch))]
            assert said == [f'{found["best"]:.2f}', f'{found["last"]:.2f}', *compared]
            marked = re.findall('class="of-(best|last)"><b>', page_cell(texts['html'], row, pair))
            assert marked == [epoch for epoch in ('best', 'last') if row == highest(figures, pair, epoch)]
        if row in gains['best']:
            values = [gains[epoch][row][0] for epoch in ('best', 'last')]
            assert [float(ari[0][f'data-{epoch}'] or 'nan') for epoch in ('best', 'last')] == pytest.approx(
                [float('nan') if value is None else value for value in values], rel=1e-9, nan_ok=True)
            theirs = f'{published_gains[ROWS[row]]:.2f}'
            assert ari[1] == sum([['–' if value is None else f'{value:.2f}', theirs] for value in values], [])
        else:
            assert ari == ({'data-best': '', 'data-last': ''}, [])
        assert gain[1] == ([] if row == 'KD' else [text for epoch in ('best', 'last') for text in change(
            *gain_over(figures, row, 'KD', pairs, epoch))])
    assert [cells[0][1] for cells in foot] == [['Teacher'], ['Parameters'], ['Compression']]
    assert [texts[0] for _, texts in foot[0][1:8]] == [f'{teachers[pair.split()[0]]:.2f}' for pair in pairs]
    assert [texts for _, texts in foot[1][1:8]] == [['1.25 M', 'of 5.00 M']] * 7
    assert [texts for _, texts in foot[2][1:8]] == [['4.0×']] * 7
    said = re.findall('<p class="soft of-(best|last)">(.*?)</p>', texts['html'])
    assert [note for _, note in said if 'Published' in note] == [
        'Published figures of an epoch that the source does not name: SemCKD.'] * 2
    assert [(epoch, *re.search('over (.*?) leaves out (.*?):', note).groups()) for epoch, note in said if 'ARI' in note
            ] == [(epoch, row, ', '.join(left_out).replace('>', '&gt;')) for epoch in ('best', 'last')
                  for row, (_, left_out) in gains[epoch].items() if left_out]
    assert '<body data-against="paper">' in texts['html']
    assert '<input type="radio" name="epoch" value="best" checked>' in texts['html']
    assert 'semckd_cifar100: 222 done, 0 running, 0 failed, 0 left. Written ' in texts['html']
    assert 'a &lt;fast&gt; machine; torch 9' in texts['html'] and '<fast>' not in texts['html']
    assert 'Failed and missing' not in texts['html']


def test_conclusion_of_the_table(table, texts):
    """Every form of the report begins with the same line, whose numbers are those of the runs."""
    _, figures, _ = table
    pairs = list(dict.fromkeys(pair for _, pair in figures))
    wins = {row: sum(highest(figures, pair, 'best') == row for pair in pairs) for row in ROWS}
    line = texts['md'].splitlines()[2]
    leaders = [row for row in ROWS if wins[row] == max(wins.values())]
    assert line.startswith(', '.join(leaders)) and f' best in {max(wins.values())} of 7 pairs' in line
    cells = [expected(figures, *key) for key in figures]
    within = sum(abs(cell['difference']) <= 2 * cell['sigma'] for cell in cells)
    assert f' {within} of 56 cells (about 51 if all are equal) are within 2 σ of the published figures (SemCKD)' in line
    assert line.endswith('. cifar100, 3 epochs, 4 trials, 111.0 h of training.')     # 222 runs of 30 minutes
    assert texts['tex'].splitlines()[0] == f'% {line}'
    first = re.search('<ul class="conclusion">(.*?)</ul>', texts['html'], re.S)[1]
    assert re.findall('<li>(.*?)[.]</li>', first) == line.partition('. cifar100')[0].split('; ')
    ranking = re.search('<table id="ranking".*?</table>', texts['html'], re.S)[0]
    over_alone = {row: gain_over(figures, row, 'Student', pairs, 'best')[0] for row in ROWS if row != 'Student'}
    assert re.findall('<th scope="row" data-value=".">(.*?)</th>', ranking) == [
        *sorted(over_alone, key=lambda row: -over_alone[row]), 'Student']


def test_page_for_screen_readers(texts):
    """No double ids; tables with captions and heads of rows and columns; charts with labels and readable text."""
    page = texts['html']
    ids = re.findall(r'\sid="([^"]*)"', page)
    assert len(ids) == len({*ids}) > 56
    for content in re.findall('<table.*?</table>', page, re.S):
        assert '<caption' in content and '<th>' not in content and content.count('<th scope="row"') > 0
    charts = re.findall('<svg[^>]*>', page)
    assert len(charts) == 14 and all(re.search('role="img" aria-label="[^"]+"', chart) for chart in charts)
    assert {float(size) for size in re.findall(r'font(?:-size)?: ([\d.]+)px', ''.join(
        re.findall('<svg.*?</svg>', page, re.S)))} == {11.0}
    for tag in ('role="region" tabindex="0"', '<fieldset'):
        assert page.count(tag) > 2
    assert page.count('<fieldset>') == page.count('<legend>') and page.count('class="copy"') == 56 * 4


def test_page_needs_nothing_from_outside(texts):
    """No address in it but those of the report's other files, the runs' folders and their logs."""
    page = texts['html']
    addresses = set(re.findall(r'(?:href|src)="([^"]*)"', page))
    assert {'report.md', 'report.csv', 'report.tex', 'data:,'} < addresses
    others = addresses - {'report.md', 'report.csv', 'report.tex', 'data:,'}
    assert all(re.match('(models|student_model|logs)/|#', address) for address in others)
    assert not re.search(r'@import|url\((?!#)|<link (?!rel="icon")', page)


def test_curves_and_what_was_learnt(table, texts):
    """A chart of each pair, with a line of each row, and of SemCKD's attention, as SVG that XML can read."""
    _, figures, _ = table
    page = texts['html']
    charts = dict(re.findall(r'<figure[^>]*><figcaption>(.*?)</figcaption>\s*<div[^>]*>(<svg.*?</svg>)', page, re.S))
    pairs = {pair.replace('>', '&gt;') for _, pair in figures}
    assert {*charts} == pairs | {f'Attention of SemCKD, {pair}' for pair in pairs}
    for title, chart in charts.items():
        rows = [row for element in ElementTree.fromstring(chart).iter() if (row := element.get('data-row'))]
        lines = [*map(str, range(8))] * 2 + ['7']     # in all epochs, in the last ones, and the range of the headline
        assert sorted(rows) == ([] if title.startswith('Attention') else sorted(lines))


def test_a_single_epoch_is_seen():
    """A line of one point needs a marker, and its axis one whole number."""
    found = found_of({'Student': [70.0], 'KD': [73.0]})
    for cell in found.cells.values():
        cell.results[0].update(curve=[cell.results[0]['top1']], pictures={'attention': [[0.5, 0.5]]},
                            pictures_by_epoch=[{'attention': [[0.5, 0.5]]}])
    curves = report_charts.curves([*enumerate(found.cells.values())], 'KD')
    for axis in (*curves.axes, report_charts.learnt('attention', found.cells['KD', 'a -> b']).axes[0]):
        assert [line.get_marker() for line in axis.lines] == ['o', 'o']
        assert [tick for tick in axis.get_xticks() if 0.9 < tick < 1.1] == [1]


def test_charts_show_what_separates_methods():
    """The second chart begins after the last decay; a diverged net does not stretch an axis."""
    found = found_of({'Student': [70.0], 'KD': [73.0]})
    for cell in found.cells.values():
        cell.trials[0].run.opt = SimpleNamespace(epochs=10, sched='step', lr_decay_epochs=[4, 7, 20])
        cell.results[0]['curve'] = [*range(1, 11)]
    whole, zoom = report_charts.curves([*enumerate(found.cells.values())], 'KD').axes
    assert [len(line.get_xdata()) for line in (*whole.lines, *zoom.lines)] == [10, 10, 3, 3]
    assert [*zoom.lines[0].get_xdata()] == [8, 9, 10] and zoom.lines[1].get_color() == report_charts.HEADLINE
    found.cells['KD', 'a -> b'].trials[0].run.opt.sched = 'cosine'
    assert report_charts.last_epochs([*found.cells.values()]) == 3      # a quarter of 10
    axis = report_charts.DotAxis([70.0, 71.0, 72.0, 73.0, 10.0])
    assert 50 < axis.low <= 70 and axis.place(10.0) == 0 and not axis.is_inside(10.0) and axis.is_inside(73.0)
    assert report_charts.DotAxis([70.0, 71.0, 72.0], with_zero=True).low <= 0


def test_dialogs_and_costs(table, texts):
    folder, figures, _ = table
    page = texts['html']
    dialogs = re.findall(r'<dialog id="(.*?)" aria-label="(.*?)">(.*?)</dialog>', page, re.S)
    assert [name for name, *_ in dialogs] == [f'cell-{i}' for i in range(56)] == sorted(
        re.findall(r'data-dialog="(.*?)"', page), key=lambda name: int(name[5:]))
    by_title = {title.replace('&gt;', '>'): content for _, title, content in dialogs}
    assert {*by_title} == {f'{row}, {pair}' for row, pair in figures}
    for (row, pair), trials in figures.items():
        content = by_title[f'{row}, {pair}']
        for trial, (top1, last) in enumerate(trials, 1):
            assert f'<h4>trial {trial}, seed {trial}</h4>\n<p>best epoch {top1:.2f}, last {last:.2f}, 30.0 minutes, ' \
                   f'1,250,000 parameters' in content
        best = expected(figures, row, pair)
        assert f'best epoch: {best["best"]:.2f} ± {best["best_std"]:.2f} %; published: {best["published"]:.2f} ± ' \
               f'{best["published_std"]:.2f} %, difference {signed(best["difference"], 2)}, ' in content
        commands = [shlex.split(command) for command in re.findall('<pre>(.*?)</pre>', content)]
        assert [argv[argv.index('--trial') + 1].split('_')[0] for argv in commands] == ['1', '2', '3', '4']
        assert {argv[argv.index('--distill') + 1] if '--distill' in argv else 'alone' for argv in commands} == {
            ROWS[row]}
        assert content.count('>folder</a>') == 4
    # A student alone that two pairs share is one run.
    costs = re.search(r'<table id="cost">.*?</table>', page, re.S)[0]
    rows = re.findall(r'<th scope="row" data-value="\d">(\w+)</th><td data-value="(\d+)">\d+</td>\s*'
                      r'<td data-value="30.0">30.0</td><td data-value="1000.0">1000</td>\s*'
                      r'<td data-value="([\d.]+)">', costs)
    assert rows == [('Student', '20', '10.0'), *((row, '28', '14.0') for row in ROWS if row != 'Student')]


def test_classes(table, texts):
    """Means of the trials for the pair that has them, and the ten worst of 40 classes; names are escaped."""
    _, figures, _ = table
    top1 = {row: mean(best for best, _ in figures[row, 'vgg13 -> ShuffleV2']) for row in ROWS}
    section = texts['md'].partition('## Classes\n')[2].splitlines()
    assert section[3] == '| nets | method | macro F1 | balanced accuracy | ECE | accuracy of the worst classes |'
    rows = [f'| vgg13 → ShuffleV2 | {row} | {top1[row] / 2:.2f} | {top1[row]:.2f} | 5.00 | &lt;b&gt;cat&lt;/b&gt;: '
            f'{top1[row] - 3:.2f}, dog \\| x: {top1[row] - 2:.2f}, class 0: {top1[row] - 1:.2f} |' for row in ROWS]
    assert section[5:13] == rows and len(section) == 14     # the student alone belongs to another pair too
    page = texts['html'].partition('<h3>vgg13 -&gt; ShuffleV2</h3>')[2].partition('<h3>')[0]
    assert '<b>' not in page and page.count('<tr data-row') == 8
    assert 'accuracy of each class: the 10 worst of 40' in page and page.count('<td>5</td>') == 10        # test images
    assert '<th scope="row">&lt;b&gt;cat&lt;/b&gt;</th><td>5</td>' + ''.join(f'<td>{value - 3:.2f}</td>'
                                                                  for value in top1.values()) in page


def test_markdown(table, texts):
    _, figures, teachers = table
    pairs, gains = list(dict.fromkeys(pair for _, pair in figures)), improvement(figures)
    lines = texts['md'].splitlines()
    assert lines[0] == "# SemCKD's table, CIFAR-100"
    lines = lines[lines.index('|---' * 9 + '|') - 5:]
    assert lines[4:6] == ['|  | ' + ' | '.join(pair.replace('->', '→') for pair in pairs) + ' | SemCKD ARI |',
                          '|---' * 9 + '|']
    for line, row in zip(lines[6:14], ROWS, strict=True):
        cells = [expected(figures, row, pair) for pair in pairs]
        said = [f'{c["best"]:.2f} ± {c["best_std"]:.2f} ({c["published"]:.2f} ± {c["published_std"]:.2f})'
                for c in cells]
        gain = line.split(' | ')[-1]
        assert line == f'| {row} | ' + ' | '.join(said) + f' | {gain}'
        percent = gains.get(row, (None,))[0]
        assert gain.startswith(('–' if percent is None else f'{percent:.2f}%') + ' (' if row in gains else ' |')
    assert lines[14] == '| Teacher | ' + ' | '.join(f'{teachers[pair.split()[0]]:.2f}' for pair in pairs) + ' |  |'


def test_latex(table, texts):
    _, figures, teachers = table
    pairs = list(dict.fromkeys(pair for _, pair in figures))
    lines = texts['tex'].partition('% needs')
    lines = (lines[1] + lines[2]).splitlines()
    assert lines[:3] == [r'% needs \usepackage{booktabs}; test top-1 in percent of the best epoch, which is chosen on '
                         'the test set', r'\begin{tabular}{lccccccc}', r'\toprule']
    assert lines[3] == 'Teacher & ' + ' & '.join(pair.split()[0].replace('_', r'\_') for pair in pairs) + r' \\'
    for line, row in zip(lines[6:14], ROWS, strict=True):
        cells = []
        for pair in pairs:
            found = expected(figures, row, pair)
            text = f'{found["best"]:.2f} $\\pm$ {found["best_std"]:.2f}'
            cells.append(rf'\textbf{{{text}}}' if row == highest(figures, pair, 'best') else text)
        assert line == ' & '.join([row, *cells]) + r' \\'
    assert lines[14:] == [r'\midrule', 'Teacher & ' + ' & '.join(f'{teachers[pair.split()[0]]:.2f}' for pair in pairs)
                          + r' \\', r'\bottomrule', r'\end{tabular}']


def test_a_part_of_a_table(table, tmp_path, monkeypatch, call):
    """Trials that are missing or failed are said and not counted; a cell without any has no figure."""
    shutil.copytree(table[0], tmp_path / 'copy')
    monkeypatch.chdir(tmp_path / 'copy')
    figures, save = table[1], Path('save', TABLE)
    name = 'S:vgg8_T:resnet32x4_cifar100_{}_r:1.0_a:1.0_b:{}_{}'
    runs = save / 'student_model'
    shutil.rmtree(runs / name.format('kd', '0.0', 2))
    (runs / name.format('kd', '0.0', 3) / 'history.json').write_text('[{"seconds": 600.0}, {"sec')
    for trial in (1, 2, 3, 4):
        shutil.rmtree(runs / name.format('hint', '100.0', trial))
        shutil.rmtree(runs / name.format('similarity', '3000.0', trial)) if trial > 1 else None
    (runs / name.format('vid', '1.0', 1) / 'parameters.json').unlink()
    (save / 'logs').mkdir()
    monkeypatch.setattr('experiments.report.page_svg', lambda *_: '')     # test_page reads the charts
    call(report.main, TABLE, '--epochs', EPOCHS)
    lines = {(line['row'], f'{line["teacher"]} -> {line["student"]}'): line
             for line in csv.DictReader((save / 'report.csv').read_text().splitlines())}
    pair = 'resnet32x4 -> vgg8'
    kd, hint, sp, vid = (lines[row, pair] for row in ('KD', 'FitNet', 'SP', 'VID'))
    best = [figures['KD', pair][i][0] for i in (0, 3)]
    assert (kd['trials'], float(kd['best']), float(kd['best_std'])) == ('2', mean(best), stdev(best))
    assert [hint[key] for key in ('trials', 'best', 'best_std', 'last', 'difference', 'sigma')] == [
        '0', '', '', '', '', ''] and hint['published'] == '72.91'
    only, (theirs, deviation) = figures['SP', pair][0][0], published()['resnet32x4', 'vgg8', 'similarity']
    assert (sp['trials'], float(sp['best']), sp['best_std']) == ('1', only, '')
    assert float(sp['sigma']) == pytest.approx(deviation * (1 + 1 / 4) ** 0.5)      # of one trial and of four
    assert float(sp['difference']) == pytest.approx(only - theirs)
    assert vid['trials'] == '3' and all(line['trials'] == '4' for (row, where), line in lines.items()
                                        if where != pair or row in ('Student', 'AT', 'HKD', 'SemCKD'))
    page, text = (save / 'report.html').read_text(), (save / 'report.md').read_text()
    assert 'semckd_cifar100: 212 done, 0 running, 0 failed, 10 left. Written' in page
    assert page.count('>2 of 4 trials</small>') == page.count('>3 of 4 trials</small>') == 1
    assert page.count('Of 222 runs 0 failed and 10 are not finished; all figures are of the finished ones.') == 2
    for missing in ('KD-2: left, 0% done', 'KD-3: left, 0% done', 'FitNet-1: left, 0% done', 'VID-1: left, 100% done'):
        assert f'<li>resnet32x4-vgg8-{missing}' in page
    assert page.count('<li>resnet32x4-vgg8-') == 10
    assert f'{mean(best):.2f} ± {stdev(best):.2f}, 2 of 4 (72.73 ± 0.15)' in text and '|  (72.91 ± 0.18) |' not in text
    # The pair without FitNet does not count in what SemCKD gains over it.
    others = {key: trials for key, trials in figures.items() if key[1] != pair}
    gain, _ = improvement(others)['FitNet']
    assert re.search(rf'\| FitNet \|.*\| {re.escape(f"{gain:.2f}%")} \(71.92%\) \|', text)
    assert rf'{mean(best):.2f} $\pm$ {stdev(best):.2f}, 2 of 4 &' in (save / 'report.tex').read_text()


def test_nothing_yet(tmp_path, monkeypatch, call, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(report.main, TABLE)
    assert caught.value.code == 2
    assert capsys.readouterr().err == (f'error: --save_dir save/{TABLE}: no such folder; scripts/reproduce.py {TABLE} '
                                       f'makes it\n')
    Path('here').mkdir()
    call(report.main, 'digits', '--save_dir', 'here')
    assert capsys.readouterr().out.endswith('report: here/report.html\n')
    assert sorted(file.name for file in Path('here').iterdir()) == ['report.csv', 'report.html', 'report.md',
                                                                   'report.tex']
    assert 'digits: 0 done, 0 running, 0 failed, 43 left. Written' in Path('here/report.html').read_text()
    assert '| KD |  |  |\n' in Path('here/report.md').read_text()
    # The folder of the runs says which table it is, by a note in it or by its name; another one, what would work.
    shutil.copytree('here', 'save/digits')
    call(report.main, 'save/digits', '--epoch', 'last')
    assert capsys.readouterr().out.endswith('report: save/digits/report.html\n')
    assert 'of the last epoch' in Path('save/digits/report.md').read_text()
    assert '<body class="last" data-against="kd">' in Path('save/digits/report.html').read_text()
    Path('here/table.json').write_text('{"table": "digits"}')
    call(report.main, 'here')
    assert capsys.readouterr().out.endswith('report: here/report.html\n')
    Path('mine.toml').write_bytes((TABLES / 'digits.toml').read_bytes())
    note_owner(read_table(Path('mine.toml')), Path('here'), [])
    call(report.main, 'here')
    assert capsys.readouterr().out.endswith('report: here/report.html\n')
    assert read_json(Path('here/table.json'), '') == {'table': 'mine', 'file': os.path.abspath('mine.toml'),
                                                       'flags': []}
    Path('here/table.json').unlink()
    Path('run').mkdir()
    Path('run/history.json').touch()
    for arguments, argv in (
            (['here'], 'TABLE here: no such table'), (['run'], 'TABLE run: is the folder of a run'),
            (['save/digits', '--save_dir', 'here'],
             'TABLE save/digits: is a folder, and so is --save_dir here; give one of the two')):
        with pytest.raises(SystemExit):
            call(report.main, *arguments)
        assert capsys.readouterr().err.startswith(f'error: {argv}')
    # A figure that cannot be read is left out.
    Path('here/figures/folder.svg').mkdir(parents=True)
    Path('here/figures/dangling.svg').symlink_to('nowhere')
    Path('here/figures/whole.svg').write_text('<svg/>')
    call(report.main, 'digits', '--save_dir', 'here')
    assert re.findall('<figcaption>(.*?)</figcaption>', Path('here/report.html').read_text()) == ['whole']


def run_of(top1, last=None):
    return {'top1': top1, 'last': top1 if last is None else last, 'one_class': {'best': False, 'last': top1 == 10.0},
            'properties': {}, 'chosen_on': 'test', 'class_report': None, 'dataset': 'digits', 'seconds': 1800.0}


def trial_of(name, result, state=DONE, **record):
    """A trial of a student with this result; record: of how it ran."""
    run = SimpleNamespace(name=name, short_label=name, cells=[name], opt=SimpleNamespace(
        epochs=1, dataset='digits', sched='step', lr_decay_epochs=[150]))
    return Trial(run, Progress(state, 1.0, 1800.0), SimpleNamespace(read=lambda: record), result)


def found_of(accuracies: dict, **settings) -> TableResults:
    """What a table of one pair has found. accuracies: row -> top-1 of its trials; 'Student' is alone."""
    pair = Pair('a', 'b')
    rows = [Row(label, 'alone' if label.startswith('Student') else 'kd') for label in accuracies]
    table = Table(Path('x.toml'), 'A | B <i>', [pair], rows, [1], **settings)
    trials = {label: [trial_of(label, run_of(top1)) for top1 in values]
              for label, values in accuracies.items()}
    return TableResults(table, {(row.label, 'a -> b'): Cell(row, pair, trials[row.label], None) for row in rows}, [])


def test_improvement():
    found = found_of({'Student': [70.0, 72.0], 'Student long': [75.0], 'KD': [73.0], 'Same': [71.0], 'Ours': [75.0]})
    # Over the first row alone. What is not better than it has no figure, and a note.
    assert found.improvement('best') == {'KD': ((100.0, 1, []), None), 'Same': ((None, 0, [('a', 'b')]), None)}
    assert notes(found, 'best') == ['Ours ARI over Same leaves out a -> b: Same is not better there than the student '
                                    'alone.']
    assert '| Same | 71.00 | – |\n' in markdown(found) and 'a → b: Same is not better' in markdown(found)
    for accuracies in ({'Student': [70.0]}, {'KD': [70.0]}, {'Student': [70.0], 'KD': [73.0], 'Ours': []}):
        assert found_of(accuracies).improvement('best') == {}


def test_trials_of_other_data():
    """They are not averaged, and are named."""
    found = found_of({'Student': [70.0, 71.0], 'KD': [73.0, 74.0]})
    for place, run in enumerate(run for cell in found.cells.values() for run in cell.results):
        run['properties'] = {'classes': 4, **({} if place == 0 else {'images (checksum)': place // 3})}
    for cell in found.cells.values():
        del cell.results       # it was kept
    student, kd = found.cells.values()
    assert (student.mean('best'), kd.mean('best')) == (70.5, None)
    assert notes(found, 'best') == ['No mean, since the trials have different data, or chose the best epoch on '
                                    'different sets: KD, a -> b.']
    assert '| KD |  |\n' in markdown(found)


def test_which_set_chose():
    """The report names the set; trials that differ in it are not averaged."""
    found = found_of({'Student': [70.0], 'KD': [73.0, 74.0]})
    student, kd = found.cells.values()
    assert found.chosen_on == 'test' and 'the best epoch, which is chosen on the test set,' in markdown(found)
    for run in kd.results:
        run['chosen_on'] = 'validation'
    assert found.chosen_on == 'test or validation'
    assert notes(found, 'best') == ['Best epoch chosen on the validation set: KD, a -> b.']
    assert [row['chosen_on'] for row in csv.DictReader(as_csv(found).splitlines())] == ['test', 'validation']
    student.results[0]['chosen_on'] = 'validation'
    assert 'which is chosen on the validation set,' in markdown(found) and notes(found, 'best') == []
    assert 'which is chosen on the validation set' in latex(found)
    kd.results[0]['chosen_on'] = 'test'
    del kd.results
    assert kd.mean('best') is None and 'on different sets: KD, a -> b.' in notes(found, 'best')[0]


def test_one_class():
    found = found_of({'Student': [70.0], 'KD': [10.0, 71.0]})
    assert notes(found, 'best') == []
    assert notes(found, 'last') == ['One class for all images, so that the accuracy is only the share of that '
                                    'class: KD.'] and 'so that the accuracy' not in markdown(found)


def test_statistics():
    """sigma = sqrt(s1^2 / n1 + s2^2 / n2); a mean without a deviation has that of the others."""
    ours, theirs = Mean(75.0, 0.3, 4), Mean(74.0, 0.4, 16)
    assert difference(ours, theirs) == (1.0, pytest.approx((0.09 / 4 + 0.16 / 16) ** 0.5))
    assert difference(ours, Mean(74.0, None, 1)) == (1.0, pytest.approx((0.09 / 4 + 0.09) ** 0.5))
    assert difference(Mean(1.0, None, 1), Mean(0.0, None, 1)) == difference(Mean(1.0, 0.0, 3), Mean(0.0, None, 1)) == (
        1.0, None)
    assert weighted_sum([(0.5, ours), (0.5, theirs), (-1, Mean(70.0, None, 2))]) == (
        4.5, pytest.approx((0.25 * 0.09 / 4 + 0.25 * 0.16 / 16 + 0.125 / 2) ** 0.5))
    assert [Difference(*pair).is_clear for pair in ((2.1, 1.0), (-2.1, 1.0), (2.0, 1.0), (9.0, None))] == [
        True, True, False, False]
    # Student's t, 6 degrees of freedom: 9.2 % are beyond 2.
    assert beyond_by_chance(4) == pytest.approx(0.0924, abs=1e-4) and beyond_by_chance(1) is None
    assert Difference(-1.0, 0.5).in_sigmas == -2 and Difference(1.0, None).in_sigmas is None
    # Two nets with 90 % on 360 images: the binomial deviation of each is 1.58 points.
    assert sampling_sigma(90.0, 360) == pytest.approx(2 ** 0.5 * 1.5811, abs=1e-4)


def test_difference_from_the_published_figure():
    def of(top1, *published, epoch='best'):
        trials = [trial_of('KD', run_of(value, value - 1)) for value in top1]
        cell = Cell(Row('KD', 'kd'), Pair('a', 'b'), trials, Published(*published) if published else None)
        return cell.difference(epoch)
    # Our variance is 2 of 2 trials; the source has 4 trials, or does not say how many.
    assert of([70.0, 72.0], 70.0, 1.0, 'x', 'best', 4) == (1.0, pytest.approx((2 / 2 + 1 / 4) ** 0.5))
    assert of([70.0, 72.0], 70.0, 1.0, 'x', 'best') == (1.0, pytest.approx((2 / 2 + 1) ** 0.5))
    assert of([70.0, 72.0], 70.0, None, 'x', 'unknown') == (1.0, pytest.approx((2 / 2 + 2) ** 0.5))
    assert of([71.0], 70.0, 0.5, 'x', 'unknown', 4) == (1.0, pytest.approx((0.25 + 0.25 / 4) ** 0.5))
    assert of([71.0, 71.0], 70.0, None, 'x', 'unknown') == (1.0, None)
    assert of([], 70.0, 1.0, 'x', 'unknown') is of([71.0]) is None
    # Only like is compared with like.
    assert of([71.0], 70.0, 0.5, 'x', 'last') is of([71.0], 70.0, 0.5, 'x', 'best', epoch='last') is None
    assert of([71.0], 70.0, 0.5, 'x', 'last', epoch='last')[0] == of([71.0], 70.0, 0.5, 'x', 'unknown', epoch='last')[
        0] == 0.0


def test_conclusion_of_one_pair():
    """What is best, by how much, and which methods are as good within 2 sigma."""
    found = found_of({'Student': [70.0, 70.2], 'KD': [73.0, 73.2], 'AT': [75.0, 75.4], 'Ours': [75.2, 75.6]})
    found.cells['KD', 'a -> b'].published = Published(73.0, 0.1, 'x', 'best', 2)        # 0.1 +- 0.12
    found.cells['AT', 'a -> b'].published = Published(74.0, 0.1, 'x', 'best', 2)        # 1.2 +- 0.21
    conclusion = conclude(found, 'best')
    assert conclusion.sentences == [
        'Ours is highest: 75.4 %, +2.3 points over KD, +5.3 points over the student alone; within 2 σ of it: AT',
        '1 of 2 cells are within 2 σ of the published figures (x), 1 is higher']
    assert conclusion.details == ['digits', '1 epoch', '1 trial', '4.0 h of training'] and conclusion.warnings == []
    assert plain(found).splitlines()[0] == conclusion.lines[0] == markdown(found).splitlines()[2]
    worse = found_of({'Student': [70.0, 70.2], 'KD': [73.0, 73.2], 'Ours': [72.9, 73.0]})
    assert conclude(worse, 'best').sentences == [
        'KD is highest: 73.1 %, +3.0 points over the student alone; within 2 σ of it: Ours',
        'Ours is 0.1 points below KD (within 2 σ)']
    clear = found_of({'KD': [73.0, 73.2], 'Ours': [75.0, 75.2]})
    assert conclude(clear, 'best').sentences == ['Ours is best: 75.1 %, +2.0 points over KD']
    assert conclude(found_of({'KD': [73.0], 'AT': [73.001]}), 'best').sentences[0] == (
        'no method is best alone in any pair')
    assert conclude(found_of({'KD': [73.0]}), 'best').sentences[0].startswith('no two methods have finished runs')
    assert (millions(1_250_000), compression(1_250_000, 5_000_000)) == ('1.25 M', '4.0×')
    assert (millions(None), compression(1_250_000, None), compression(None, 5)) == ('', '', '')


def test_conclusion_of_one_trial():
    """Without a deviation nothing is tested; the number of test images says which differences mean nothing."""
    found = found_of({'Student': [89.0], 'Ours': [90.0]})
    assert conclude(found, 'best').sentences[1] == (
        'one trial: no deviation, so no conclusion on differences between methods')
    for cell in found.cells.values():
        cell.results[0]['class_report'] = {'images': 360}
        cell.published = Published(91.0, None, 'x', 'best')
    assert conclude(found, 'best').sentences == [
        'Ours is highest: 90.0 %, +1.0 points over the student alone',
        'the mean difference from the published figures (x) is -1.5 points, without a deviation to test it',
        'one trial: no deviation, so no conclusion on differences under 4.5 points (2 σ of two nets on 360 test '
        'images)']
    assert conclude(found, 'last').sentences[1] == (
        'the published figures (x) are of the other epoch, so none is compared')


def test_parameters_of_a_downloaded_teacher():
    assert count_parameters('resnet8', 10, 32) == 78042 and count_parameters('net.py:build', 10, 32) is None


def test_another_page():
    """A report of something else needs a title and its conclusion; text is escaped."""
    page = render('base.html', title='A <search>', epoch='best', conclusions={
        'best': Conclusion(['KD & AT are best'], ['digits'], ['Few trials.'])})
    assert '<title>A &lt;search&gt;</title>' in page and '<li>KD &amp; AT are best.</li>' in page
    assert '<p class="warning" role="note">Few trials.</p>' in page and '<body>' in page


def test_warnings_of_the_conclusion():
    """Failed and missing runs, and teachers from which nothing can be learnt."""
    found = found_of({'Student': [70.0], 'KD': [73.0]})
    found.cells['KD', 'a -> b'].trials += [trial_of('KD', None, FAILED), trial_of('KD', None, LEFT)]
    teacher = {**run_of(18.9), 'model': 'a', 'teacher': '', 'properties': {'classes': 10}}
    found.teachers = [trial_of('teacher a', teacher, began=0.0, ended=100_000.0)]
    found.teachers[0].run.cells = []
    assert conclude(found, 'best').warnings == [
        'Of 5 runs 1 failed and 1 is not finished; all figures are of the finished ones.',
        'The teacher a is barely better than chance: top-1 18.9 %, chance 10.0 %. Its students learn little from it.',
        'a -> b: the teacher (18.9 %) is worse than the student alone (70.0 %).']
    result = found.teachers[0].result
    result['top1'] = 80.0
    assert len(conclude(found, 'best').warnings) == 1
    # Of unequal classes the most frequent one is chance.
    result['class_report'] = {'images': 10, 'classes': [{'images': 8}, {'images': 2}]}
    assert 'barely better than chance: top-1 80.0 %, chance 80.0 %' in conclude(found, 'best').warnings[1]


def test_one_epoch_decides_every_figure():
    """Order, mark, difference and deviations are those of the epoch that is shown."""
    found = found_of({'Student': [], 'KD': [], 'Ours': []})
    for label, *trials in (('Student', (70.0, 69.0)), ('KD', (75.0, 71.0), (75.2, 71.4)), ('Ours', (74.0, 73.0))):
        cell = found.cells[label, 'a -> b']
        cell.trials = [trial_of(label, run_of(*trial)) for trial in trials]
        cell.published = Published(71.0, 0.2, 'x', 'last')
    for epoch, best, kd, gain, line in (
            ('best', 'KD', '75.10 ± 0.14 (71.00 ± 0.20, last epoch)', (74 - 75.1) / 5.1, ['', '']),
            ('last', 'Ours', '71.20 ± 0.28 (71.00 ± 0.20)', (73 - 71.2) / 2.2, [0.2, 0.08 ** 0.5])):
        found.epoch = epoch
        assert [label for label in ('Student', 'KD', 'Ours') if found.is_highest(found.cells[label, 'a -> b'], epoch)] \
            == [best]
        assert f'| KD | {kd} | {gain * 100:.2f}% |\n' in markdown(found) and f'of the {epoch} epoch' in markdown(found)
        assert re.findall(r'(\w+) & \\textbf', latex(found)) == [best]
        row = list(csv.DictReader(as_csv(found).splitlines()))[1]
        assert [row['published_epoch'], row['epoch']] == ['last', epoch]
        assert [row[key] and float(row[key]) for key in ('difference', 'sigma')] == pytest.approx(line)


def test_escapes():
    found = found_of({'a|b & <u>': [70.0], r'50% $x_1$ #{}~^\ ': [71.5]})
    assert '# A \\| B &lt;i&gt;\n' in markdown(found) and '| a\\|b &amp; &lt;u&gt; | 70.00 |\n' in markdown(found)
    assert '\n' r'50\% \$x\_1\$ \#\{\}\textasciitilde{}\textasciicircum{}\textbackslash{}  & \textbf{71.50} \\' '\n' \
        in latex(found)
    assert r'a|b \& <u> & 70.00 \\' in latex(found)
    assert [signed(value, 2) for value in (0.126, -0.126, -0.004, 0.0)] == ['+0.13', '-0.13', '0.00', '0.00']
    tied = found_of({'KD': [71.001], 'AT': [71.004], 'SP': [70.0]})
    assert 'textbf' not in latex(tied) and 'KD & 71.00' in latex(tied)      # neither is better than the other
    assert figure(None, None) == '' and figure(71.005, None) == '71.00' and figure(1.0, 0.0) == '1.00 ± 0.00'


def published_cells(name):
    """(the table, {(row, pair): the figure beside it or None})."""
    table, parsed, found = read_table(ROOT / 'scripts' / 'tables' / f'{name}.toml'), {}, {}
    for pair in table.pairs:
        for row in table.rows:
            if (row.label, str(pair)) not in table.left_out:
                own = table.cells.get((row.label, str(pair)), row)
                if own not in parsed:
                    parsed[own] = teacher_options([*table.options, *own.flags]) if own.method == 'alone' else \
                        student_options(['--path-t', 'x', '--distill', own.method, *table.options, *own.flags])
                found[row.label, pair] = published_for(table, pair, parsed[own])
    return table, found


@pytest.mark.parametrize('name, epoch', [('semckd_cifar100', 'unknown'), ('repdistiller_cifar100_same', 'last'),
                                         ('repdistiller_cifar100_across', 'last')])
def test_every_cell_of_a_published_table_has_its_figure(name, epoch):
    table, found = published_cells(name)
    assert len(found) == len(table.rows) * len(table.pairs) - len(table.left_out)
    assert {(figure.source, figure.epoch) for figure in found.values()} == {(*table.sources, epoch)}
    assert epoch_of_published([SimpleNamespace(published=figure) for figure in found.values()]) == (
        'last' if epoch == 'last' else 'best')


def test_newer_methods():
    """Every row parses, and every figure of the newer sources for these nets is shown. IKL and GKL published none."""
    table, found = published_cells('newer_cifar100')
    without = {row.label for row in table.rows} - {label for (label, _), figure in found.items() if figure}
    assert without == {'IKL', 'GKL'}
    with open(ROOT / 'analysis' / 'published.csv', newline='') as file:
        lines = [row for row in csv.DictReader(file) if row['dataset'] == 'cifar100' and row['source'] in table.sources]
    shown = {('' if label == 'Student' else pair.teacher, pair.student, f'{figure.top1:.2f}', *figure[2:4])
             for (label, pair), figure in found.items() if figure}
    listed = {(row['teacher'], row['student'], row['top1'], row['source'], row['epoch']): row for row in lines}
    assert shown <= {*listed}
    nets = {(pair.teacher, pair.student) for pair in table.pairs}
    newer = {key for key, row in listed.items() if key[:2] in nets and row['source'] not in ('RepDistiller', 'SemCKD')
             and not row['options'].startswith('simkd_factor')}
    assert len(newer) > 130 and newer <= shown


PRESS = '''<script>
const pressed = [performance.getEntriesByType('resource').map((asked) => asked.name)];
const names = () => [...document.querySelectorAll('#accuracy tbody tr')].map((row) => row.cells[0].innerText);
window.addEventListener('error', (event) => pressed.push(event.message));
const head = document.querySelectorAll('#accuracy thead button')[1];
head.click(); pressed.push(names());
document.querySelector('input[value=last]').click(); pressed.push(names()); head.click(); pressed.push(names());
document.querySelectorAll('#accuracy thead button')[0].click(); pressed.push(names());
document.querySelector('.row-choice[value="1"]').click();
pressed.push([...document.querySelectorAll('[data-row="1"], svg [data-row="2"]')]
             .map((element) => getComputedStyle(element).display));
document.querySelectorAll('#accuracy tbody tr')[7].querySelectorAll('[data-dialog]')[2].click();
pressed.push([...document.querySelectorAll('dialog[open]')].map((dialog) => dialog.innerText));
document.querySelector('dialog[open] .close').click();
pressed.push(document.querySelectorAll('dialog[open]').length);
document.body.innerHTML = '<pre id="pressed"></pre>';
document.getElementById('pressed').textContent = btoa(unescape(encodeURIComponent(JSON.stringify(pressed))));
</script></body>'''


@pytest.mark.skipif(not shutil.which('chromium'), reason='needs Chromium: apt-get install chromium')
def test_in_a_browser(table, texts, tmp_path):
    """No error in its console, nothing requested; sorting, choosing a row and opening a cell work."""
    _, figures, _ = table
    (tmp_path / 'page.html').write_text(texts['html'].replace('</body>', PRESS))
    chromium = subprocess.run(['chromium', '--headless', '--no-sandbox', '--disable-gpu', '--enable-logging=stderr',
                               f'--user-data-dir={tmp_path}/profile', '--dump-dom', f'file://{tmp_path}/page.html'],
                              capture_output=True, text=True, timeout=300, check=True)
    assert 'CONSOLE' not in chromium.stderr
    pressed = json.loads(base64.b64decode(re.search(r'<pre id="pressed">([^<]+)</pre>', chromium.stdout)[1]))
    asked, by_best, from_high, from_low, by_name, shown, opened, left_open = pressed
    assert asked == []
    pair = read_table(ROOT / 'scripts' / 'tables' / f'{TABLE}.toml').pairs[0]
    for order, kind in ((by_best, 0), (from_high, 1), (reversed(from_low), 1)):
        assert [*order] == sorted(ROWS, key=lambda row: -mean(trial[kind] for trial in figures[row, str(pair)]))
    assert by_name == [*ROWS]
    assert set(shown) == {'none', 'inline'} and shown.count('inline') == 14      # KD is hidden, not FitNet's curves
    (text,) = opened
    assert text.count('train_student.py') == 4 and 'SemCKD, vgg13 -> ShuffleV2' in text and 'a <fast> machine' in text
    assert left_open == 0
