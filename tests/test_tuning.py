"""A search: its file, the values of its trials through all interruptions, early ends, failures and refusals."""
import json
import math
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import ROOT

from experiments import local, search_results, slurm, space, study
from experiments.devices import Devices
from experiments.final_table import KINDS, final_runs, make_final
from experiments.folder_check import check, flags_of, note_owner
from experiments.progress import DONE, FAILED, LEFT, MAX_STARTS, PRUNED, RUNNING, Progress, Record
from experiments.search import Search
from experiments.table_file import read_table
from helper.cli import values
from helper.errors import UserError
from scripts import report, reproduce, tune

optuna = pytest.importorskip('optuna')

HEAD = '''title = "x"
seeds = [1]
options = "--dataset digits --val_fraction 0.2 --epochs 4"
pairs = ["resnet14 -> resnet8"]
'''
ROWS = {'KD': 'distill = ["kd", "dkd"]\nkd_T = [1, 2, 4, 8]\nbeta = "log 0.1 .. 10"\n',
        'AT': 'distill = "attention"\nbeta = "log 10 .. 10000"\nbatch_size = "16 .. 64"\n'}


def write(path: Path, head=HEAD, **rows) -> Path:
    """A space file with these rows, by default ROWS."""
    path.write_text(head + ''.join(f'[rows.{label}]\n{text}\n' for label, text in (rows or ROWS).items()))
    return path


def make(folder: Path, trials=6, has_pruner=True, path=None, arguments=()) -> Search:
    """The search of a space, opened in `folder`."""
    search = Search(read_table(path or write(folder / 'x.toml'), has_ranges=True), folder, [*arguments], trials,
                    has_pruner)
    search.logs.mkdir(exist_ok=True)
    search.open()
    return search


def train(run, epochs: int, accuracy) -> None:
    """Write the history of a run after these epochs."""
    run.folder.mkdir(parents=True, exist_ok=True)
    curve = [accuracy(run.opt, epoch) for epoch in range(1, epochs + 1)]
    (run.folder / 'history.json').write_text(json.dumps([{'val_acc': value} for value in curve]))


def accuracy(opt, epoch):
    """A toy in place of training: the best values are dkd, kd_T 2, and beta 1 or 100."""
    distill = getattr(opt, 'distill', 'alone')
    if distill == 'alone':
        return 50.0
    goal = 100 if distill == 'attention' else 1
    miss = abs(opt.beta - goal) / goal if opt.beta else 1
    return 20 * epoch - 10 * min(miss, 2) - opt.kd_T + 5 * (distill == 'dkd')


def work(search: Search, accuracy=accuracy, stop=lambda: None) -> None:
    """Run the trials one after the other, as local.Local does. stop() may raise to end the work."""
    progress = {}
    while run := search.next_run():
        progress[run] = Progress(RUNNING)
        for epoch in range(1, run.opt.epochs + 1):
            stop()
            train(run, epoch, accuracy)
            if search.update(progress, {run}):
                progress[run].state = LEFT
                break
        else:
            progress[run].state = DONE
        search.update(progress, set())
        assert run not in search.claims


def outcome(search: Search) -> dict:
    """Row -> [(state, values, accuracies by epoch)] of its trials."""
    return {result.label: [(trial.state, trial.values, trial.curve) for trial in result.trials]
            for result in search_results.row_results(search)}


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    monkeypatch.setattr(os, 'fsync', lambda handle: None)


# The file

def test_the_ranges_of_a_row(tmp_path):
    rows = read_table(write(tmp_path / 'x.toml', A='distill = ["kd", "dkd"]\nflags = "--gamma 2"\nkd_T = "1 .. 8"\n'
                                                   'beta = "log 0.1..1e3"\nsync_bn = [true, false]\n',
                            B='distill = "hint"\nhint_layer = "1 .. 3"\nscale = ["0.08 1", "0.5 1"]\n'), True).rows
    a, b = rows
    assert (a.method, a.methods, a.flags, b.methods) == ('kd', ('kd', 'dkd'), ('--gamma', '2'), ('hint',))
    method, temperature, beta, sync = a.ranges
    assert (temperature.low, temperature.high, temperature.is_whole, temperature.is_log) == (1.0, 8.0, False, False)
    assert (beta.low, beta.high, beta.is_log, beta.count) == (0.1, 1000.0, True, float('inf'))
    assert (b.ranges[0].low, b.ranges[0].high, b.ranges[0].is_whole, b.ranges[0].count) == (1, 3, True, 3)
    assert [part.name for part in space.ranges_of('kd', a.ranges)] == ['kd_T', 'sync_bn']    # no loss of its own
    assert [part.name for part in space.ranges_of('dkd', a.ranges)] == ['kd_T', 'beta', 'sync_bn']
    assert [*map(sync.arguments, (True, False))] == [['--sync_bn'], []]
    assert beta.arguments(beta.rounded(123.456)) == ['--beta', '123.5'] and beta.rounded(0.0999) == 0.1
    assert b.ranges[1].arguments('0.5 1') == ['--scale', '0.5', '1'] and b.ranges[1].find([0.5, 1.0]) == '0.5 1'
    assert (beta.find(2.0), beta.find(0.0), method.find('dkd')) == (2.0, None, 'dkd')


@pytest.mark.parametrize('row, said', [
    ('beta = "10 .. 1"', 'beta = "10 .. 1": give the smaller number first'),
    ('beta = "log 0 .. 1"', 'beta = "log 0 .. 1": a logarithmic range has numbers above 0; give another, or leave '
                            '"log" out'),
    ('beta = "log -1 .. 1"', 'beta = "log -1 .. 1": a logarithmic range has numbers above 0'),
    ('beta = "1"', 'beta = "1": give a range as "log 0.1 .. 1000", "1 .. 8" or [1, 2, 4]; fixed flags go into  flags'),
    ('beta = 3', 'beta = 3: give a range as'),
    ('learnin_rate = [1]', 'learnin_rate = [1]: no such flag; did you mean --learning_rate'),
    ('lr = "0.1 .. 1"', 'lr = "0.1 .. 1": no such flag; here it is --learning_rate'),
    ('kd_T = "0 .. 4"', 'kd_T = "0 .. 4": 0: give a number above 0 and of at most 10000.0'),
    ('kd_T = [1, "x"]', "kd_T = [1, 'x']: x: give a number above 0"),
    ('kd_T = [1, 1.0, 2]', 'kd_T = [1, 1.0, 2]: give different values, as [1, 2, 4]'),
    ('alpha = "4 .. 4.01"', 'alpha = "4 .. 4.01": values have four significant digits, and too few lie between these'),
    ('alpha = "-1e308 .. 1e308"', 'alpha = "-1e308 .. 1e308": the range is too wide; give smaller numbers'),
    ('flags = "--val_fraction 0.5"', '--val_fraction: the trials of a search are compared on the same images, so this'),
    ('kd_T = [1, "1.0"]', "kd_T = [1, '1.0']: give different values, as [1, 2, 4]"),
    ('kd_T = []', 'kd_T = []: give different values, as [1, 2, 4]'),
    ('scale = ["0.1 1", "\\""]', "scale = ['0.1 1', '\"']: \": give two numbers, as \"0.08 1.0\""),
    ('scale = ["0.1 1", ""]', "scale = ['0.1 1', '']: : give two numbers"),
    ('kd_T = [4]', 'kd_T = [4]: one value leaves nothing to search; give more, or give the flag in  flags = "..."'),
    ('kd_T = [true]', 'kd_T = [True]: True: give values, as temperature of the soft labels'),
    ('batch_size = "8.5 .. 64"', 'batch_size = "8.5 .. 64": 8.5: give a whole number of at least 1'),
    ('sched = [\'step\', \'linear\']', "sched = ['step', 'linear']: linear: give step, cosine, tanh, poly"),
    ('lr_decay_epochs = "1 .. 3"', 'lr_decay_epochs = "1 .. 3": this flag is no number; give a list of its values'),
    ('seed = [1, 2]', 'seed = [1, 2]: the program sets this flag itself; leave it out'),
    ('trial = [1, 2]', 'trial = [1, 2]: the program sets this flag itself'),
    ('path-t = ["x"]', "path-t = ['x']: the program sets this flag itself"),
    ('num_workers = [1, 2]', 'num_workers = [1, 2]: this flag does not change the result; leave it out'),
    ('val_fraction = [0.1, 0.2]', 'val_fraction = [0.1, 0.2]: the trials of a search are compared on the same images; '
                                  'give --val_fraction in options'),
    ('nce_k = [10, 20]', 'nce_k = [10, 20]: dkd does not use this flag; it goes with crd'),
    ('flags = "--seed 3"', 'flags: --seed: the program sets this flag itself; leave it out'),
    ('flags = 3', 'flags: give fixed flags as "--loss_warmup_epochs 2"')])
def test_ranges_that_are_refused(tmp_path, row, said):
    path = write(tmp_path / 'x.toml', A=f'distill = "dkd"\n{row}\n')
    with pytest.raises(UserError, match=f'^{re.escape(f"{path}: row A: {said}")}'):
        read_table(path, has_ranges=True)


@pytest.mark.parametrize('row, said', [
    ('distill = "kt"', 'row A: distill kt: no such method; did you mean'),
    ('distill = ["kd", "kd"]', "row A: distill = ['kd', 'kd']: give different methods"),
    ('distill = ["kd", "alone"]', "row A: distill = ['kd', 'alone']: give different methods, and \"alone\" by itself"),
    ('distill = "kd"\nbeta = [1]', 'row A: beta = [1]: kd does not use this flag; it has no loss of its own to weight'),
    ('distill = "fsp"\nbeta = "1 .. 9"', 'row A: beta = "1 .. 9": fsp does not use this flag; it has no loss'),
    ('distill = "alone"\nkd_T = [1, 2]', 'row A: kd_T = [1, 2]: a student alone does not use this flag; leave it out'),
    ('kd_T = [1]', 'row A: distill: give a method or a list of methods, as "kd" or ["kd", "dkd"]')])
def test_methods_that_are_refused(tmp_path, row, said):
    path = write(tmp_path / 'x.toml', A=row)
    with pytest.raises(UserError, match=f'^{re.escape(f"{path}: {said}")}'):
        read_table(path, has_ranges=True)


def refused(call, capsys, main, *arguments) -> str:
    """The line with which a script refuses its arguments."""
    with pytest.raises(SystemExit) as caught:
        call(main, *arguments)
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count('\n') == 1
    return err.removeprefix('error: ').rstrip('\n')


def test_what_the_scripts_refuse(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = write(Path('x.toml'))
    assert refused(call, capsys, reproduce.main, path) == \
        'x.toml: row KD: is a row of a search; python scripts/tune.py x.toml runs it'
    without = write(Path('y.toml'), HEAD.replace('--val_fraction 0.2 ', ''))
    assert refused(call, capsys, tune.main, without) == ('y.toml: options: a search needs a validation set, since the '
                                                         'test set must not choose; add --val_fraction 0.1')
    assert refused(call, capsys, tune.main, 'digit') == \
        'SPACE digit: no such space, and not a file NAME.toml; did you mean digits?'
    assert refused(call, capsys, tune.main, path, '--betta', 3).startswith('--betta: no such flag; ')
    assert refused(call, capsys, tune.main, path, '--seed', 3) == \
        'the command line: --seed: the program sets this flag itself; leave it out'
    wrong = write(Path('z.toml'), A='distill = "dkd"\nkd_T = [1, 2]\nmin_lr = "0.001 .. 0.002"\n')
    assert refused(call, capsys, tune.main, wrong).startswith('z.toml: row A, resnet14 -> resnet8: --min_lr 0.001: has')
    ignored = write(Path('z.toml'), A='distill = ["dkd", "ttm"]\nkd_T = [1, 2]\n')
    assert refused(call, capsys, tune.main, ignored) == (
        'z.toml: row A, resnet14 -> resnet8: --kd_T 1.0: --distill ttm has no soft labels here; give -a 1, or leave it '
        'out')
    assert refused(call, capsys, tune.main, path, 'more') == 'more: belongs to no flag; a flag begins with --'
    monkeypatch.setitem(sys.modules, 'optuna', None)
    assert refused(call, capsys, tune.main, path) == 'tune.py: optuna is not installed; pip install optuna'
    assert {*os.listdir()} == {'x.toml', 'y.toml', 'z.toml'}


def test_a_search_without_teachers(tmp_path):
    """Its folder is checked too."""
    search = make(tmp_path, 1, path=write(tmp_path / 'x.toml', A='distill = "alone"\nlearning_rate = [0.1, 0.2]\n'))
    assert search.teacher_runs() == []
    check(search.table, tmp_path, [])
    note_owner(replace(search.table, path=Path('other.toml')), tmp_path, [])
    with pytest.raises(UserError, match='is the folder of the table'):
        check(search.table, tmp_path, [])


# The trials

def test_the_first_trials_are_published(tmp_path):
    """One for each method; a range without the published value has a random one."""
    path = write(tmp_path / 'x.toml', KD='distill = ["kd", "dkd"]\nkd_T = [1, 4]\nlearning_rate = "0.06 .. 0.1"\n'
                                         'beta = "log 0.1 .. 10"\n')
    search = make(tmp_path, 2, path=path)
    work(search)
    first, second = [values for _, values, _ in outcome(search)['KD']]
    assert first.pop('learning_rate') >= 0.06 <= second.pop('learning_rate')
    assert first == {'distill': 'kd', 'kd_T': 4} and second == {'distill': 'dkd', 'kd_T': 4, 'beta': 1.0}
    arguments = [run.arguments for run in search.cells[0].runs.values()]
    assert all('--no_test' in words for words in arguments) and arguments[1][arguments[1].index('--beta') + 1] == '1.0'


def test_a_method_without_untried_values(tmp_path):
    """It is the best one, but has a single trial: the other one gets the rest."""
    rows = {'A': 'distill = ["kd", "attention"]\nbeta = "log 0.1 .. 10"\n'}
    search = make(tmp_path, 15, path=write(tmp_path / 'x.toml', **rows))
    work(search, lambda opt, epoch: 10.0 if opt.beta else 90.0)     # kd has no beta
    values = [values for _, values, _ in outcome(search)['A']]
    assert len(values) == 15 and values.count({'distill': 'kd'}) == 1


def test_a_row_with_few_different_values(tmp_path):
    """Each is tried once, and no others follow; a row without ranges has one trial."""
    path = write(tmp_path / 'x.toml', f'{HEAD}[rows]\nStudent = "alone"\n',
                 KD='distill = ["kd", "dkd"]\nkd_T = [1, 4]\ngamma = ["0.5", "1"]\n')
    search = make(tmp_path, 20, False, path)
    work(search, lambda opt, epoch: 50.0)
    values = [tuple(values.values()) for _, values, _ in outcome(search)['KD']]
    assert len(values) == len({*values}) == 8 and len(outcome(search)['Student']) == 1 and search.is_over()


class Kill(BaseException):
    """The end of a process."""


def test_ten_kills(tmp_path, monkeypatch):
    """The trials and their values are those of an undisturbed search, wherever the kills fall."""
    undisturbed = make(tmp_path, 10, path=write(tmp_path / 'x.toml'))
    work(undisturbed)
    expected = outcome(undisturbed)
    assert Counter(state for trials in expected.values() for state, *_ in trials)[PRUNED] > 2
    append, left = optuna.storages.journal.JournalFileBackend.append_logs, [0]

    def append_until_killed(self, logs):
        """Write a part of the last line when the time has come: none, half, or all of it."""
        left[0] -= 1
        if left[0] != 0:
            return append(self, logs)
        part = random_numbers.choice([0, 0.5, 1])
        text = '\n'.join(map(json.dumps, logs)) + '\n'
        with open(self._file_path, 'a') as file:
            file.write(text[:int(part * len(text))])
        raise Kill

    monkeypatch.setattr(optuna.storages.journal.JournalFileBackend, 'append_logs', append_until_killed)
    random_numbers, kills, search = random.Random(0), 0, None
    folder = tmp_path / 'killed'
    folder.mkdir()
    while kills < 10 or not search.is_over():
        left[0] = random_numbers.randint(1, 12) if kills < 10 else -1
        try:
            search = make(folder, 10, path=tmp_path / 'x.toml')
            work(search)
        except Kill:
            kills += 1
            for *_, lock in search.claims.values() if search else ():
                lock.release()
    assert kills >= 10 and outcome(search) == expected


def test_hopeless_trials_end_early(tmp_path):
    """The verdict on an epoch does not depend on later epochs that the run has made meanwhile."""
    search = make(tmp_path, 5, path=write(tmp_path / 'x.toml', KD='distill = "kd"\nkd_T = "1 .. 9"\n'))
    good = [10.0, 20.0, 30.0, 40.0]
    for _ in range(4):
        run = search.next_run()
        train(run, 4, lambda opt, epoch: good[epoch - 1])
        search.update({run: Progress(DONE)}, set())
    run = search.next_run()
    bad = [1.0, 12.0, 3.0, 99.0]
    train(run, 2, lambda opt, epoch: bad[epoch - 1])
    progress = {run: Progress(RUNNING)}
    assert search.update(progress, {run}) == []
    train(run, 4, lambda opt, epoch: bad[epoch - 1])
    assert search.update(progress, {run}) == [run]      # by epoch 3
    progress[run].state = LEFT
    search.update(progress, set())
    assert progress[run].state == PRUNED and search.is_over()
    result, = search_results.row_results(search)
    assert [(trial.state, trial.ended_after, trial.curve) for trial in result.trials][3:] == [
        ('done', None, good), ('ended early', 3, [1.0, 12.0, 12.0])]
    assert (result.best.number, result.best.accuracy, result.count('done')) == (1, 40.0, 4)
    assert search.summary() == 'x: 4 done, 1 ended early, 0 running, 0 failed, 0 left'


def test_failures(tmp_path):
    """A failed trial has the end of its log; a row without any success gets no more trials."""
    search = make(tmp_path, 4)
    progress, done = {}, 0
    while run := search.next_run():
        progress[run] = Progress(FAILED)
        if run.opt.distill != 'attention' and run.opt.trial[0] != '2':
            train(run, 4, accuracy)
            progress[run].state, done = DONE, done + 1
        else:
            Record(search.logs, run).log.write_text('epoch 1\nerror: the loss is NaN\n')
        search.update(progress, set())
    kd, at = search_results.row_results(search)
    assert ([trial.state for trial in kd.trials], kd.left) == (['done', 'failed', 'done', 'done'], 0)
    assert ([trial.state for trial in at.trials], at.left, at.best, at.command) == (['failed'] * 3, 0, None, None)
    assert at.trials[0].error == ['epoch 1', 'error: the loss is NaN'] and search.is_over()
    text = search_results.text([kd, at])
    assert 'failed: AT, resnet14 -> resnet8, trial 3\n    epoch 1\n    error: the loss is NaN' in text
    assert '--no_test' not in kd.command and f'--distill {kd.best.values["distill"]} ' in kd.command


def test_values_that_are_refused_together(tmp_path):
    """Such a trial has failed, and the search goes on."""
    rows = {'A': 'distill = "kd"\nsched = ["step", "cosine"]\nmin_lr = "0.001 .. 0.01"\n'}
    search = make(tmp_path, 8, path=write(tmp_path / 'x.toml', **rows))
    with pytest.raises(UserError, match='row A, resnet14 -> resnet8: --min_lr 0.001: has no effect without --sched'):
        search.check_ranges()
    work(search, lambda opt, epoch: 50.0)
    trials = search_results.row_results(search)[0].trials
    assert search.is_over() and {(trial.state, trial.values['sched']) for trial in trials} == {
        (FAILED, 'step'), (DONE, 'cosine')}
    assert 'has no effect without --sched' in trials[0].error[0]


def test_failed_trials_again(tmp_path):
    """--retry adds a trial with the values of each failed one, once, and these count in its place."""
    search = make(tmp_path, 3, path=write(tmp_path / 'x.toml', AT=ROWS['AT']))
    for state in (DONE, FAILED, FAILED):
        run = search.next_run()
        train(run, 4, accuracy)
        search.update({run: Progress(state)}, set())
    assert search.is_over()
    for _ in range(2):
        search.retry()
    values = [values for _, values, _ in outcome(search)['AT']]
    assert values[3:] == values[1:3] and search.left(search.cells[0]) == 0 and not search.is_over()
    work(search)
    assert search.is_over() and len(outcome(search)['AT']) == 5


def test_the_weights_of_ended_trials_are_removed(tmp_path):
    search = make(tmp_path, 1)
    run = search.next_run()
    train(run, 4, accuracy)
    for name in ('last.pth', 'previous.pth', 'resnet8_best.pth'):
        (run.folder / name).touch()
    search.update({run: Progress(RUNNING)}, {run})
    assert len([*run.folder.iterdir()]) == 4
    search.update({run: Progress(DONE)}, set())
    assert [file.name for file in run.folder.iterdir()] == ['history.json']


def final_of(folder, accuracy, head=HEAD, kinds=('tuned', 'published'), **rows):
    """(the final table, its runs as (row, pair) -> (method, the rest of the options), the search)."""
    search = make(folder, 6, path=write(folder / 'x.toml', head, **rows))
    work(search, accuracy)
    table, runs = make_final(search, 3, kinds, [])
    return table, {cell: run.opt for run in runs for cell in run.cells}, search


def test_the_final_table(tmp_path):
    """The best values beside the published ones of the same method, with seeds that the search has not used."""
    head = f'{HEAD}teacher_options = "--epochs 2"\nstudent_options = "--momentum 0.8"\n[rows]\nStudent = "alone"\n' \
           f'Fixed = "kd --kd_T 3"\n'
    table, options, search = final_of(tmp_path, accuracy, head, KD=ROWS['KD'].replace(', 4', ''), AT=ROWS['AT'])
    pair = 'resnet14 -> resnet8'
    best = {result.label: result.best.values for result in search_results.row_results(search)}
    assert [row.label for row in table.rows] == ['Student', 'Fixed', 'KD, tuned', 'KD, published', 'AT, tuned',
                                                 'AT, published']
    assert (table.seeds, table.teacher_seed, table.path) == ([0, 2, 3], 1, tmp_path / 'final.toml')
    tuned, published = options['KD, tuned', pair], options['KD, published', pair]
    assert (tuned.distill, tuned.kd_T, tuned.beta) == (best['KD']['distill'], best['KD']['kd_T'], best['KD']['beta'])
    assert (published.distill, published.kd_T, published.beta) == ('dkd', 4.0, 1.0)
    assert (options['AT, tuned', pair].beta, options['AT, published', pair].beta) == (best['AT']['beta'], 1000.0)
    assert options['Fixed', pair].kd_T == 3.0 and options['Student', pair].model == 'resnet8'
    assert all((opt.no_test, opt.val_fraction, opt.momentum) == (False, 0.2, 0.8) for opt in options.values())


@pytest.mark.parametrize('kinds, labels', [
    (['tuned', 'published'], ['published']), (['tuned'], ['published']), (['published'], ['published']),
    (['auto'], ['auto']), (['auto', 'tuned'], ['published', 'auto'])])
def test_the_final_table_where_the_published_values_win(tmp_path, kinds, labels):
    table, _, _ = final_of(tmp_path, lambda opt, epoch: 90 if opt.beta == 1000 else 10, kinds=kinds, AT=ROWS['AT'])
    assert [row.label for row in table.rows] == [f'AT, {label}' for label in labels]


def test_the_final_table_with_measured_weights(tmp_path):
    """-b auto replaces all other weights of a method that accepts it; the other values are the published ones."""
    head = f'{HEAD}[cells]\n"Two: resnet14 -> resnet8" = "-b 7 --kd_T 3"\n'
    rows = {'KD': 'distill = "kd"\nalpha = [0.5, 2]\n', 'AT': ROWS['AT'], 'DKD': 'distill = "dkd"\nkd_T = [2, 3]\n',
            'Two': 'distill = "attention"\nflags = "-b 5"\nlearning_rate = "0.1 .. 0.2"\n',
            'Frozen': 'distill = "attention"\nflags = "--freeze_epochs 1"\nbeta = "1 .. 9"\n'}
    table, options, _ = final_of(tmp_path, lambda opt, epoch: opt.kd_T, head, KINDS, **rows)
    auto = {label: opt for (label, _), opt in options.items() if label.endswith(', auto')}
    assert [*auto] == ['AT, auto', 'DKD, auto', 'Two, auto'] and len({opt.trial for opt in auto.values()}) == 2
    assert all(opt.beta == 'auto' and opt.learning_rate == 0.05 for opt in auto.values())
    assert (auto['AT, auto'].batch_size, auto['DKD, auto'].kd_T, auto['Two, auto'].kd_T) == (64, 4, 3)


def test_final_rows_of_several_calls(tmp_path):
    """They stay in the table; a call without any row is refused before it writes."""
    search = make(tmp_path, 3, path=write(tmp_path / 'x.toml', KD='distill = "kd"\nkd_T = [1, 2, 4]\n'))
    work(search)
    with pytest.raises(UserError, match='--final_rows auto: no row of .* has such values'):
        make_final(search, 1, ['auto'], [])
    assert not (tmp_path / 'final.toml').exists()
    make_final(search, 1, ['tuned'], [])
    table, _ = make_final(search, 1, ['published'], [])
    assert [row.label for row in table.rows] == ['KD, tuned', 'KD, published']


def test_the_final_table_of_a_net_with_a_space_in_its_path(tmp_path):
    file = tmp_path / 'my nets' / 'net.py'
    file.parent.mkdir()
    file.write_text('from models import model_dict\n\n\ndef small(num_classes):\n'
                    '    return model_dict["resnet8"](num_classes=num_classes)\n')
    head = HEAD.replace('resnet14 -> resnet8', f"resnet14 -> '{file}:small'")
    search = make(tmp_path, 1, path=write(tmp_path / 'x.toml', head, KD=ROWS['KD']))
    work(search)
    table, _ = make_final(search, 1, ['tuned', 'published'], [])
    assert table.pairs[0].student == f'{file}:small'


def test_the_final_runs_of_a_part(tmp_path):
    """Rows of other calls stay in the table; only those of this call are trained."""
    _, _, search = final_of(tmp_path, accuracy)
    _, runs = make_final(search, 1, KINDS, [])
    part = replace(search.table, rows=search.table.rows[1:])
    assert [run.name for run in final_runs(runs, part)] == ['teacher-resnet14', *(
        f'resnet14-resnet8-AT_{kind}-1' for kind in KINDS)]
    assert len(runs) == 6


def test_the_final_table_of_several_pairs(tmp_path):
    """Pairs with other values share a row; those with another method, or where the published one wins, do not."""
    pairs = ['resnet14 -> resnet8', 'resnet20 -> resnet8']
    head = HEAD.replace('["resnet14 -> resnet8"]', json.dumps(pairs))
    by_logits = ['kd', 'dkd']
    winners = {*zip(('resnet14', 'resnet20'), by_logits, strict=True)}
    rows = {'Any': f'distill = {json.dumps(by_logits)}\nkd_T = [1, 4]\n', 'AT': ROWS['AT'],
            'Two': ROWS['AT'].replace('10000', '99')}

    def by_pair(opt, epoch):
        is_first = opt.model_t == 'resnet14'
        if opt.distill != 'attention':
            return 50 - opt.kd_T if (opt.model_t, opt.distill) in winners else 10
        return 99 - opt.beta if '_Two' in opt.trial else 50 if (opt.beta == 1000) != is_first else 10
    table, options, search = final_of(tmp_path, by_pair, head, **rows)
    best = {(result.label, result.pair): result.best.values for result in search_results.row_results(search)}
    assert {*options} == {
        ('Any, tuned, kd', pairs[0]), ('Any, published, kd', pairs[0]), ('Any, tuned, dkd', pairs[1]),
        ('Any, published, dkd', pairs[1]), ('AT, tuned', pairs[0]), *(('AT, published', pair) for pair in pairs),
        *(('Two, tuned', pair) for pair in pairs)}
    for pair in pairs:
        assert options['Two, tuned', pair].beta == best['Two', pair]['beta'] < 99
        assert options['Two, tuned', pair].batch_size == best['Two', pair]['batch_size']
    assert options['Any, tuned, dkd', pairs[1]].kd_T == 1 and options['AT, published', pairs[1]].beta == 1000
    assert options['AT, tuned', pairs[0]].beta == best['AT', pairs[0]]['beta']


def test_other_best_values_after_the_final_runs(tmp_path, capsys):
    """A final run of earlier best values is moved away."""
    search = make(tmp_path, 2, path=write(tmp_path / 'x.toml', KD='distill = "kd"\nkd_T = "1 .. 3"\n'))
    work(search)
    _, runs = make_final(search, 2, KINDS, [])
    first = next(run for run in runs if run.cells and run.cells[0][0] == 'KD, tuned')
    first.folder.mkdir(parents=True)
    (first.folder / 'parameters.json').write_text(json.dumps({**values(first.opt), 'kd_T': 9.0}))
    make_final(search, 2, KINDS, [])
    assert 'row KD, tuned, resnet14 -> resnet8: the best values have changed; its earlier run is now ' in \
        capsys.readouterr().out
    assert not first.folder.exists() and len([*(tmp_path / 'final/replaced').iterdir()]) == 1


def test_another_space_in_the_folder(tmp_path):
    """More trials and rows are the same search; other ranges or options are not."""
    work(make(tmp_path, 1))
    more = write(tmp_path / 'x.toml', **ROWS, New='distill = "kd"\nalpha = "0 .. 1"\n')
    search = make(tmp_path, 2, path=more)
    work(search)
    assert [len(trials) for trials in outcome(search).values()] == [2, 2, 2]
    make(tmp_path, 2, path=more, arguments=['--num_workers', '1'])
    for path, arguments, said in (
            (write(tmp_path / 'x.toml', KD=ROWS['KD'].replace('10"', '20"')), [], 'beta log 0.1 .. 10, not log 0.1 ..'),
            (more, ['--epochs', '9'], 'epochs 4, not 9')):
        with pytest.raises(UserError, match=f'holds a search of row KD: resnet14 -> resnet8 with {said}'):
            make(tmp_path, 2, path=path, arguments=arguments)
        write(tmp_path / 'x.toml', **ROWS, New='distill = "kd"\nalpha = "0 .. 1"\n')


def test_two_processes(tmp_path):
    """Each trial is given to one of them; what an ended process has left goes to the other."""
    first, second = make(tmp_path, 2), make(tmp_path, 2)
    runs = [search.next_run() for search in (first, second, first, second)]
    assert len({run.name for run in runs}) == 4
    assert first.next_run() is None and first.is_waiting and not first.is_over()
    for *_, lock in second.claims.values():
        lock.release()
    assert {first.next_run().name for _ in range(2)} == {runs[1].name, runs[3].name}
    assert first.next_run() is None and not first.is_waiting


def test_minutes(tmp_path, monkeypatch):
    """At the end of the time the trial is told to end; it is left for the next call."""
    program = tmp_path / 'program.sh'
    program.write_text('#!/bin/sh\nexec sleep 60\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, 'executable', str(program))
    search = make(tmp_path, 1, path=write(tmp_path / 'x.toml', AT=ROWS['AT']))
    teachers = search.teacher_runs()
    monkeypatch.setattr(local, 'progress_of', lambda run, *_: Progress(DONE if run in teachers else LEFT))
    local.Local('x', search.logs, Devices('cpu', 1, None, 1), until=time.monotonic() + 1).run(teachers, search)
    run, = search.claims
    assert Record(search.logs, run).read()['code'] == -signal.SIGTERM and not Record(search.logs, run).deaths()
    assert search.summary() == 'x: 0 done, 0 ended early, 1 running, 0 failed, 0 left'


class ToySlurm(slurm.Slurm):
    """Slurm whose jobs train an epoch between two queries of the queue. Job 2 is killed in its second epoch."""

    def __init__(self, search, jobs):
        self.opt, self.name, self.logs = SimpleNamespace(jobs=jobs), 'x', search.logs
        self.signals, self.starts, self.until, self.save = [], Counter(), math.inf, search.save
        self.jobs, self.epochs, self.cancelled, self.most = {}, {}, [], 0      # self.jobs: job -> its run, in the queue
        self.is_lost = lambda run: False        # whether the jobs of a run end without it

    def _queued_jobs(self):
        return {}

    def _submit(self, waves, jobs):
        for run in [run for wave in waves for run in wave]:
            job = str(len(jobs) + 1)
            jobs[job], self.jobs[job] = [run.name], run

    def _queue(self):
        self.most = max(self.most, len(self.jobs))
        for job, run in [*self.jobs.items()]:
            if self.is_lost(run):
                del self.jobs[job]
                continue
            self.epochs[run] = self.epochs.get(run, 0) + 1
            train(run, self.epochs[run], accuracy)
            if self.epochs[run] == 4 or (job, self.epochs[run]) == ('2', 2) or job in self.cancelled:
                del self.jobs[job]
        return dict.fromkeys(self.jobs, 'None')

    def progress_of(self, run, logs):
        return Progress(DONE if self.epochs.get(run, 0) >= 4 else RUNNING if run in self.jobs.values() else LEFT)


@pytest.fixture
def run_on_toy_slurm(monkeypatch):
    """A function that runs a search on a ToySlurm."""
    def run(search, toy):
        monkeypatch.setattr(slurm, 'POLL', 0)
        monkeypatch.setattr(slurm, 'progress_of', toy.progress_of)
        monkeypatch.setattr(slurm, 'ask', lambda command, job: toy.cancelled.append(job))
        toy.run([], search)
    return run


def test_slurm_fails_a_trial_whose_jobs_end_without_it(tmp_path, run_on_toy_slurm):
    search = make(tmp_path, 3)
    toy = ToySlurm(search, 2)
    toy.is_lost = lambda run: run is next(iter(toy.starts))
    run_on_toy_slurm(search, toy)
    lost, *others = toy.starts.values()
    assert search.is_over() and lost == MAX_STARTS and sum(others) == 5 + 1     # ToySlurm kills job 2
    assert Counter(state for trials in outcome(search).values() for state, *_ in trials)[FAILED] == 1


def test_slurm(tmp_path, run_on_toy_slurm):
    """Two jobs at a time until all trials have ended; a killed one is submitted again, a hopeless one is cancelled."""
    search = make(tmp_path, 12)
    toy = ToySlurm(search, 2)
    run_on_toy_slurm(search, toy)
    states = Counter(state for trials in outcome(search).values() for state, *_ in trials)
    assert search.is_over() and states[DONE] + states[PRUNED] == 24 and states[PRUNED] and toy.most == 2
    assert sum(toy.starts.values()) == 25 and len({*toy.cancelled}) <= states[PRUNED]


@pytest.mark.parametrize('content', [b'my notes', b'my notes\n and more', bytes(20), b'{"a": 1}\n{',
                                     b'{"notes": "mine"}'])
def test_a_file_that_is_no_study_stays(tmp_path, content):
    file = tmp_path / 'study.log'
    file.write_bytes(content)
    with pytest.raises(UserError, match='study.log: no study that can be read .* move it away'):
        make(tmp_path, 1)
    assert file.read_bytes() == content


def test_an_unfinished_line_is_removed(tmp_path):
    work(make(tmp_path, 1))
    file = tmp_path / 'study.log'
    whole = file.read_bytes()
    file.write_bytes(whole + b'{"op_code": 5, "stu')
    assert make(tmp_path, 1).is_over() and file.read_bytes() == whole


def test_a_damaged_study(tmp_path):
    work(make(tmp_path, 1))
    file = tmp_path / 'study.log'
    lines = file.read_text().splitlines(keepends=True)
    for damaged in ([*lines[:3], 'x\n', *lines[3:]], [*lines, 'x\n']):
        file.write_text(''.join(damaged))
        with pytest.raises(UserError, match='study.log: no study that can be read .* move it away'):
            make(tmp_path, 1)


def test_status(call, tmp_path, monkeypatch, capsys):
    """Also before anything has begun; nothing is written."""
    monkeypatch.chdir(tmp_path)
    path = write(Path('x.toml'))
    call(tune.main, path, '--status', '--trials', 2)
    assert capsys.readouterr().out.startswith('x: 0 done, 0 ended early, 0 running, 0 failed, 4 left\n')
    assert os.listdir() == ['x.toml']
    Path('save/x').mkdir(parents=True)
    search = make(Path('save/x'), 2, path=path)
    work(search)
    call(tune.main, path, '--status', '--trials', 2)
    out = capsys.readouterr().out
    assert out.startswith('x: 4 done, 0 ended early, 0 running, 0 failed, 0 left\n')
    at = search_results.load('x.toml', Path('save/x'))[1]
    assert f'\n# AT, resnet14 -> resnet8\n{at.command}\n' in out + '\n' and at.best.accuracy == max(at.best.curve)
    assert '\n# AT, resnet14 -> resnet8\npython ' in out and study.HOPELESS not in out


def test_the_flags_of_every_run_are_noted(call, tmp_path, monkeypatch, capsys):
    """Only the command that trains needs them again."""
    monkeypatch.chdir(tmp_path)
    path = write(Path('x.toml'), KD='distill = "kd"\nalpha = [1, 2]\n')
    Path('save/x').mkdir(parents=True)
    flags = ['--epochs', '3', '--momentum=0.5']
    search = make(Path('save/x'), 2, path=path, arguments=flags)
    work(search)
    note_owner(search.table, search.save, flags)
    for arguments in ([], flags):
        call(tune.main, path, '--status', *arguments)
        assert 'x: 2 done, ' in capsys.readouterr().out
        call(report.main, 'save/x', *arguments)
        assert ' --epochs 3 --momentum=0.5' in capsys.readouterr().out
    assert search_results.load(path, Path('save/x'))[0].best.values == {'alpha': 1}
    for arguments, said in (([], 'epochs 3, not 4'), (['--epochs', 3], 'momentum 0.5, not 0.9')):
        said_now = refused(call, capsys, tune.main, path, *arguments)
        assert said_now.startswith(f'--save_dir save/x: holds a search of row KD: resnet14 -> resnet8 with {said}')
    assert flags_of(Path('save/x')) == flags


@pytest.mark.slow
def test_a_real_search(tmp_path):
    """tune.py is killed in the middle: the trials and the accuracies of the final runs are those of an undisturbed one.
    """
    head = HEAD.replace('--epochs 4', '--train_fraction 0.2 --batch_size 16 --epochs 2')
    rows = {'KD': 'distill = "kd"\nlearning_rate = "log 0.01 .. 0.1"\n',
            'AT': 'distill = "attention"\nbeta = "1 .. 9"\n'}
    found = []
    for name, kills in (('whole', 0), ('killed', 2)):
        folder = tmp_path / name
        folder.mkdir()
        path = write(folder / 'x.toml', head, **rows)
        command = [sys.executable, ROOT / 'scripts/tune.py', path, '--trials', '2', '--jobs', '1', '--gpu_id', 'cpu',
                   '--final_seeds', '1', '--save_dir', folder / 'save']
        for kill in range(kills):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            logs = folder / f'save/logs/resnet14-resnet8-{("KD", "AT")[kill]}-1.log'
            while not logs.exists() or 'epoch 1:' not in logs.read_text():
                assert process.poll() is None
                time.sleep(0.02)
            process.kill()
            process.wait()
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert 'x: 4 done, 0 ended early, 0 running, 0 failed, 0 left' in done.stdout
        results = search_results.load(path, folder / 'save')
        found.append(([(result.label, [(trial.values, trial.curve) for trial in result.trials]) for result in results],
                      (folder / 'save/final/report.csv').read_text()))
    assert found[0] == found[1]
