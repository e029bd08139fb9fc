"""The report of a search: its conclusion, table, charts and importance follow from the trials and the final runs."""
import json
import os
import re

import pytest

from experiments import search_charts, search_rows, study
from experiments.folder_check import note_owner
from experiments.plan import plan_runs
from experiments.search import ERROR, SECONDS, Search
from experiments.search_conclusion import conclude
from experiments.search_report import write
from experiments.search_rows import describe
from experiments.table_file import read_table
from helper.cli import values
from scripts import report

optuna = pytest.importorskip('optuna')

HEAD = '''title = "A search"
seeds = [1]
options = "--dataset digits --val_fraction 0.2 --epochs 4"
pairs = ["resnet14 -> resnet8"]
'''
SPACE = HEAD + '''[rows]
Student = "alone"

[rows.KD]
distill = "kd"
alpha = "log 0.01 .. 100"

[rows.DKD]
distill = "dkd"
dkd_beta = "log 0.08 .. 800"
kd_T = [1, 2, 4, 8]

[rows.SP]
distill = "similarity"
beta = "log 30 .. 300000"
'''
FINAL = HEAD.replace('[1]', '[2, 3]') + '''[rows]
Student = "alone"
"KD, tuned" = "kd --alpha 10"
"KD, published" = "kd"
"DKD, tuned" = "dkd --dkd_beta 0.8 --kd_T 2"
"DKD, published" = "dkd"
"DKD, auto" = "dkd -b auto"
'''
FINALS = {'Student': (60, 62), 'KD, tuned': (74, 75), 'KD, published': (68, 69), 'DKD, tuned': (70, 74),
          'DKD, published': (70, 73), 'DKD, auto': (71, 71)}


def add(cell, state: str, params: dict, curve: list, **attributes) -> None:
    """Add a trial of 36 seconds with these accuracies by epoch."""
    parts = {part.name: study._distribution(part) for part in cell.row.ranges if part.name in params}
    cell.study.add_trial(optuna.trial.create_trial(
        state=optuna.trial.TrialState[state], params=params, distributions=parts,
        value=max(curve) if state == 'COMPLETE' else None, intermediate_values=dict(enumerate(curve, 1)),
        user_attrs={SECONDS: 36.0, **attributes}))


def finish(run, top1: float) -> None:
    """Write the files of a finished run."""
    run.folder.mkdir(parents=True)
    content = {**values(run.opt), 'Total params': 1.0, 'Total time': 0.1, 'processes': 1, 'machine': 'm',
               'versions': 'v', 'command': 'python x'}
    history = [{'epoch': epoch, 'test_acc': top1, 'val_acc': top1, 'seconds': 9.0, 'train': {'images_per_second': 1.0}}
               for epoch in range(1, 5)]
    metrics = {'test_acc': top1, 'test_acc_top5': 90.0, 'val_acc': top1, 'epoch': 2}
    for name, written in (('parameters', content), ('history', history), ('test_best_metrics', metrics),
                          ('test_last_metrics', metrics), ('val_best_metrics', metrics)):
        (run.folder / f'{name}.json').write_text(json.dumps(written))
    run.checkpoint.touch()


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """The folder of a search with fabricated trials."""
    save = tmp_path_factory.mktemp('search')
    path = save / 'mine.toml'
    path.write_text(SPACE)
    table = read_table(path, has_ranges=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, 'fsync', lambda handle: None)
        search = Search(table, save, [], 12, True)
        search.open()
        note_owner(table, save, [])
        alone, kd, dkd, sp = search.cells
        add(alone, 'COMPLETE', {}, [50.0, 60.0])
        for alpha, accuracy in ((1.0, 70.0), (10.0, 75.5), (0.1, 65.0)):
            add(kd, 'COMPLETE', {'alpha': alpha}, [accuracy - 20, accuracy])
        add(kd, 'PRUNED', {'alpha': 100.0}, [12.0, 13.0])
        add(kd, 'FAIL', {'alpha': 90.0}, [], **{ERROR: ['epoch 1', 'error: the loss is <NaN>']})
        for n in range(12):
            drawn = {'dkd_beta': round(0.08 * 2 ** n, 2), 'kd_T': 2 ** (n % 4)} if n else {'dkd_beta': 8.0, 'kd_T': 4}
            add(dkd, 'COMPLETE', drawn, [74.0 - n + 3 * (n == 0)])
        add(sp, 'FAIL', {'beta': 3000.0}, [])
    return save


@pytest.fixture(scope='module')
def rows(folder):
    search = Search(read_table(folder / 'mine.toml', has_ranges=True), folder, [], 12, True)
    search.open(is_new=False)
    return search_rows.report_rows(search)


def test_the_rows(rows):
    alone, kd, dkd, sp = rows
    assert (kd.alone, kd.best.accuracy, kd.gain) == (60, 75.5, 15.5)
    assert (kd.result.published, kd.gain_over_published) == (70, 5.5)
    assert (dkd.result.published, dkd.gain_over_published, alone.gain, sp.best, sp.gain) == (77, 0, None, None, None)
    assert (kd.seconds, kd.ends(), dkd.best.values) == (180, [], {'dkd_beta': 8.0, 'kd_T': 4})
    assert kd.importance == alone.importance == {}      # of one range, and of none
    assert dkd.importance.keys() == {'dkd_beta', 'kd_T'} and sum(dkd.importance.values()) == pytest.approx(1)
    assert [*dkd.importance][0] == 'dkd_beta'           # by which the accuracy falls
    assert describe({'distill': 'kd', 'beta': 0.00012346, 'alpha': 2355.7, 'sync_bn': True, 'kd_T': 4}) == \
        'kd, beta 0.000123, alpha 2360, sync_bn True, kd_T 4'


def test_the_conclusion(rows):
    conclusion = conclude([rows[0], rows[1], rows[3]])
    assert conclusion.lines == [
        'KD with alpha 10 is best on the validation set: 75.5 %, +15.5 points over the student alone and +5.5 over its '
        'published values. 3 rows, 1 to 5 trials each, 1 ended early, 2 failed, 4.2 min of training.',
        'No trial is done: SP.']
    best = rows[1].result.trials[1]
    best.values['alpha'] = 99.0
    try:
        assert conclude(rows[:2]).warnings == ['The best value lies at an end of its range, so a wider range may hold '
                                               'a better one: KD (alpha 99).']
    finally:
        best.values['alpha'] = 10.0
    assert conclude(rows[:1]).sentences == ['the student alone is best on the validation set: 60.0 %']
    assert conclude(rows[3:]).sentences == ['no trial is done yet']


def test_the_charts(rows):
    """Dots of complete trials, a ring below the axis, a cross, a star, lines at the published value and the student."""
    kd = rows[1]
    low, high = search_charts.limits(rows)
    assert low < 60 - (77 - 60) / 4 < high and high > 77
    axis, = search_charts.accuracy_by_value(kd, kd.parts[0], (low, high)).axes
    done, early, failed, best = ([*map(list, points.get_offsets())] for points in axis.collections)
    assert done == [[0.1, 65.0], [1.0, 70.0], [10.0, 75.5]] and best == [[10.0, 75.5]]
    assert early == [[100.0, pytest.approx(low)]] and failed == [[90.0, pytest.approx(low)]]
    lines = [[*map(float, data)] for line in axis.lines for data in line.get_data()]
    assert lines[0:3:2] == [[0.0, 1.0], [1.0, 1.0]] and lines[1] == [60.0, 60.0]
    assert lines[4:] == [[0.1, 1.0, 10.0], [65.0, 70.0, 75.5]] and axis.get_xscale() == 'log'
    temperature = rows[2].parts[1]
    axis, = search_charts.accuracy_by_value(rows[2], temperature, (low, high)).axes
    assert [label.get_text() for label in axis.get_xticklabels()] == ['1', '2', '4', '8']
    assert [*map(float, axis.lines[1].get_xdata())] == [2.0, 2.0]       # the published 4 is the third choice


def test_the_page_and_the_text(folder, call, capsys):
    call(report.main, folder)
    text, page = capsys.readouterr().out, (folder / 'report.html').read_text()
    first = ('DKD with dkd_beta 8, kd_T 4, its published values, is best on the validation set: 77.0 %, +17.0 points '
             'over the student alone. 4 rows, 1 to 12 trials each, 1 ended early, 2 failed, 11.4 min of training.')
    assert text.startswith(first) and text.endswith(f'report: {folder}/report.html\n')
    assert re.search(r'importance \(PED-ANOVA, .*\), DKD, resnet14 -> resnet8: dkd_beta \d+%, kd_T \d+%', text)
    assert page.count('<svg') == 4 and '&lt;NaN&gt;' in page and '<NaN>' not in page
    commands = re.findall('<pre>(python .*)</pre>', page)
    assert len(commands) == 4 and '--dkd_beta 8.0 --kd_T 4' in commands[0]
    assert [*re.findall('<h2>(.*)</h2>', page)] == ['Rows of the search', 'How accuracy depends on the values',
                                                    'Which flag matters']
    body = page[page.index('<table id="rows">'):]
    row = re.search(r'<tr[^>]*><th[^>]*>KD<.*?</tr>', body, re.DOTALL)[0]
    assert re.findall(r'<td[^>]*>(?:<[^>]*>)*([^<]*)', row) == ['alpha 10', '75.50', '70.00', '+5.50', '+15.50', '3',
                                                               '1', '1', '3.0 min']


def test_final_runs(folder):
    """They come first, and the best row's figures are in the conclusion."""
    file, save = folder / 'final.toml', folder / 'final'
    file.write_text(FINAL)
    runs = plan_runs(read_table(file), str(save), [])
    try:
        for run in runs:
            if run.cells:
                finish(run, FINALS[run.cells[0][0]][run.trial - 1])
        text, page = write(folder, []), (folder / 'report.html').read_text()
        lines = text.split('\n')
        assert 'on the test set it reaches 72.00 ± 2.83 %, with published values 71.50 ± 2.12 %, +0.5 points (within ' \
               '2 σ); tuned values are better than published ones by more than 2 σ in 1 of 2 rows with final ' \
               'runs, and worse in 0.' in lines[0]
        assert [line.split()[0] for line in lines[5:8]] == ['Student', 'KD', 'DKD']
        assert lines[6].split()[-6:] == ['74.50', '±', '0.71', '68.50', '±', '0.71']
        assert lines[7].split()[-3:] == ['71.00', '±', '0.00']
        assert (folder / 'report.md').read_text().split('\n')[8:] == [
            '| method | published values | best values | validation | tuned | published | auto |',
            '|---|---|---|---|---|---|---|',
            '| KD | alpha 1 | alpha 10 | 75.50 | 74.50 ± 0.71 | 68.50 ± 0.71 |  |',
            '| DKD | dkd_beta 8, kd_T 4 | dkd_beta 8, kd_T 4 | 77.00 | 72.00 ± 2.83 | 71.50 ± 2.12 | 71.00 ± 0.00 |',
            '| Student |  |  | 60.00 | 61.00 ± 1.41 |  |  |',
            '| SP | beta 3000 |  |  |  |  |  |', '']
        assert page.index('On the test set') < page.index('Rows of the search')
        finals = page[page.index('<table id="final">'):page.index('Rows of the search')]
        assert re.findall('<th scope="row"[^>]*>([^<]*)', finals) == ['KD', 'DKD', 'Student']
        assert finals.count('<button>-b auto') == finals.count('>71.00 ± 0.00<') == 1
    finally:
        file.unlink()


def test_what_is_refused(folder, call, capsys):
    for arguments, said in ((['--epoch', 'last'], '--epoch last: not for a search; give the folder of its final runs'),
                            (['--epochs', '9'], 'holds a search of row Student: resnet14 -> resnet8 with epochs 4')):
        with pytest.raises(SystemExit) as caught:
            call(report.main, folder, *arguments)
        err = capsys.readouterr().err
        assert caught.value.code == 2 and said in err and err.count('\n') == 1
