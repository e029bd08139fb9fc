"""A table of runs: its file, the commands, finishing the runs through all interruptions, and bad input."""
import csv
import errno
import io
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from contextlib import nullcontext, redirect_stdout
from itertools import product
from pathlib import Path
from statistics import mean, stdev
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, assert_same, forked, outcome_of, rows_of_table

import train_student
import train_teacher
from dataset.teacher_cache.layout import CACHED_OUTPUTS
from distiller_zoo import distiller_dict, get_method
from experiments import devices, local, processes, slurm
from experiments.devices import Devices, group_trials
from experiments.folder_check import check_data
from experiments.plan import plan_runs
from experiments.planned_run import select_part, waves
from experiments.progress import SILENT, Record, progress_of, seconds_left, summary
from experiments.table_file import TABLES, read_table
from helper.checkpoint import load_checkpoint, save_checkpoint, weights_checksum
from helper.cli import values
from helper.errors import UserError, nearest
from helper.run_folder import RunPaths
from models import model_dict
from options import student_options, teacher_options
from scripts import report, reproduce

PYTHON = sys.executable
MINI = {
    'title': 'Mini', 'seeds': [1, 2],
    'options': '--dataset digits --train_fraction 0.1 --epochs 2 --batch_size 16',
    'student_options': '--learning_rate 0.02',
    'auxiliary': 'resnet14: pkt -b 100', 'teacher_cache': True, 'pairs': ['resnet14 -> resnet8'],
    'rows': {'Student': 'alone', 'KD': 'kd', 'HKD': 'hkd -b 1', 'SemCKD': 'semckd -b 10'},
}
ALONE = {'rows': {'Student': 'alone', 'Other': 'alone --momentum 0.8'}, 'seeds': [1, 2, 3]}
FOLDERS = {     # of MINI's runs, from the folder of the table
    'Student': 'models/resnet8_digits_lr_0.02_decay_0.0005_trial_{}',
    'KD': 'student_model/S:resnet8_T:resnet14_digits_kd_r:1.0_a:1.0_b:0.0_{}',
    'HKD': 'student_model/S:resnet8_T:resnet14_digits_hkd_r:1.0_a:1.0_b:1.0_{}_resnet14',
    'SemCKD': 'student_model/S:resnet8_T:resnet14_digits_semckd_r:1.0_a:1.0_b:10.0_{}',
    'teacher': 'models/resnet14_digits_lr_0.05_decay_0.0005_trial_0',
    'auxiliary': 'student_model/S:resnet14_T:resnet14_digits_pkt_r:1.0_a:1.0_b:100.0_auxiliary',
}


def write_table(path: Path, without=(), **changes) -> Path:
    """MINI with changes, as a TOML file."""
    content = {key: value for key, value in {**MINI, **changes}.items() if key not in without}
    parts = {key: content.pop(key) for key in ('rows', 'cells') if content.get(key)}
    lines = [f'{key} = {json.dumps(value)}' for key, value in content.items() if key != 'rows']
    for key, part in parts.items():
        lines += [f'[{key}]', *(f'{json.dumps(name)} = {json.dumps(value)}' for name, value in part.items())]
    path.write_text('\n'.join(lines) + '\n')
    return path


def start(folder: Path, *arguments) -> subprocess.Popen:
    """reproduce.py in a session of its own, as that of a terminal; its output goes to folder/output."""
    with open(folder / 'output', 'wb') as output:
        return subprocess.Popen([sys.executable, ROOT / 'scripts/reproduce.py', *map(str, arguments)], cwd=folder,
                                stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
                                start_new_session=True)


def finish(process: subprocess.Popen, folder: Path, code: int = 0) -> str:
    """Wait for it. Returns its output."""
    assert process.wait(500) == code, (folder / 'output').read_text()
    return (folder / 'output').read_text()


def runs_of(save: Path) -> list[int]:
    """The processes of the train scripts that write there."""
    found = []
    for entry in Path('/proc').glob('[0-9]*'):
        try:
            argv = (entry / 'cmdline').read_bytes().decode(errors='replace').split('\0')
        except OSError:
            continue
        if str(save) in argv and any(word.endswith(('/train_teacher.py', '/train_student.py')) for word in argv):
            found.append(int(entry.name))
    return found


def alive(process: int) -> bool:
    try:
        return Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()[0] != 'Z'
    except OSError:
        return False


def wait_for(condition, seconds=200):
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until
        time.sleep(0.01)
    return found


def contents(folder: Path) -> dict:
    """file -> (when it was written, what it holds), of all files below a folder."""
    return {str(file.relative_to(folder)): (file.stat().st_mtime_ns, file.read_bytes())
            for file in folder.rglob('*') if file.is_file()}


def of_runs(save: Path) -> dict:
    return {name: content for name, content in contents(save).items()
            if name.startswith(('models/', 'student_model/')) and not name.endswith('.lock')}


# The commands

def commands(text):
    """[(the comment above it, the arguments of a command)] of --dry-run's output."""
    found, comment = [], None
    for line in text.splitlines():
        if line.startswith('# '):
            comment = line[2:]
        elif line:
            argv = shlex.split(line.partition('    #')[0])
            assert re.fullmatch(r'OMP_NUM_THREADS=\d+', argv[0]) and argv[1] == 'python'
            found.append((comment, argv[2:]))
    return found


def parsed(argv):
    """(the script, its options), by the script's own parser."""
    script = Path(argv[0])
    assert script.parent == ROOT and script.is_file()
    return script.stem, {'train_teacher': teacher_options, 'train_student': student_options}[script.stem](argv[1:])


@pytest.mark.parametrize('name', [pytest.param(file.stem, marks=[pytest.mark.slow] * (file.stem == 'newer_cifar100'))
                                  for file in TABLES.glob('*.toml')])
def test_dry_run(call, tmp_path, monkeypatch, capsys, name):
    """Every cell has the commands of the table, and each student learns from a checkpoint that a planned run writes."""
    monkeypatch.chdir(tmp_path)
    call(reproduce.main, name, '--dry-run', '--jobs', 1)
    assert not [*tmp_path.iterdir()]
    table, text = tomllib.loads((TABLES / f'{name}.toml').read_text()), capsys.readouterr().out
    found = [(comment, *parsed(argv)) for comment, argv in commands(text)]
    if name == 'semckd_cifar100':
        assert len(found) == 3 + 3 + 7 * 8 * 4 and text.count('    # the same run as above') == 2 * 4
    teachers = {opt.model: opt for comment, script, opt in found if comment == f'teacher {getattr(opt, "model", "")}'}
    assert {*teachers} == {pair.split()[0] for pair in table['pairs']}
    auxiliary = {comment.rpartition(' ')[2]: opt for comment, _, opt in found if comment.startswith('auxiliary')}
    has_hkd = any(row.split()[0] == 'hkd' for row in table['rows'].values())
    assert {*auxiliary} == ({*teachers} if has_hkd else set())
    for teacher, opt in auxiliary.items():
        net, argv = table['auxiliary'].split(': ')
        opt.model_t = teacher
        assert (opt.model_s, opt.distill, opt.seed) == (net, argv.split()[0], table['seeds'][0])
        assert opt.path_t == str(RunPaths.of_teacher(teachers[teacher]).best)
    for opt in teachers.values():
        assert (opt.seed, opt.trial) == (table['seeds'][0], '0')

    cells = iter(found[len(teachers) + len(auxiliary):])
    folders = {}
    for pair, (label, row) in product(table['pairs'], table['rows'].items()):
        teacher, _, student = pair.split()
        if f'{label}: {pair}' in table.get('left_out', []):
            continue
        method, *argv = f'{row} {table.get("cells", {}).get(f"{label}: {pair}", "")}'.split()
        for trial, seed in enumerate(table['seeds'], 1):
            comment, script, opt = next(cells)
            assert comment == f'{pair}, {label}'
            assert (opt.seed, opt.save_dir, opt.resume, opt.gpu_id) == (seed, f'save/{name}', 'auto', 'cpu')
            assert re.match(r'\d+', opt.trial)[0] == str(trial)
            if method == 'alone':
                assert (script, opt.model) == ('train_teacher', student)
                continue
            assert (script, opt.model_s, opt.distill) == ('train_student', student, method)
            for flag, option in (('-r', 'gamma'), ('-a', 'alpha'), ('-b', 'beta')):
                if flag in argv:       # the last one counts
                    weights = [float(value) for value in argv[-argv[::-1].index(flag)].split(',')]
                    assert getattr(opt, option) in (weights, *weights)
                elif '+' not in method:
                    assert getattr(opt, option) == get_method(method).published_options(opt)[option]
            if method == 'hkd':
                source, opt.model_t = auxiliary[teacher], auxiliary[teacher].model_s
                assert opt.path_t == str(RunPaths.of_student(source).best)
            else:
                opt.model_t = teacher
                assert opt.path_t == str(RunPaths.of_teacher(teachers[teacher]).best)
            folders.setdefault(str(RunPaths.of_student(opt).folder), []).append(comment)
    assert next(cells, None) is None
    assert all(len(found) == 1 for found in folders.values())


def test_flags_of_every_run(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    call(reproduce.main, write_table(Path('mini.toml')), '--dry-run', '--save_dir', tmp_path / 'a b', '--amp')
    found = [(comment, argv, *parsed(argv)) for comment, argv in commands(capsys.readouterr().out)]
    assert len(found) == 10 and all((opt.amp, opt.save_dir) == ('auto', str(tmp_path / 'a b')) for *_, opt in found)
    assert {opt.learning_rate for comment, *_, opt in found} == {0.02, 0.05}
    assert [comment for comment, *_, opt in found if opt.learning_rate == 0.05] == ['teacher resnet14']
    # The teacher's answers are shared where the method allows it.
    assert {opt.distill for *_, script, opt in found if script == 'train_student' and opt.teacher_cache} == {
        'kd', 'hkd', 'pkt'} & {name for name, method in distiller_dict.items()
                               if method.spec.is_cacheable(CACHED_OUTPUTS)}


@pytest.mark.parametrize('cache, with_cache', [('--cache_topk 2', {'KD'}),
                                               ('--cache_epochs 3 --cache_topk 2', {'KD', 'Mixed', 'Cut'})])
def test_a_row_whose_flags_do_not_go_with_the_cache(tmp_path, cache, with_cache):
    """It has none; the other rows have."""
    rows = {'KD': 'kd', 'Mixed': 'kd --mixup 0.2', 'Cut': 'kd --reprob 0.2', 'AT': 'attention'}
    table = write_table(tmp_path / 'mini.toml', rows=rows, seeds=[1], teacher_cache=cache)
    runs = {run.cells[0][0]: run for run in plan_runs(read_table(table), 'save', []) if run.cells}
    assert {row for row, run in runs.items() if run.opt.teacher_cache} == with_cache
    assert all((cache in shlex.join(run.arguments)) == (row in with_cache) for row, run in runs.items())


def test_two_nets_of_one_name_in_different_files(tmp_path):
    """Their runs have folders of their own."""
    for part in 'ab':
        (tmp_path / part).mkdir()
        (tmp_path / part / 'net.py').write_text('from models import model_dict\n\n\ndef small(num_classes):\n'
                                                '    return model_dict["resnet8"](num_classes=num_classes)\n')
    pairs = [f'resnet14 -> {tmp_path}/{part}/net.py:small' for part in 'ab']
    runs = plan_runs(read_table(write_table(tmp_path / 'mini.toml', pairs=pairs, seeds=[1])), 'save', [])
    assert len({run.folder for run in runs}) == len({run.name for run in runs}) == len(runs) == 2 + 2 * 4


@pytest.fixture
def whole(tmp_path):
    """(a table of two pairs, its steps)."""
    pairs = ['resnet14 -> resnet8', 'resnet20 -> resnet8']
    table = read_table(write_table(tmp_path / 'mini.toml', pairs=pairs, seeds=[7, 5, 9], left_out=[f'KD: {pairs[1]}']))
    return table, plan_runs(table, 'save', [])


@pytest.mark.parametrize('rows, pairs, seeds, names', [
    ('KD', 'resnet14->resnet8', '7', ['teacher-resnet14', 'resnet14-resnet8-KD-1']),
    ('HKD', 'resnet20 -> resnet8', '9,5', ['teacher-resnet20', 'auxiliary-resnet20-resnet14', 'resnet20-resnet8-HKD-2',
                                           'resnet20-resnet8-HKD-3']),
    ('KD, Student', None, '5', ['teacher-resnet14', 'resnet8-Student-2', 'resnet14-resnet8-KD-2']),
    (None, None, None, None)])
def test_a_part_of_a_table(whole, rows, pairs, seeds, names):
    """A run keeps its folder, and its trial is counted in the whole table."""
    table, runs = whole
    part, kept = select_part(table, runs, rows, pairs, seeds)
    assert [run.name for run in kept] == (names or [run.name for run in runs])
    assert {*kept} <= {*runs}
    assert [row.label for row in part.rows] == {'KD': ['KD'], 'HKD': ['HKD'], 'KD, Student': ['Student', 'KD'],
                                                None: [*MINI['rows']]}[rows]
    assert part.seeds == {'7': [7], '9,5': [5, 9], '5': [5], None: [7, 5, 9]}[seeds]


def test_rows_with_commas_in_their_names(tmp_path):
    rows = {'KD, tuned': 'kd', 'KD, published': 'kd -a 0.5', 'AT': 'attention'}
    table = read_table(write_table(tmp_path / 'mini.toml', rows=rows))
    part, _ = select_part(table, plan_runs(table, 'save', []), 'AT,KD,tuned', None, None)
    assert [row.label for row in part.rows] == ['KD, tuned', 'AT']
    with pytest.raises(UserError, match='^--rows KD: .* does not have it'):
        select_part(table, [], 'AT, KD', None, None)
    pairs = ['resnet14 -> timm:vit_tiny_patch16_224,patch_size=4', 'resnet14 -> resnet8']
    table = read_table(write_table(tmp_path / 'mini.toml', pairs=pairs))
    part, _ = select_part(table, [], None, pairs[0], None)
    assert [*map(str, part.pairs)] == pairs[:1]


@pytest.mark.parametrize('rows, pairs, seeds, said', [
    ('KT', None, None, '--rows KT: {} does not have it; there are: HKD, KD, SemCKD, Student'),
    (None, 'resnet8', None, '--pairs resnet8: {} does not have it; there are: resnet14 -> resnet8, resnet20 -> '
                            'resnet8'),
    (None, None, '1', '--seeds 1: {} does not have it; there are: 5, 7, 9'),
    ('KD', 'resnet20 -> resnet8', None, '--rows and --pairs: {} leaves out these cells; name others')])
def test_a_part_that_a_table_does_not_have(whole, rows, pairs, seeds, said):
    with pytest.raises(UserError, match=f'^{re.escape(said.format(whole[0].path))}'):
        select_part(*whole, rows, pairs, seeds)


def test_the_estimate_of_a_table(call, pretend, tmp_path, capsys):
    """One run of each row and pair is timed; an untrained net replaces a teacher that is not trained yet."""
    pretend('echo "$@" >> commands; hours=2; for last; do :; done\n'
            'case "$*" in *--path-t*) [ -e "$last" ] || exit 1; hours=0.5 ;; esac\n'
            'echo "{\\"hours\\": $hours, \\"classes\\": 10}"')
    write_table(Path('mini.toml'), rows={'Student': 'alone', 'KD': 'kd'}, seeds=[1, 2, 3])
    runs = pretend_runs(Path('save'))
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--dry-run', '--estimate', '--jobs', 3, '--gpu_id', 'cpu')
    assert capsys.readouterr().out.rpartition('\n\n')[2].splitlines() == [
        'row Student, resnet14 -> resnet8: 2.0 h a run, 3 left: 6.0 h',
        'row KD, resnet14 -> resnet8: 30.0 min a run, 2 left: 1.0 h',      # the teacher and a trial are done
        'estimate: 7.0 h for one run after the other; 3 at the same time: about 2.3 h']
    shutil.rmtree(runs['teacher-resnet14'].folder)
    shutil.rmtree(runs['resnet14-resnet8-KD-1'].folder)
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--dry-run', '--estimate', '--jobs', 3, '--gpu_id', 'cpu')
    assert capsys.readouterr().out.rpartition('\n\n')[2].startswith('teacher resnet14: 2.0 h a run, 1 left: 2.0 h\n')
    taught, = [line.split() for line in Path('commands').read_text().splitlines() if 'train_student' in line][1:]
    assert '--estimate' in taught and taught[-1].endswith('/teacher.pth') and not Path(taught[-1]).exists()
    assert not runs['teacher-resnet14'].folder.exists() and not Path('save/logs').exists()
    for flags, said in ((['--estimate'], 'give --dry-run too'), (['--estimate', '--dry-run', '--cluster', 'slurm'],
                                                                'leave out --cluster slurm')):
        assert refused(call, capsys, 'mini.toml', *flags) == f'--estimate: times runs on this machine; {said}'
    pretend('echo "error: no images" >&2; exit 2')
    assert refused(call, capsys, 'mini.toml', '--dry-run', '--estimate') == (
        'mini.toml: teacher resnet14: --estimate: no images')


def test_from_the_repository_the_commands_are_short(call, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    call(reproduce.main, 'digits', '--dry-run', '--jobs', 1, '--gpu_id', 'cpu', '--num_workers', 7)
    lines = [line for line in capsys.readouterr().out.splitlines() if line and line[0] != '#']
    assert all(re.match(r'OMP_NUM_THREADS=\d+ python train_(teacher|student)\.py --gpu_id cpu ', line)
               for line in lines)
    # A flag of the command line is stronger than the share of the cores that the script would give.
    assert {teacher_options(shlex.split(line, comments=True)[3:]).num_workers
            for line in lines if 'train_teacher' in line} == {7}


def test_a_fetched_teacher_is_taken(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    table = write_table(Path('mini.toml'), pairs=['resnet14 -> resnet8', 'resnet20 -> resnet8', 'vgg8 -> resnet8'],
                        fetched='save/models/{teacher}_vanilla/ckpt_epoch_240.pth')
    file = Path('save/models/resnet20_vanilla/ckpt_epoch_240.pth')
    file.parent.mkdir(parents=True)
    torch.save({'model': model_dict['resnet20'](num_classes=10).state_dict()}, file)
    call(reproduce.main, table, '--dry-run')
    found = [(comment, *parsed(argv)) for comment, argv in commands(capsys.readouterr().out)]
    assert [comment for comment, *_ in found[:5]] == [
        'teacher resnet14', 'auxiliary teacher resnet14, taught by resnet14',
        'auxiliary teacher resnet14, taught by resnet20', 'teacher vgg8',
        'auxiliary teacher resnet14, taught by vgg8']
    taught = {opt.path_t for comment, script, opt in found if script == 'train_student'
              and 'resnet20 -> ' in comment and opt.distill != 'hkd'}
    assert taught == {str(file)} and found[2][2].path_t == str(file)

    for content, said in ((b'x', f' {file}: not a PyTorch checkpoint, or cut short'),
                          ('vgg8', f': {file}: holds a vgg8; let fetched name a checkpoint of resnet20'),
                          ('vgg\n', f': {file}: holds vgg\\n: no such model; ')):
        if isinstance(content, bytes):
            file.write_bytes(content)
        else:
            save_checkpoint(file, {'model': {}, 'arch': content})
        with pytest.raises(SystemExit) as caught:
            call(reproduce.main, table, '--dry-run')
        assert caught.value.code == 2 and one_line(capsys).startswith(f'mini.toml: teacher resnet20{said}')


def test_a_fetched_teacher_may_say_what_its_name_means(tmp_path):
    """ResNet18 is ResNet18_cifar for small images."""
    save_checkpoint(tmp_path / 'ResNet18.pth', {'model': {}, 'arch': 'ResNet18_cifar'})
    table = read_table(write_table(tmp_path / 'mini.toml', pairs=['ResNet18 -> resnet8'], rows={'KD': 'kd'},
                             fetched=f'{tmp_path}/{{teacher}}.pth'))
    assert {run.opt.model_t for run in plan_runs(table, 'save', [])} == {'ResNet18_cifar'}


def test_all_rows_of_a_pair_see_images_of_one_size(tmp_path):
    """Students with a teacher take the size in its checkpoint, a student alone does not."""
    inputs = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'size': 224, 'interpolation': 'bilinear'}
    save_checkpoint(tmp_path / 'resnet14.pth', {'model': {}, 'arch': 'resnet14', 'inputs': inputs})
    changes = {'rows': {'Student': 'alone', 'KD': 'kd'}, 'fetched': f'{tmp_path}/{{teacher}}.pth'}

    def sizes(options):
        table = read_table(write_table(tmp_path / 'mini.toml', ('auxiliary', 'teacher_cache'), options=options,
                                       **changes))
        return {run.opt.image_size for run in plan_runs(table, 'save', [])}
    with pytest.raises(UserError, match='would have image_size 32, .* have 224; give --image_size 224 in options'):
        sizes('--dataset folder')
    assert sizes('--dataset folder --image_size 224') == {224} and sizes('--dataset digits') == {32}


def test_all_rows_of_a_pair_see_the_same_test_images(tmp_path):
    """A student alone needs the interpolation and the crop_pct of the initial weights of the teacher as flags."""
    weights, inputs = tmp_path / 'start.pth', {'size': 64, 'interpolation': 'bicubic', 'crop_pct': 0.95}
    save_checkpoint(weights, {'model': {}, 'arch': 'resnet14', 'inputs': inputs})

    def images(flags=''):
        table = read_table(write_table(tmp_path / 'mini.toml', ('auxiliary', 'teacher_cache'), seeds=[1],
                                       rows={'Student': 'alone', 'KD': 'kd'},
                                       options='--dataset folder --image_size 64',
                                       teacher_options=f'--initial_checkpoint {weights}', student_options=flags,
                                       pairs=['resnet14 -> resnet8']))
        return [(run.opt.interpolation, run.opt.crop_pct) for run in plan_runs(table, 'save', [])]
    for flags, option in (('', 'interpolation bicubic'), ('--interpolation bicubic', 'crop_pct 0.95')):
        with pytest.raises(UserError, match=f'row Student, .*; give --{option} in student_options'):
            images(flags)
    assert images('--interpolation bicubic --crop_pct 0.95') == [(None, None), *[('bicubic', 0.95)] * 2]
    assert images('--interpolation bilinear --crop_pct 0.875') == [(None, None)] * 3


def test_the_image_size_of_initial_weights(tmp_path):
    """Runs that start from pretrained weights are planned with the image size of these, their students too."""
    inputs = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'size': 48, 'interpolation': 'bilinear'}
    weights = tmp_path / 'start.pth'
    save_checkpoint(weights, {'model': {}, 'arch': 'resnet14', 'inputs': inputs})

    def runs(options):
        table = read_table(write_table(tmp_path / 'mini.toml', ('auxiliary',), options='--dataset folder', seeds=[1],
                                       rows={'KD': 'kd'}, pairs=['resnet14 -> resnet8'], **options))
        return [(run.opt.image_size, run.opt.initial_checkpoint) for run in plan_runs(table, 'save', [])]
    flags = f'--initial_checkpoint {weights}'
    assert runs({'teacher_options': flags}) == [(48, str(weights)), (48, None)]
    with pytest.raises(UserError, match='row KD, .*holds the weights of resnet14, but --model_s is resnet8'):
        runs({'student_options': flags})


def test_runs_wait_for_their_teacher(tmp_path):
    runs = plan_runs(read_table(write_table(tmp_path / 'mini.toml')), 'save', [])
    assert [[run.name for run in wave] for wave in waves(runs)] == [
        ['teacher-resnet14', 'resnet8-Student-1', 'resnet8-Student-2'],
        ['auxiliary-resnet14-resnet14', 'resnet14-resnet8-KD-1', 'resnet14-resnet8-SemCKD-1', 'resnet14-resnet8-KD-2',
         'resnet14-resnet8-SemCKD-2'],
        ['resnet14-resnet8-HKD-1', 'resnet14-resnet8-HKD-2']]
    assert [run.trial for run in runs] == [0, 0, 1, 1, 1, 1, 2, 2, 2, 2]


def test_a_student_of_two_pairs_with_different_flags(tmp_path):
    """Each pair has a run alone, and a log of its own; one of the same flags is shared."""
    pairs = ['resnet14 -> resnet8 --learning_rate 0.05', 'resnet20 -> resnet8 --learning_rate 0.1',
             'vgg8 -> resnet8 --learning_rate 0.05']
    runs = plan_runs(read_table(write_table(tmp_path / 'mini.toml', pairs=pairs, rows={'Student': 'alone'}, seeds=[1],
                                      student_options='')), 'save', [])
    assert {run.name: (run.opt.learning_rate, [pair for _, pair in run.cells]) for run in runs} == {
        'resnet8-Student-1': (0.05, ['resnet14 -> resnet8', 'vgg8 -> resnet8']),
        'resnet20-resnet8-Student-1': (0.1, ['resnet20 -> resnet8'])}


def test_a_net_that_teaches_itself(tmp_path):
    """Every method is given two nets when a pair is checked, also where both have one name."""
    rows = {name: name if name in ('kd', 'ctkd') else f'{name} -b 1' for name in distiller_dict if name != 'embed'}
    table = read_table(write_table(tmp_path / 'mini.toml', pairs=['resnet8 -> resnet8'], rows=rows, seeds=[1]))
    assert len(plan_runs(table, 'save', [])) == 1 + 1 + len(rows)


def test_odd_labels(tmp_path, call, capsys):
    """They stay what they are in the table, and make harmless names of files."""
    labels = ['<script>alert(1)</script>', '../../up', '温度', '$x_1$ & 5%', 'a' * 300, "it's \"so\": #1", '-r']
    rows = {label: f'kd --kd_T {i + 2}' for i, label in enumerate(labels)}
    table = read_table(write_table(tmp_path / 'odd.toml', rows=rows, seeds=[1]))
    runs = [run for run in plan_runs(table, str(tmp_path / 'save'), []) if run.cells]
    assert [run.cells[0][0] for run in runs] == labels
    for run in runs:
        for file in (Record(tmp_path / 'logs', run).log, run.folder):
            assert re.fullmatch(r'[\w.+:-]+', file.name) and len(file.name.encode()) < 250
        assert Record(tmp_path / 'logs', run).log.parent == tmp_path / 'logs'
        assert run.folder.parent == tmp_path / 'save' / 'student_model'
    assert len({run.name for run in runs}) == len({run.folder for run in runs}) == len(labels)
    (tmp_path / 'save').mkdir()
    call(report.main, tmp_path / 'odd.toml', '--save_dir', tmp_path / 'save')
    page = (tmp_path / 'save' / 'report.html').read_text()
    assert '<script>alert' not in page and '&lt;script&gt;alert(1)&lt;/script&gt;' in page
    assert r'\$x\_1\$ \& 5\%' in (tmp_path / 'save' / 'report.tex').read_text()
    assert '| &lt;script&gt;alert(1)&lt;/script&gt; |' in (tmp_path / 'save' / 'report.md').read_text()
    with open(tmp_path / 'save' / 'report.csv', newline='') as file:
        assert [line['row'] for line in csv.DictReader(file)] == labels


def test_flags_of_single_cells(tmp_path):
    """They follow the row's, for one pair alone. SimKD, which freezes a part of the student, serves several pairs."""
    table = read_table(write_table(tmp_path / 'x.toml', rows={'SimKD': 'simkd --simkd_factor 4'}, seeds=[1],
                             pairs=['resnet14 -> resnet8', 'resnet20 -> resnet8'], teacher_cache=False,
                             cells={'SimKD: resnet20 -> resnet8': '-b 2 --simkd_factor 8'}))
    runs = [run for run in plan_runs(table, str(tmp_path / 'save'), []) if run.cells]
    assert [(run.opt.beta, run.opt.simkd_factor, run.opt.trial) for run in runs] == [
        (1.0, 4, '1_SimKD'), (2.0, 8, '1_SimKD')]


# The file

def one_line(capsys) -> str:
    err = capsys.readouterr().err
    assert err.startswith('error: ') and err.endswith('\n') and err.count('\n') == 1
    return err.removeprefix('error: ').removesuffix('\n')


TEXT = 'TEXT '      # what follows is that of a file of options
BAD = {     # changes of MINI, or the text of the file -> the message, after the file's name
    'method without classes': ({'rows': {'A': 'embed'}}, 'row A embed: learns no classes, so there is no accuracy'),
    'method': ({'rows': {'A': 'kt'}}, f'row A kt: no such method; {nearest("kt", distiller_dict)}'),
    'sum': ({'rows': {'A': 'kd+kd'}}, 'row A kd+kd: names a method twice; give each once'),
    'no method': ({'rows': {'A': ' '}}, 'row A: give a method and its flags, as "kd -a 0.9", or "alone"'),
    'a row in a row': ('title = "x"\nseeds = [1]\npairs = ["a -> b"]\n[rows.A]\nb = "kd"\n',
                       'row A: is a row of a search; python scripts/tune.py mini.toml runs it'),
    'quotes': ({'rows': {'A': "kd 'x"}}, "row A: kd 'x: No closing quotation; give quotation marks in pairs, and "
                                        'no backslash at the end'),
    'NUL': ({'options': '--dataset folder --data_dir \0'},
            "options: '\\x00': give printable characters"),
    'a control character': ({'rows': {'A': 'kd --dataset \x1b[31m'}}, "row A: '\\x1b[31m': give printable characters"),
    'student': ({'pairs': ['resnet14 -> vgg88']}, 'pairs: resnet14 -> vgg88: vgg88: no such model; did you mean vgg8'),
    'teacher': ({'pairs': ['renset14 -> vgg8']}, 'pairs: renset14 -> vgg8: renset14: no such model; did you mean'),
    'arrow': ({'pairs': ['resnet14 > vgg8']},
              'pairs: resnet14 > vgg8: give a teacher and a student, as "resnet32x4 -> vgg8"'),
    'a pair that is a number': ({'pairs': [3]}, 'pairs: 3: give a teacher and a student, as "resnet32x4 -> vgg8"'),
    'two pairs': ({'pairs': ['resnet14 -> vgg8', 'resnet14  ->  vgg8']},
                  'pairs: resnet14 -> vgg8 is there twice; give each once'),
    'key': ({'epoch': 3}, 'epoch: no such key; there are: auxiliary, cells, fetched, left_out, options, pairs, '
                          'published, rows, seeds, student_options, teacher_cache, teacher_options, '
                          'teacher_seed, title'),
    'near key': ({'pair': []}, 'pair: no such key; did you mean pairs?'),
    'no rows': ({'rows': {}}, 'rows is missing or empty; give it as [rows], then lines like  KD = "kd -a 0.9"'),
    'no pairs': ({'pairs': []}, 'pairs is missing or empty; give it as ["resnet32x4 -> vgg8", "vgg13 -> vgg8"]'),
    'no title': ({'without': ['title']}, 'title is missing or empty; give it as "SemCKD, CIFAR-100"'),
    'no seeds': ({'seeds': []}, 'seeds is missing or empty; give it as [1, 2, 3, 4], one trial for each'),
    'kind of title': ({'title': 3}, 'title: give it as "SemCKD, CIFAR-100"'),
    'kind of pairs': ({'pairs': 'a -> b'}, 'pairs: give it as ["resnet32x4 -> vgg8", "vgg13 -> vgg8"]'),
    'kind of options': ({'options': ['--epochs', '3']}, 'options: give it as "--dataset cifar100 --epochs 240"'),
    'kind of cache': ({'teacher_cache': 1}, 'teacher_cache: give it as true'),
    'flags of the cache': ({'teacher_cache': '--amp'}, 'teacher_cache: give it as true, or its flags as'),
    **{f'seeds {seeds}': ({'seeds': seeds}, 'seeds: give different whole numbers from 0 to 4294967295, as '
                                            '[1, 2, 3, 4], one trial for each')
       for seeds in ([1, 1], [-1], [True], [1.0], ['1'], [2**32])},
    'left_out': ({'left_out': ['KT: resnet14 -> resnet8']},
                 'left_out: KT: resnet14 -> resnet8: give a row and a pair of this table, as '
                 '["FSP: wrn_40_2 -> wrn_40_1"]'),
    'left_out 2': ({'left_out': [3]}, 'left_out: 3: give a row and a pair of this table, as '
                                      '["FSP: wrn_40_2 -> wrn_40_1"]'),
    'all left_out': ({'rows': {'KD': 'kd'}, 'left_out': ['KD: resnet14 -> resnet8']},
                     'left_out: names every cell of the table; leave one in'),
    'published': ({'published': 'SemCKT'},
                  'published SemCKT: analysis/published.csv has no figures from it; did you mean SemCKD?'),
    'several published': ({'published': ['SemCKD', 3]}, 'published 3: analysis/published.csv has no figures from it; '),
    'cells': ({'cells': {'KT: resnet14 -> resnet8': '-b 1'}},
              'cells: KT: resnet14 -> resnet8: give a row and a pair of this table, as '),
    'cells alone': ({'cells': {'Student: resnet14 -> resnet8': '--epochs 1'}},
                    'cells: Student: resnet14 -> resnet8: give flags of a method, as '),
    'flags in cells': ({'cells': {'KD: resnet14 -> resnet8': '--seed 3'}},
                       'row KD, resnet14 -> resnet8: --seed: the program sets this flag itself; leave it out'),
    'cells that are left out': ({'cells': {'KD: resnet14 -> resnet8': '-b 1'}, 'left_out': ['KD: resnet14 -> resnet8']},
                                'cells: KD: resnet14 -> resnet8: is left out; name it in one of the two keys'),
    'auxiliary': ({'auxiliary': 'pkt -b 3'}, 'auxiliary: pkt -b 3: give a net and its method, as '
                                             '"resnet8x4_double: pkt -b 30000"'),
    "the auxiliary's net": ({'auxiliary': 'resnet15: pkt'}, 'auxiliary: resnet15: pkt: resnet15: no such model; '),
    "the auxiliary's method": ({'auxiliary': 'resnet14: pk'}, 'auxiliary pk: no such method; '),
    'the auxiliary alone': ({'auxiliary': 'resnet14: alone'}, 'auxiliary teacher resnet14, taught by resnet14: '
                                                            '--distill alone: no such method; '),
    "the auxiliary's pair": ({'auxiliary': 'vgg8: fsp'},
                             'auxiliary teacher vgg8, taught by resnet14: --distill fsp: needs layers of equal '
                             'channels; '),
    'a pair that the method cannot serve': (
        {'pairs': ['wrn_40_2 -> wrn_40_1'], 'rows': {'FSP': 'fsp'}},
        'row FSP, wrn_40_2 -> wrn_40_1: --distill fsp: needs layers of equal channels; '),
    'kdsvd': ({'pairs': ['wrn_40_2 -> wrn_40_1'], 'rows': {'KDSVD': 'kdsvd'}}, 'row KDSVD, wrn_40_2 -> wrn_40_1: '),
    'batch': ({'rows': {'RKD': 'rkd --batch_size 1'}}, 'row RKD, resnet14 -> resnet8: --batch_size 1: RKD compares the '
                                                       'images of a batch; give at least 2'),
    'flag': ({'rows': {'A': 'kd --kd-t 3'}}, 'row A, resnet14 -> resnet8: --kd-t: no such flag; did you mean'),
    'value': ({'rows': {'A': 'kd -r x'}}, 'row A, resnet14 -> resnet8: -r/--gamma: x: give a number'),
    'flag of the other script': ({'rows': {'A': 'alone -b 3'}}, 'row A, resnet14 -> resnet8: -b: no such flag; '),
    'options': ({'options': '--dataset digitz'}, 'row Student, resnet14 -> resnet8: --dataset digitz: '),
    'of teachers': ({'teacher_options': '--epochs 0'}, 'teacher resnet14: --epochs: 0: give a whole number'),
    **{f'{flag} in {place}': (change, f'{where}: {flag}: the program sets this flag itself; leave it out')
       for flag in ('--seed', '--save_dir', '--gpu_id', '--trial', '-t', '--path-t', '--resume', '-t5')
       for place, change, where in (
           ('options', {'options': f'--dataset digits {flag} 3'}, 'options'),
           ('a row', {'rows': {'A': f'kd {flag} 3'}}, 'row A, resnet14 -> resnet8'))},
    **{f'{argv} in a file of options': (
        {'student_options': f'--recipe {TEXT}{argv}'},
        f'row Student, resnet14 -> resnet8: --recipe: {argv.split()[0]}: {why}; leave it out')
       for argv, why in (('--evaluate x', 'a run with this flag trains nothing'),
                          ('--list', 'a run with this flag trains nothing'),
                          ('--resume', 'the program sets this flag itself'))},
    '--help': ({'options': '-h'}, 'options: -h: a run with this flag trains nothing; leave it out'),
    '--teacher-cache': ({'rows': {'A': 'kd --teacher-cache'}}, 'row A, resnet14 -> resnet8: --teacher-cache: give the '
                                                               'table  teacher_cache = true; leave it out'),
    '--overwrite': ({'options': '--overwrite'}, 'options: --overwrite: a table replaces no run; move its folder away '
                                                'instead; leave it out'),
    'a cache that no run can have': (
        {'student_options': '--mixup 0.2', 'rows': {'Student': 'alone', 'KD': 'kd', 'AT': 'attention'}},
        'teacher_cache: no run of the table can use it (mini.toml: row AT, resnet14 -> resnet8: '),
    '--gpu-id=0': ({'pairs': ['resnet14 -> resnet8 --gpu-id=0']},
                   'row Student, resnet14 -> resnet8: --gpu-id=0: the program sets this flag itself; leave it out'),
    'one run in two rows': ({'rows': {'A': 'kd -r 1 -b 0', 'B': 'kd -b 0.0 -r 1'}},
                            'row B, resnet14 -> resnet8: is the same run as row A; give each once'),
    'one row twice': ({'rows': {'A': 'kd --kd_T 2', 'B': 'kd  --kd_T  2'}},
                      'row B: is the same as row A; give each once'),
    'one folder for two runs': (
        {'rows': {'A b': 'kd --kd_T 2', 'A:b': 'kd --kd_T 3'}},
        'row A:b, resnet14 -> resnet8: would be written into save/mini/student_model/'
        'S:resnet8_T:resnet14_digits_kd_r:1.0_a:1.0_b:0.0_1_A_b, as row A b, resnet14 -> resnet8 with other flags; '
        'give the row another name'),
    'one log for two runs': (
        {'rows': {'A b': 'rkd -b 2', 'A:b': 'rkd -b 3'}},
        'row A:b, resnet14 -> resnet8: its log would be that of row A b, resnet14 -> resnet8; give the row another '
        'name'),
    'one student of two pairs': (
        {'pairs': ['resnet14 -> resnet8', 'resnet20 -> resnet8 --epochs 3']},
        'row Student, resnet20 -> resnet8: would be written into save/mini/models/'
        'resnet8_digits_lr_0.02_decay_0.0005_trial_1, as row Student, resnet14 -> resnet8 with other flags; leave one '
        'of the two out'),
    'a label of two lines': ({'rows': {'A\nb': 'kd'}},
                             "rows: 'A\\nb': give a name of one line of printable characters"),
    'an empty label': ({'rows': {'': 'kd'}}, "rows: '': give a name of one line of printable characters"),
    'a title of two lines': ({'title': 'a\nb'},
                             "title: 'a\\nb': give a name of one line of printable characters"),
    'the same label twice': ('title = "x"\n[rows]\nKD = "kd"\nKD = "kd"\n', 'Cannot overwrite a value (at line 4, '
                             'column 10): KD = "kd"; a table is a TOML file like those in scripts/tables'),
    'no TOML': ('title: x\n', "Expected '=' after a key in a key/value pair (at line 1, column 6): title: x; a table "
                              'is a TOML file like those in scripts/tables'),
    'binary': (b'\x89PNG\x00\xff', "'utf-8' codec can't decode byte 0x89 in position 0: invalid start byte; a table "
                                   'is a TOML file like those in scripts/tables'),
    'empty': ('', 'title is missing or empty; give it as "SemCKD, CIFAR-100"'),
    'huge': ('#' * 10**6 + '\n', 'more than 1000000 bytes; a table is a TOML file like those in scripts/tables'),
    'deep': (f'title = {"[" * 10**5}', ''),
    'a number of 5000 digits': (f'seeds = [{"9" * 5000}]', 'Exceeds the limit (4300 digits) for integer string '
                                                            'conversion'),
}


@pytest.mark.parametrize('given, said', BAD.values(), ids=BAD)
def test_bad_table(call, tmp_path, monkeypatch, capsys, given, said):
    monkeypatch.chdir(tmp_path)
    files = ['mini.toml']
    if isinstance(given, dict):
        if TEXT in given.get('student_options', ''):
            Path('flags.txt').write_text(given['student_options'].partition(TEXT)[2])
            given, files = {'student_options': '--recipe flags.txt'}, ['flags.txt', 'mini.toml']
        write_table(Path('mini.toml'), **given)
    else:
        Path('mini.toml').write_bytes(given if isinstance(given, bytes) else given.encode())
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml')
    assert caught.value.code == 2
    message = one_line(capsys)
    assert message.startswith(f'mini.toml: {said}') and len(message) <= 3000
    assert sorted(path.name for path in tmp_path.iterdir()) == files


def test_a_table_with_a_byte_order_mark(tmp_path):
    """As editors on Windows write it."""
    path = write_table(tmp_path / 'mini.toml')
    path.write_bytes(b'\xef\xbb\xbf' + path.read_bytes())
    assert read_table(path).title == 'Mini'


def test_a_path_that_is_not_a_table_file(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    os.mkfifo('fifo.toml')
    Path('folder.toml').mkdir()
    tables = ', '.join(sorted(file.stem for file in TABLES.glob('*.toml')))
    for name, said in (('fifo.toml', 'fifo.toml: is no file (a folder, a device or a pipe); give a file'),
                       ('folder.toml', 'folder.toml: is no file (a folder, a device or a pipe); give a file'),
                       ('none.toml', 'none.toml: cannot be read (No such file or directory)'),
                       ('x' * 300, f'TABLE {"x" * 300}: no such table, and not a file NAME.toml; there are: '
                                   f'{tables}'),
                       ('semckd_cifar10', 'TABLE semckd_cifar10: no such table, and not a file NAME.toml; did '
                                          'you mean semckd_cifar100 or newer_cifar100 or semckd_imagenet?')):
        for main in (reproduce.main, report.main):
            with pytest.raises(SystemExit) as caught:
                call(main, name)
            assert caught.value.code == 2 and one_line(capsys) == said
    assert sorted(path.name for path in tmp_path.iterdir()) == ['fifo.toml', 'folder.toml']


@pytest.mark.parametrize('arguments, said', [
    (['--job', '2'], '--job: no such flag; did you mean --jobs'),
    (['--kd-t=3'], '--kd-t: no such flag; '),
    (['--seed', '3'], 'the command line: --seed: the program sets this flag itself; leave it out'),
    (['-t3'], 'the command line: -t3: the program sets this flag itself; leave it out'),
    (['--epochs', '0'], 'the command line: --epochs: 0: give a whole number'),
    (['--kd-T=3'], 'the command line: --kd-T: its flags go to every run, but train_teacher.py has no such flag; give '
                   'it in the student_options of the table'),
    (['more'], 'more: belongs to no flag; a flag begins with --'),
    (['--jobs', '0'], '--jobs: 0: give a whole number'),
    (['--gpus', '2'], '--gpus 2: there is no GPU here; leave it out'),
    (['--gpus', '2', '--gpu_id', 'cpu'], '--gpus 2: --gpu_id is cpu; leave it out'),
    (['--gpu_id', '0'], '--gpu_id 0: there is no GPU 0; give cpu'),
    (['--gpu_id', ''], "--gpu_id: '': give a path; this one is empty. Is a variable not set?"),
    (['--trial_parallel', '0'], '--trial_parallel: 0: give a whole number'),
    (['--data_dir', ''], "the command line: --data_dir: '': give a path; this one is empty."),
    *(([flag, value], f'{flag}: needs --cluster slurm; give that too, or leave it out')
      for flag, value in (('--partition', 'gpu'), ('--time', '9'), ('--cpus', '2'), ('--sbatch', 'mem=1G'))),
    (['--cluster', 'cloud'], "--cluster: invalid choice: 'cloud'"),
])
def test_bad_flags(call, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    write_table(Path('mini.toml'))
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', *arguments)
    assert caught.value.code == 2 and one_line(capsys).startswith(said)
    assert [path.name for path in tmp_path.iterdir()] == ['mini.toml']


def test_flags_that_only_reproduce_has(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    for arguments, said in ((['--jobs', '2'], '--jobs: no such flag; there are: '),
                            (['--epok=2'], '--epok: no such flag; did you mean --epoch or ')):
        with pytest.raises(SystemExit) as caught:
            call(report.main, 'mini.toml', *arguments)
        message = one_line(capsys)
        assert caught.value.code == 2 and message.startswith(said)


def test_no_submitit_and_no_slurm(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as caught:
        patch.setitem(sys.modules, 'submitit', None)
        call(reproduce.main, 'mini.toml', '--cluster', 'slurm', '--status')
        assert 'mini: 0 done' in capsys.readouterr().out
        call(reproduce.main, 'mini.toml', '--cluster', 'slurm')
    assert caught.value.code == 2
    assert one_line(capsys) == '--cluster slurm: submitit is not installed; pip install submitit'
    monkeypatch.setitem(sys.modules, 'submitit', slurm)      # whether it is installed or not
    monkeypatch.setenv('PATH', str(tmp_path))
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', '--cluster', 'slurm')
    assert caught.value.code == 2
    assert one_line(capsys) == "--cluster slurm: there is no sbatch here; run this where Slurm's commands are, or " \
                               'leave it out to run on this machine'
    assert [path.name for path in tmp_path.iterdir()] == ['mini.toml']


def refuse_to_write(folder, monkeypatch):
    """As a folder that this user may not write: the tests may be run by root."""
    original = tempfile.TemporaryFile

    def make(*arguments, **settings):
        if Path(settings['dir']) == folder:
            raise PermissionError(errno.EACCES, 'Permission denied', str(folder))
        return original(*arguments, **settings)
    monkeypatch.setattr(tempfile, 'TemporaryFile', make)


def refuse_to_enter(folder, monkeypatch):
    original = os.stat

    def stat(path, *arguments, **settings):
        if not isinstance(path, int) and folder in Path(os.fsdecode(path)).parents:
            raise PermissionError(errno.EACCES, 'Permission denied', str(path))
        return original(path, *arguments, **settings)
    monkeypatch.setattr(os, 'stat', stat)


@pytest.mark.parametrize('save, refuse, said', [
    ('mini.toml', None, 'cannot write mini.toml (File exists); give a folder that you may write'),
    ('x' * 300, None, f'cannot be read (File name too long: {"x" * 300}/'),
    ('logs only', refuse_to_write, 'cannot write logs only (Permission denied); give a folder that you may write'),
    ('closed', refuse_to_enter, 'cannot be read (Permission denied: closed/'),
], ids=['a file', 'long', 'read only', 'closed'])
def test_a_folder_that_cannot_be_used(call, tmp_path, monkeypatch, capsys, save, refuse, said):
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    if refuse:
        Path(save, 'logs').mkdir(parents=True)
        refuse(Path(save), monkeypatch)
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', '--save_dir', save)
    monkeypatch.undo()
    assert caught.value.code == 2 and one_line(capsys).startswith(f'--save_dir {save}: {said}')


# Devices

def places(monkeypatch, gpus, cores=8, gpu_id=None, jobs=None, gpus_per_run=None, trial_parallel=1):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr(devices, 'cores', lambda: cores)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    return Devices(gpu_id, jobs, gpus_per_run, trial_parallel)


def test_places_on_a_cpu(monkeypatch):
    found = places(monkeypatch, 0)
    assert (found.threads, found.flags) == ('1', [['--gpu_id', 'cpu', '--num_workers', '1']] * 8)
    found = places(monkeypatch, 0, jobs=2)
    assert (found.threads, found.flags) == ('4', [['--gpu_id', 'cpu', '--num_workers', '4']] * 2)
    found = places(monkeypatch, 0, jobs=2, trial_parallel=2)
    assert (found.threads, len(found.flags)) == ('2', 2)
    found = places(monkeypatch, 0, trial_parallel=3)
    assert (found.threads, len(found.flags)) == ('1', 2)
    found = places(monkeypatch, 0, jobs=100)
    assert (found.threads, len(found.flags)) == ('1', 100)
    monkeypatch.setenv('OMP_NUM_THREADS', '3')      # exported by the user
    found = Devices('cpu', 2, None, 1)
    assert (found.threads, found.flags[0]) == ('3', ['--gpu_id', 'cpu', '--num_workers', '4'])
    for given in ({'gpu_id': 'cpu'}, {'gpus_per_run': 0}):
        assert places(monkeypatch, 4, **given).flags == [['--gpu_id', 'cpu', '--num_workers', '1']] * 8


def test_places_on_gpus(monkeypatch):
    found = places(monkeypatch, 4)
    assert (found.threads, found.flags) == (None, [['--gpu_id', str(i), '--num_workers', '2'] for i in range(4)])
    found = places(monkeypatch, 4, gpu_id='3,1', jobs=5)
    assert found.flags == [['--gpu_id', gpu, '--num_workers', '1'] for gpu in ('3', '1', '3', '1', '3')]
    found = places(monkeypatch, 5, gpus_per_run=2)
    assert found.flags == [['--gpu_id', ids, '--multiprocessing-distributed', '--num_workers', '4']
                           for ids in ('0,1', '2,3')]
    for given, said in (
            ({'gpu_id': '4'}, '--gpu_id 4: there is no GPU 4; there are 0, 1, 2, 3'),
            ({'gpu_id': '0,cpu'}, '--gpu_id 0,cpu: there is no GPU cpu; there are 0, 1, 2, 3'),
            ({'gpu_id': '1,1'}, '--gpu_id 1,1: names a GPU twice; give each once, and --jobs for several runs on one'),
            ({'gpu_id': '0,1', 'gpus_per_run': 3}, '--gpus 3: --gpu_id 0,1 names 2'),
            ({'gpus_per_run': 8}, '--gpus 8: --gpu_id 0,1,2,3 names 4'),
            ({'gpu_id': '1', 'gpus_per_run': 0}, '--gpus 0: --gpu_id 1 names GPUs; leave one of the two out'),
            ({'gpus_per_run': 2, 'trial_parallel': 2},
             '--trial_parallel 2: trials share one GPU; leave it out, or --gpus')):
        with pytest.raises(UserError, match=f'^{re.escape(said)}$'):
            places(monkeypatch, 4, **given)


def test_the_commands_of_runs_on_several_gpus(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    call(reproduce.main, write_table(Path('mini.toml')), '--dry-run', '--gpus', 2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith('python ')]
    assert len(lines) == 10
    assert {(opt.gpu_id, opt.multiprocessing_distributed) for _, opt in
            (parsed(shlex.split(line)[1:]) for line in lines)} == {('0,1', True)}


def test_a_batch_that_the_gpus_of_a_run_cannot_share(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 4)
    for rows, said in (({'KD': 'kd --batch_size 33'}, 'KD, resnet14 -> resnet8: --batch_size 33: cannot be divided'),
                       ({'RKD': 'rkd --batch_size 2'}, 'RKD, resnet14 -> resnet8: --batch_size 1: RKD compares the')):
        with pytest.raises(SystemExit) as caught:
            call(reproduce.main, write_table(Path('mini.toml'), rows=rows), '--dry-run', '--gpus', 2)
        assert caught.value.code == 2 and one_line(capsys).startswith(f'mini.toml: row {said}')


def test_trials_that_share_a_gpu(tmp_path):
    runs = plan_runs(read_table(write_table(tmp_path / 'mini.toml', seeds=[1, 2, 3])), 'save', [])
    found = [[run.name for run in group] for group in group_trials(runs, 2)]
    assert [f'resnet14-resnet8-KD-{trial}' for trial in (1, 2)] in found and ['resnet14-resnet8-KD-3'] in found
    assert ['resnet8-Student-1', 'resnet8-Student-2'] in found and ['teacher-resnet14'] in found
    assert sorted(sum(found, [])) == sorted(run.name for run in runs)
    assert [len(group) for group in group_trials(runs, 1)] == [1] * len(runs)


# Runs

def forked_run(command, *, env, stdout, **_):
    """In place of subprocess.Popen: a run of a train script that is forked, which takes seconds less."""
    main = {'train_teacher.py': train_teacher.main, 'train_student.py': train_student.main}[Path(command[1]).name]
    return forked(main, *command[2:], out=stdout.name, err=stdout.name, **env)


FORKED = SimpleNamespace(Popen=forked_run, DEVNULL=None, STDOUT=None)      # replaces the module subprocess


@pytest.fixture(scope='module')
def mini(call, tmp_path_factory):
    """A folder with mini.toml and, in 'my save:1', its table, which ran to its end without interruptions."""
    folder = tmp_path_factory.mktemp('mini')
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()) as printed:
        patch.chdir(folder)
        patch.setattr(processes, 'subprocess', FORKED)
        write_table(folder / 'mini.toml')
        call(reproduce.main, 'mini.toml', '--save_dir', 'my save:1')
    out = printed.getvalue()
    assert re.search(r'\nmini: 10 done, 0 running, 0 failed, 0 left\n(.*\n)*top-1 % ', out)
    assert out.endswith('\nreport: my save:1/report.html\n')
    assert 'mini: 0 done, ' in out.splitlines()[0]
    return folder


@pytest.fixture
def copy(mini, tmp_path, monkeypatch):
    """A copy of it, in which this process is."""
    shutil.copytree(mini, tmp_path / 'copy')
    monkeypatch.chdir(tmp_path / 'copy')
    return tmp_path / 'copy' / 'my save:1'


@pytest.fixture
def pretend(monkeypatch, tmp_path):
    """pretend(shell script): what runs instead of Python from now on."""
    def with_script(text):
        file = tmp_path / 'pretend.sh'
        file.write_text(f'#!/bin/sh\n{text}\n')
        file.chmod(0o755)
        monkeypatch.setattr(sys, 'executable', str(file))
    monkeypatch.chdir(tmp_path)
    return with_script


def json_of(folder, name):
    return json.loads((folder / name).read_text())


def test_a_table(mini):
    """The runs are those of the table, and the report has the figures of their own files."""
    save = mini / 'my save:1'
    assert sorted(str(folder.relative_to(save)) for kind in ('models', 'student_model')
                  for folder in (save / kind).iterdir()) == sorted([
                      *(FOLDERS[row].format(trial) for row in MINI['rows'] for trial in (1, 2)),
                      FOLDERS['teacher'], FOLDERS['auxiliary']])
    assert sorted(file.name for file in save.glob('report.*')) == ['report.csv', 'report.html', 'report.md',
                                                                   'report.tex']
    figures, seeds = {}, {}
    for row in MINI['rows']:
        folders = [save / FOLDERS[row].format(trial) for trial in (1, 2)]
        seeds[row] = [json_of(folder, 'parameters.json')['seed'] for folder in folders]
        best = [max(epoch['test_acc'] for epoch in json_of(folder, 'history.json')) for folder in folders]
        assert best == [json_of(folder, 'test_best_metrics.json')['test_acc'] for folder in folders]
        last = [json_of(folder, 'history.json')[-1]['test_acc'] for folder in folders]
        figures[row] = mean(best), stdev(best), mean(last), stdev(last)
    assert seeds == dict.fromkeys(MINI['rows'], [1, 2])
    assert {Path(json_of(save / FOLDERS[row].format(1), 'parameters.json')['path_t']).parent.name
            for row in ('KD', 'SemCKD')} == {Path(FOLDERS['teacher']).name}
    assert Path(json_of(save / FOLDERS['HKD'].format(2), 'parameters.json')['path_t']).parent.name == \
        Path(FOLDERS['auxiliary']).name

    with open(save / 'report.csv', newline='') as file:
        lines = {line['row']: line for line in csv.DictReader(file)}
    assert {row: tuple(float(line[key]) for key in ('best', 'best_std', 'last', 'last_std'))
            for row, line in lines.items()} == figures
    assert [(line['method'], line['teacher'], line['student'], line['trials'], line['published'])
            for line in lines.values()] == [(method, 'resnet14', 'resnet8', '2', '')
                                            for method in ('alone', 'kd', 'hkd', 'semckd')]
    page, markdown, latex = ((save / f'report.{kind}').read_text() for kind in ('html', 'md', 'tex'))
    _, *accuracies = rows_of_table(page, '<table id="accuracy"')
    _, *dots = rows_of_table(page, '<table class="dots">\n<caption><b>resnet14 -&gt; resnet8</b>')
    with_deviations = {name: said for (_, [name]), _, (_, said) in dots}
    assert len(dots) == len(figures)
    alone, ours = figures['Student'][0], figures['SemCKD'][0]
    for place, (row, (best, deviation, last, deviation_of_last)) in enumerate(figures.items()):
        text, text_of_last = f'{best:.2f} ± {deviation:.2f}', f'{last:.2f} ± {deviation_of_last:.2f}'
        (label, name), (attributes, said) = accuracies[place][:2]
        assert (label, name) == ({'scope': 'row', 'data-value': str(place)}, [row])
        assert (float(attributes['data-best']), float(attributes['data-last'])) == (best, last)
        assert said[:2] == [f'{best:.2f}', f'{last:.2f}']
        assert with_deviations[row] == [text, text_of_last]
        gain = '' if best in (ours, alone) else f'{(ours - best) / (best - alone) * 100:.2f}%' if best > alone else '–'
        assert f'| {row} | {text} | {gain} |' in markdown
        plain = f'{best:.2f} $\\pm$ {deviation:.2f}'
        higher_or_tied = [row for row, other in figures.items() if f'{other[0]:.2f}' >= f'{best:.2f}']
        assert f'{row} & ' + (rf'\textbf{{{plain}}}' if higher_or_tied == [row] else plain) in latex
    teacher = json_of(save / FOLDERS['teacher'], 'test_best_metrics.json')['test_acc']
    assert f'| Teacher | {teacher:.2f} |' in markdown
    teacher_last = json_of(save / FOLDERS['teacher'], 'history.json')[-1]['test_acc']
    names = [name for (_, [name]), *_ in accuracies]
    assert names == [*figures, 'Teacher', 'Parameters', 'Compression']
    assert accuracies[len(figures)][1] == ({}, [f'{teacher:.2f}', f'{teacher_last:.2f}'])


def test_the_logs_and_records(mini):
    logs = mini / 'my save:1' / 'logs'
    names = {f'{prefix}-{trial}' for prefix in ('resnet8-Student', 'resnet14-resnet8-KD', 'resnet14-resnet8-HKD',
                                                'resnet14-resnet8-SemCKD') for trial in (1, 2)}
    names |= {'teacher-resnet14', 'auxiliary-resnet14-resnet14'}
    assert {file.name for file in logs.iterdir()} == {f'{name}{end}' for name in names for end in ('.log', '.json')}
    for name in names:
        record, log = json_of(logs, f'{name}.json'), (logs / f'{name}.log').read_text()
        assert (record['state'], record['code'], record['slurm']) == ('ended', 0, None)
        assert re.match(r'OMP_NUM_THREADS=\d+ python /', record['command'])
        assert record['began'] < record['ended'] and 'saved in my save:1/' in log
        parsed(shlex.split(record['command'])[2:])


def test_again_nothing_is_done(call, copy, capsys):
    before, report_before = of_runs(copy), (copy / 'report.csv').read_bytes()
    call(reproduce.main, 'mini.toml', '--save_dir', copy.name)
    first, *table, last = capsys.readouterr().out.splitlines()
    assert (first, last) == ('mini: 10 done, 0 running, 0 failed, 0 left', 'report: my save:1/report.html')
    kd = mean(json.loads((copy / FOLDERS['KD'].format(trial) / 'test_best_metrics.json').read_text())['test_acc']
              for trial in (1, 2))
    rows = [line.split()[:2] for line in table if line.startswith('KD ')]       # 'KD is best' may precede the table
    assert rows[-1] == ['KD', f'{kd:.2f}']
    assert of_runs(copy) == before and (copy / 'report.csv').read_bytes() == report_before
    call(reproduce.main, 'mini.toml', '--save_dir', copy, '--status')      # by its full path it is the same
    assert capsys.readouterr().out == 'mini: 10 done, 0 running, 0 failed, 0 left\n'
    assert not runs_of(copy)


def test_what_is_lost_or_damaged_is_done_again(call, copy, capsys, monkeypatch):
    """And nothing else."""
    monkeypatch.setattr(processes, 'subprocess', FORKED)
    again = lost, damaged = copy / FOLDERS['Student'].format(2), copy / FOLDERS['SemCKD'].format(2)

    def others():
        return {name: content for name, content in of_runs(copy).items()
                if not name.startswith(tuple(str(folder.relative_to(copy)) for folder in again))}
    before, report_before = others(), (copy / 'report.csv').read_bytes()
    shutil.rmtree(lost)
    (damaged / 'history.json').write_bytes((damaged / 'history.json').read_bytes()[:100])
    (copy / 'logs' / 'resnet8-Student-2.json').write_text('[garbage')
    call(reproduce.main, 'mini.toml', '--save_dir', copy.name, '--status')
    assert capsys.readouterr().out.startswith('mini: 8 done, 0 running, 0 failed, 2 left')
    call(reproduce.main, 'mini.toml', '--save_dir', copy.name)
    assert '\nmini: 10 done, 0 running, 0 failed, 0 left\n' in capsys.readouterr().out
    assert others() == before and (copy / 'report.csv').read_bytes() == report_before


@pytest.mark.parametrize('changes, said', [
    ({'student_options': '--learning_rate 0.02 --epochs 3'},
     'auxiliary teacher resnet14, taught by resnet14: {}/student_model/S:resnet14_T:resnet14_digits_pkt_r:1.0_a:1.0_'
     'b:100.0_auxiliary holds a run with epochs 2, not 3; move it away, or give another --save_dir'),
    ({'seeds': [2, 1]}, 'teacher resnet14: {}/models/resnet14_digits_lr_0.05_decay_0.0005_trial_0 holds a run with '
                        'seed 1, not 2; move it away, or give another --save_dir'),
    ({'teacher_options': '--momentum 0.8', 'rows': {'KD': 'kd'}},
     'teacher resnet14: {}/models/resnet14_digits_lr_0.05_decay_0.0005_trial_0 holds a run with momentum 0.9, not 0.8; '
     'move it away, or give another --save_dir'),
    ({'fetched': '{teacher}.pth', 'rows': {'KD': 'kd'}},
     'row KD, resnet14 -> resnet8: {}/student_model/S:resnet8_T:resnet14_digits_kd_r:1.0_a:1.0_b:0.0_1 holds a run '
     'with the teacher my save:1/models/resnet14_digits_lr_0.05_decay_0.0005_trial_0/resnet14_best.pth, not '
     'resnet14.pth; move it away, or give another --save_dir'),
])
def test_a_table_that_has_changed(call, mini, tmp_path, monkeypatch, capsys, changes, said):
    """A folder that holds other runs is not taken for this table's, nor written into."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(mini / 'my save:1' / FOLDERS['teacher'] / 'resnet14_best.pth', 'resnet14.pth')
    write_table(Path('mini.toml'), **changes)
    before, save = contents(mini), mini / 'my save:1'
    for main, flags in ((reproduce.main, []), (reproduce.main, ['--dry-run']), (report.main, [])):
        with pytest.raises(SystemExit) as caught:
            call(main, 'mini.toml', '--save_dir', save, *flags)
        assert caught.value.code == 2 and one_line(capsys) == f'mini.toml: {said.format(save)}'
    assert contents(mini) == before


@pytest.mark.parametrize('content, said', [
    ('{"epochs": 2, "se', 'no JSON that can be read ('), ('[]', 'holds no options; '), ('{}', 'holds no options; ')])
def test_damaged_parameters(call, tmp_path, monkeypatch, capsys, content, said):
    """Nothing is started; how far the table is, and its report, can be seen."""
    monkeypatch.chdir(tmp_path)
    arguments = [write_table(Path('mini.toml')), '--save_dir', 'my save:1']
    kd = pretend_runs(Path('my save:1'))['resnet14-resnet8-KD-1'].folder
    (kd / 'parameters.json').write_text(content)
    (kd / 'last.pth').touch()
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, *arguments)
    message = one_line(capsys)
    assert caught.value.code == 2 and message.startswith('mini.toml: row KD, resnet14 -> resnet8: my save:1/')
    assert said in message and message.endswith('; delete it, and the same command writes it again')
    for main, flags in ((reproduce.main, ['--status']), (report.main, [])):
        call(main, *arguments, *flags)
        out, err = capsys.readouterr()
        assert err == message + '\n' and ('mini: 1 done, 0 running' in out or 'report: my save:1' in out)


def finished(run, **parameters) -> None:
    """What a run of two epochs leaves, but for its checkpoints."""
    run.folder.mkdir(parents=True)
    curve = [{'epoch': 1, 'test_acc': 5.0, 'seconds': 1.0}, {'epoch': 2, 'test_acc': 6.0, 'seconds': 1.0}]
    for file, content in (
            ('parameters', {**values(run.opt), 'Total params': 1.0, 'Total time': 2.0, **parameters}),
            ('history', curve), ('test_best_metrics', {'test_acc': 6.0, 'test_acc_top5': 9.0, 'epoch': 2})):
        (run.folder / f'{file}.json').write_text(json.dumps(content))


def pretend_runs(save: Path) -> dict:
    """A table in `save` whose teacher and KD-1 are finished, of nets that have not learnt: {name: step}."""
    runs = {run.name: run for run in plan_runs(read_table(Path('mini.toml')), str(save), [])}
    net = model_dict['resnet14'](num_classes=10)
    learnt_from = {'teacher (checksum)': weights_checksum(net), 'model_t': 'resnet14'}
    for name, parameters in (('teacher-resnet14', {}), ('resnet14-resnet8-KD-1', learnt_from)):
        finished(runs[name], **parameters)
        torch.save({'model': net.state_dict(), 'arch': 'resnet14', 'num_classes': 10}, runs[name].checkpoint)
    torch.save({'module': {f'student.{key}': value for key, value in net.state_dict().items()},
                'identity': {'classes': 10}}, runs['teacher-resnet14'].folder / 'last.pth')
    return runs


def refused(call, capsys, *arguments, mains=(reproduce.main,)) -> str:
    """What all of these scripts say of a table that they refuse."""
    messages = set()
    for main in mains:
        with pytest.raises(SystemExit) as caught:
            call(main, *arguments)
        assert caught.value.code == 2
        messages.add(one_line(capsys))
    message, = messages
    return message


def train_nothing(self, runs):
    """In place of local.Local.run."""
    return {run: progress_of(run, self.logs, set()) for run in runs}


def test_runs_on_a_part_of_the_same_data(tmp_path, monkeypatch):
    """A row with --train_fraction has other training images than its teacher, of the same data."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    found = pretend_runs(Path('save'))
    runs = [found['teacher-resnet14'], found['resnet14-resnet8-KD-1']]
    for number, run in enumerate(runs):
        (run.folder / 'parameters.json').write_text(json.dumps({'training images': number, 'images (checksum)': 7}))
    runs[1].opt.train_fraction = 0.5
    check_data(runs)
    (runs[1].folder / 'parameters.json').write_text(json.dumps({'images (checksum)': 8}))
    with pytest.raises(UserError, match=r'holds a run on other data than .* \(images \(checksum\) 8 and 7\)'):
        check_data(runs)


def test_runs_on_different_data(call, tmp_path, monkeypatch, capsys):
    """They are not put into one table: a teacher and its student, or two trials of a cell."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    runs = pretend_runs(Path('save'))
    teacher, kd = (runs[name].folder for name in ('teacher-resnet14', 'resnet14-resnet8-KD-1'))

    def set_parameters(folder, **parameters):
        (folder / 'parameters.json').write_text(json.dumps({**json_of(folder, 'parameters.json'), **parameters}))
    set_parameters(teacher, **{'training images': 5, 'images (checksum)': 7})
    for parameters, said in (({'images (checksum)': 8}, 'images (checksum) 8 and 7'),
                        ({'training images': 6}, 'training images 6 and 5')):
        set_parameters(kd, **{'training images': 5, 'images (checksum)': 7, **parameters})
        assert refused(call, capsys, 'mini.toml', '--save_dir', 'save', mains=(reproduce.main, report.main)) == (
            f'mini.toml: row KD, resnet14 -> resnet8: {kd} holds a run on other data than {teacher} ({said}); the data '
            f'have changed in between: move the runs on the other data away, or give another --save_dir')
    set_parameters(kd, **{'training images': 5, 'images (checksum)': 7})
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--status')
    assert capsys.readouterr().err == ''

    def run(self, runs):        # and where they change while the table runs
        set_parameters(kd, **{'images (checksum)': 9})
        return train_nothing(self, runs)
    monkeypatch.setattr(local.Local, 'run', run)
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', '--save_dir', 'save')
    out, err = capsys.readouterr()
    assert caught.value.code == 2 and 'report: save/report.html' in out and '(images (checksum) 9 and 7)' in err


def test_two_tables_in_one_folder(call, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for name in ('mini.toml', 'other.toml'):
        write_table(Path(name))
    monkeypatch.setattr(local.Local, 'run', train_nothing)
    with pytest.raises(SystemExit):
        call(reproduce.main, 'mini.toml', '--save_dir', 'save')
    capsys.readouterr()
    before = contents(tmp_path)
    assert refused(call, capsys, 'other.toml', '--save_dir', 'save', mains=(reproduce.main, report.main)) == (
        '--save_dir save: is the folder of the table mini, whose report and logs this one would replace; give each '
        'table its own folder, as save/other')
    assert contents(tmp_path) == before
    call(report.main, 'mini.toml', '--save_dir', 'save')


def test_a_run_that_can_neither_go_on_nor_begin(call, tmp_path, monkeypatch, capsys):
    """train_student.py replaces no run; so it is said before anything starts."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    kd = pretend_runs(Path('save'))['resnet14-resnet8-KD-1']
    (kd.folder / 'history.json').write_text('[')
    assert refused(call, capsys, 'mini.toml', '--save_dir', 'save') == (
        f'mini.toml: row KD, resnet14 -> resnet8: {kd.folder}: the run there cannot continue, because its last.pth '
        f'is lost; move the folder away, and the same command trains it again')


def test_a_student_that_sees_the_images_otherwise_than_its_teacher(call, tmp_path, monkeypatch, capsys):
    """The teacher is known by its weights."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'), student_options='--normalise measure')
    teacher = pretend_runs(Path('save'))['teacher-resnet14'].checkpoint
    torch.save({**torch.load(teacher, weights_only=True), 'inputs': {'mean': [0.5] * 3, 'std': [0.2] * 3, 'size': 32,
                                                                   'interpolation': 'bilinear'}}, teacher)
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--status')
    out, err = capsys.readouterr()
    assert out.startswith('mini: 2 done, 0 running, 0 failed, 8 left') and err == ''


@pytest.mark.parametrize('fault, said, shown', [
    ('moved', 'row KD, resnet14 -> resnet8: {kd} holds a run that learnt from a teacher that is no longer there, '
              '{teacher}; move it away, or put the teacher back', '1 done, '),
    ('replaced', 'row KD, resnet14 -> resnet8: {kd} holds a run that learnt from another teacher than {teacher}; move '
                 'it away, or put that teacher back', None),
    ('trained again', 'row KD, resnet14 -> resnet8: {kd} holds a run that learnt from another teacher than {teacher}; '
                     'move it away, or put that teacher back', None),
    ('damaged', 'teacher resnet14: {teacher}: not a PyTorch checkpoint, or cut '
                'short or damaged; fetch or train it again; delete it, and the same command makes it again',
     '2 done, '),
    ('another net', 'teacher resnet14: {teacher}: not the weights of resnet14: '
                    'conv1.weight (16, 3, 3, 3) is missing, and ', '2 done, '),
    ('of another epoch', 'teacher resnet14: {teacher}: test_best_metrics.json beside it is of another checkpoint '
                         '(epoch 2, not 1); delete it, and the same command makes it again', '2 done, '),
    ('lost', 'teacher resnet14: {teacher}: the weights of its best epoch are lost; move {folder} away, with those of '
             'its students, and the same command trains them again', '1 done, '),
], ids=['moved', 'replaced', 'trained again', 'damaged', 'another net', 'of another epoch', 'lost'])
def test_a_teacher_that_is_gone_or_another(call, tmp_path, monkeypatch, capsys, fault, said, shown):
    """It is said before anything starts, and the other students are not taken for this teacher's."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    runs = pretend_runs(Path('save'))
    teacher, kd = runs['teacher-resnet14'], runs['resnet14-resnet8-KD-1']
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--status')
    out, err = capsys.readouterr()
    assert out.startswith('mini: 2 done, 0 running, 0 failed, 8 left') and not err
    if fault == 'moved':
        teacher.folder.rename('away')
    elif fault in ('replaced', 'trained again'):
        other = model_dict['resnet14'](num_classes=10)
        torch.save({'model': other.state_dict(), 'num_classes': 10}, teacher.checkpoint)
        if fault == 'trained again':     # and interrupted before it was saved
            teacher.checkpoint.unlink()
            torch.save({'module': {f'student.{key}': value for key, value in other.state_dict().items()},
                        'identity': {'classes': 10}}, teacher.folder / 'last.pth')
    elif fault == 'damaged':
        teacher.checkpoint.write_bytes(b'junk')
    elif fault == 'of another epoch':
        checkpoint = load_checkpoint(str(teacher.checkpoint), '')
        save_checkpoint(teacher.checkpoint, {**checkpoint, 'epoch': 1, 'best_acc': 6.0})
    elif fault == 'another net':
        torch.save({'model': {'x': torch.zeros(1)}}, teacher.checkpoint)
    else:
        teacher.checkpoint.unlink()
        history = json_of(teacher.folder, 'history.json')
        (teacher.folder / 'history.json').write_text(json.dumps([{**history[0], 'test_acc': 6.0}, history[1]]))
    before = contents(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', '--save_dir', 'save')
    said = said.format(kd=kd.folder, teacher=teacher.checkpoint, folder=teacher.folder)
    message = one_line(capsys)
    assert caught.value.code == 2 and message.startswith(f'mini.toml: {said}') and contents(tmp_path) == before
    for main, flags in ((reproduce.main, ['--status']), (report.main, [])):
        with nullcontext() if shown else pytest.raises(SystemExit):
            call(main, 'mini.toml', '--save_dir', 'save', *flags)
        out, err = capsys.readouterr()
        assert err.removeprefix('error: ').startswith('mini.toml: ') and err.count('\n') == 1
        assert not shown or shown in out or 'report: save' in out


def test_a_teacher_that_its_last_state_brings_back(call, tmp_path, monkeypatch, capsys):
    """Its checkpoint is lost, but the run that goes on writes the same net again: its students stay done."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    runs = pretend_runs(Path('save'))
    runs['teacher-resnet14'].checkpoint.unlink()
    monkeypatch.setattr(local.Local, 'run', train_nothing)
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, 'mini.toml', '--save_dir', 'save')
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and err.startswith('not all is done; ') and out.endswith('report: save/report.html\n')


def test_failures(call, pretend, tmp_path, capsys):
    """A step that fails is said, with its last lines; the rest goes on. It is tried again when told, or mended."""
    Path('fetched').mkdir()
    torch.save({'model': model_dict['resnet14'](num_classes=10).state_dict(), 'arch': 'resnet14', 'num_classes': 10},
               'fetched/resnet14.pth')
    changes = {'seeds': [1], 'fetched': 'fetched/{teacher}.pth', 'teacher_cache': False,
               'pairs': ['resnet14 -> resnet8', 'resnet20 -> resnet8'], 'teacher_options': '--learning_rate 1e30',
               'rows': {'Student': 'alone', 'Wild': 'similarity -b 1e38'}}
    arguments = [write_table(Path('mini.toml'), **changes), '--save_dir', 'save']
    runs = {run.name: run for run in plan_runs(read_table(arguments[0]), 'save', [])}
    finished(runs['resnet8-Student-1'])
    pretend('for i in 1 2 3 4 5 6; do echo "line $i of $0"; done; echo "error: the loss diverged" >&2; exit 1')
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, *arguments)
    out, err = capsys.readouterr()
    assert caught.value.code == 1
    assert err == 'not all is done; the same command continues, with --retry also what has failed\n'
    assert 'mini: 1 done, 0 running, 2 failed, 0 left, 1 without its teacher\n' in out
    failed = re.findall(r'^failed: (\S+) \((\S+)\)\n((?:    .*\n)+)', out, re.M)
    assert [entry[:2] for entry in failed] == [(name, f'save/logs/{name}.log') for name in
                                               ('teacher-resnet20', 'resnet14-resnet8-Wild-1')]
    for name, log, lines in failed:
        last = Path(log).read_text().splitlines()[-5:]
        assert lines.splitlines() == [f'    {line}' for line in last] and 'error: ' in last[-1], name
    page = Path('save/report.html').read_text()
    assert '<span class="failed">failed</span>' in page and 'href="logs/resnet14-resnet8-Wild-1.log"' in page
    assert 'resnet20-resnet8-Wild-1: without its teacher, 0% done' in page

    sizes = {log: Path(log).stat().st_size for _, log, _ in failed}
    for flags in ([], ['--status']):
        with pytest.raises(SystemExit) if not flags else nullcontext():
            call(reproduce.main, *arguments, *flags)
        out = capsys.readouterr().out
        assert 'mini: 1 done, 0 running, 2 failed, 0 left, 1 without its teacher\n' in out
        assert out.count('failed: ') == 2 and {log: Path(log).stat().st_size for log in sizes} == sizes
    pretend('echo again; exit 1')
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, *arguments, '--retry')
    out, err = capsys.readouterr()
    assert caught.value.code == 1 and 'mini: 1 done, 0 running, 2 failed, 0 left, 1 ' in out
    assert err == 'not all is done; the same command continues\n'
    assert {log: Path(log).read_text().endswith('\nagain\n') for log in sizes} == dict.fromkeys(sizes, True)
    assert {log: Path(log).stat().st_size - size for log, size in sizes.items()} == dict.fromkeys(sizes, 6)

    # Mended, they are no longer what has failed.
    write_table(arguments[0], **changes | {'teacher_options': '', 'rows': {'Student': 'alone',
                                                                         'Wild': 'similarity -b 1'}})
    call(reproduce.main, *arguments, '--status')
    assert capsys.readouterr().out.startswith('mini: 1 done, 0 running, 0 failed, 3 left')


@pytest.mark.parametrize('fault, state, said', [
    ('weights that last.pth does not have', 'done', True), ('weights that it has', 'left', False),
    ('figures', 'left', False), ('the last epoch', 'left', False)])
def test_what_a_finished_run_has_lost(call, tmp_path, monkeypatch, capsys, fault, state, said):
    """It is resumed for what can be written again, and not where that would change a figure."""
    monkeypatch.chdir(tmp_path)
    write_table(Path('mini.toml'))
    kd = pretend_runs(Path('save'))['resnet14-resnet8-KD-1']
    if fault.startswith('weights'):
        kd.checkpoint.unlink()
        (kd.folder / 'last.pth').touch()
    else:
        file = kd.folder / ('test_best_metrics.json' if fault == 'figures' else 'history.json')
        file.write_text(json.dumps(json_of(kd.folder, 'history.json')[:1] if 'history' in file.name else {}))
    if fault == 'weights that last.pth does not have':
        (kd.folder / 'history.json').write_text(json.dumps(json_of(kd.folder, 'history.json')[::-1]))
    assert progress_of(kd, Path('save/logs')).state == state
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--status')
    lost = f'\nlost: the weights of {kd.name} ({kd.checkpoint}); its figures stay. To train them again, move the ' \
           f'folder away\n'
    assert (lost in capsys.readouterr().out) == said


# What interrupts them

def assert_same_runs(save: Path, whole: Path) -> None:
    """The runs in `save` are to the bit those of an uninterrupted table."""
    for folder in (*save.glob('models/*'), *save.glob('student_model/*')):
        assert_same(outcome_of(folder), outcome_of(whole / folder.relative_to(save)))


@pytest.fixture
def table(tmp_path):
    """(a table of MINI's runs, a folder for it); nothing of it runs on after the test."""
    save = tmp_path / 'save'
    yield write_table(tmp_path / 'mini.toml'), save
    for process in runs_of(save):
        os.kill(process, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes as Linux shows them')
def test_ctrl_c_and_kills(call, mini, table, tmp_path, capsys):
    """The same command goes on after each, and the table is in the end that of an uninterrupted one, to the bit."""
    _, save = table
    arguments = [write_table(tmp_path / 'mini.toml', seeds=[1],
                             rows={row: MINI['rows'][row] for row in ('KD', 'SemCKD')}), '--save_dir', save]
    kd, semckd = (save / FOLDERS[row].format(1) for row in ('KD', 'SemCKD'))
    shutil.copytree(mini / 'my save:1' / FOLDERS['teacher'], save / FOLDERS['teacher'])

    # From another terminal: how far it is, and no second one. Then Ctrl-C, in the middle of a student's second epoch.
    process = start(tmp_path, *arguments)
    wait_for(lambda: runs_of(save))
    call(reproduce.main, *arguments, '--status')
    assert re.fullmatch(r'mini: 1 done, (1 running, 0 failed, 1|2 running, 0 failed, 0) left\n',
                        capsys.readouterr().out)
    before = contents(save)
    with pytest.raises(SystemExit) as caught:
        call(reproduce.main, *arguments, '--retry')
    assert caught.value.code == 2 and one_line(capsys) == (
        f'--save_dir {save}: another reproduce.py is at work there; --status shows its progress')
    assert {name: content for name, content in contents(save).items() if 'logs/' not in name and name in before} == \
        {name: content for name, content in before.items() if 'logs/' not in name}
    wait_for(lambda: (kd / 'last.pth').exists() or (semckd / 'last.pth').exists())
    os.killpg(process.pid, signal.SIGINT)
    out = finish(process, tmp_path, 130)
    assert re.search(r'\nSIGINT: \d running; each saves and ends\nstopped; the same command continues\n$', out)
    assert not runs_of(save)
    logs = ''.join((save / 'logs' / f'resnet14-resnet8-{row}-1.log').read_text() for row in ('KD', 'SemCKD'))
    assert re.search(r'SIGTERM: stopped after (step \d of epoch 2|epoch \d), saved in ', logs)
    call(reproduce.main, *arguments, '--status')
    assert re.match(r'mini: \d done, 0 running, 0 failed, \d left, ready about \w+ \d\d:\d\d\n',
                    capsys.readouterr().out)

    # A run is killed: the same reproduce.py starts it again. Then reproduce.py itself: its runs save and end.
    process = start(tmp_path, *arguments)
    os.kill(wait_for(lambda: runs_of(save))[0], signal.SIGKILL)
    wait_for(lambda: '"code": -9' in ''.join(file.read_text() for file in (save / 'logs').glob('*.json'))
             or len(runs_of(save)) > 1)
    wait_for(lambda: runs_of(save))
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    wait_for(lambda: not runs_of(save), 60)

    out = finish(start(tmp_path, *arguments), tmp_path)
    assert 'mini: 3 done, 0 running, 0 failed, 0 left' in out
    assert_same_runs(save, mini / 'my save:1')
    with open(save / 'report.csv', newline='') as file:
        assert {line['row']: float(line['best']) for line in csv.DictReader(file)} == {
            row: json_of(mini / 'my save:1' / FOLDERS[row].format(1), 'test_best_metrics.json')['test_acc']
            for row in ('KD', 'SemCKD')}


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc').is_dir(), reason='looks for processes as Linux shows them')
def test_ten_kills(mini, table, tmp_path):
    """At random moments: of reproduce.py, of a run, of all."""
    path, save = table
    seed = 20260
    draw = random.Random(seed)
    print(f'random moments of seed {seed}')
    arguments, process = [path, '--save_dir', save], None
    for _ in range(10):
        process = process or start(tmp_path, *arguments)
        time.sleep(draw.uniform(0, 15))
        victim = draw.choice(['runner', 'run', 'all'])
        runs = runs_of(save)
        if victim != 'runner':
            for run in runs if victim == 'all' else runs[:1]:
                os.kill(run, signal.SIGKILL)
        if victim != 'run':
            process.kill()
            process.wait()
            wait_for(lambda: not runs_of(save), 60)
            process = None
        print(f'killed: {victim}, of {len(runs)} running')
    out = finish(process or start(tmp_path, *arguments), tmp_path)
    assert 'mini: 10 done, 0 running, 0 failed, 0 left' in out
    assert_same_runs(save, mini / 'my save:1')
    assert len([*save.glob('models/*'), *save.glob('student_model/*')]) == 10
    assert (save / 'report.csv').read_bytes() == (mini / 'my save:1' / 'report.csv').read_bytes()


# One process that starts others which only pretend to train

def run_locally(table, *, jobs=2, trial_parallel=1, cores=8, monkeypatch):
    """(steps, their states and records after local.Local has run them)."""
    runs, logs = plan_runs(table, 'save', []), Path('save/logs')
    logs.mkdir(parents=True, exist_ok=True)
    monkeypatch.setattr(devices, 'cores', lambda: cores)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    now = local.Local('mini', logs, Devices('cpu', jobs, None, trial_parallel), trial_parallel).run(runs)
    return {run.name: (now[run].state, Record(logs, run).read()) for run in runs}


def at_once(records):
    """The largest number of steps between their beginnings and ends at the same time."""
    return max(sum(other['began'] <= record['began'] < other['ended'] for other in records) for record in records)


@pytest.mark.parametrize('jobs, trial_parallel, threads, most', [(1, 1, 8, 1), (2, 1, 4, 2), (1, 3, 2, 3)])
def test_jobs(pretend, tmp_path, monkeypatch, jobs, trial_parallel, threads, most):
    pretend('echo OMP_NUM_THREADS $OMP_NUM_THREADS; echo "$@"; sleep 0.5; echo the end; exit 1')
    table = read_table(write_table(tmp_path / 'mini.toml', **ALONE))
    found = run_locally(table, jobs=jobs, trial_parallel=trial_parallel, monkeypatch=monkeypatch)
    assert {*found} == {f'resnet8-{label}-{trial}' for label in ('Student', 'Other') for trial in (1, 2, 3)}
    records = [record for _, record in found.values()]
    assert {state for state, _ in found.values()} == {'failed'} and {record['code'] for record in records} == {1}
    assert at_once(records) == most
    for name, (_, record) in found.items():
        log = Path(f'save/logs/{name}.log').read_text().splitlines()
        flags = ['--gpu_id', 'cpu', '--num_workers', str(threads)]
        assert log[0] == f'OMP_NUM_THREADS {threads}' and shlex.split(log[1])[1:5] == flags
        assert record['command'].startswith(f'OMP_NUM_THREADS={threads} python {ROOT}/train_teacher.py --gpu_id cpu ')
    if trial_parallel == 3:     # the trials of a cell
        began = {name: record['began'] for name, (_, record) in found.items()}
        assert max(began[f'resnet8-Student-{t}'] for t in (1, 2, 3)) < min(began[f'resnet8-Other-{t}']
                                                                            for t in (1, 2, 3))


@pytest.mark.parametrize('end, why', [
    ('kill -9 $$', 'ended by SIGKILL (out of memory?)'), ('kill -SEGV $$', 'ended by SIGSEGV'),
    ('exit 137', 'ended by SIGKILL (out of memory?)'), ('exit 0', 'ended without a result'),
    ('kill -TERM $$', None), ('exit 143', None)])
def test_what_never_ends_well_is_not_started_for_ever(pretend, tmp_path, monkeypatch, capsys, end, why):
    """A run that always dies has failed, and its log says how. A stop signal from outside is no failure."""
    for module in ('experiments.local', 'experiments.progress'):
        monkeypatch.setattr(f'{module}.MAX_STARTS', 2)
    pretend(f'echo here; {end}')
    found = run_locally(read_table(write_table(tmp_path / 'mini.toml', rows={'Student': 'alone'}, seeds=[1])),
                monkeypatch=monkeypatch)
    assert {name: end for name, (end, _) in found.items()} == {'resnet8-Student-1': 'failed' if why else 'left'}
    log = Path('save/logs/resnet8-Student-1.log')
    lines = [f'{why}, start {start} of 2' for start in (1, 2)] if why else []
    assert log.read_text() == (f'here\n{lines[0]}\nhere\n{lines[1]}\n' if why else 'here\nhere\n')
    said = [line for line in capsys.readouterr().out.splitlines() if not line.startswith('mini: ')]
    assert said == [f'resnet8-Student-1: {line} ({log})' for line in lines]


def test_a_second_ctrl_c(pretend, tmp_path):
    """What does not end when it is asked to is ended at once, with all that it has started."""
    pretend('trap "" TERM; sleep 600 & touch "$0.$$" "$0.$!"; wait; sleep 600')
    runs, logs = plan_runs(read_table(write_table(tmp_path / 'mini.toml', **ALONE)), 'save', []), Path('save/logs')
    logs.mkdir(parents=True)
    with subprocess.Popen(['sh', '-c', f"""
            until [ $(ls | grep -c pretend.sh.) = 4 ]; do sleep 0.05; done
            kill -INT {os.getpid()}; sleep 0.5; kill -INT {os.getpid()}
            sleep 30; touch late; kill -9 $(ls | sed -n s/pretend.sh.//p)"""], start_new_session=True) as watcher:
        with pytest.raises(SystemExit) as caught:
            local.Local('mini', logs, Devices('cpu', 2, None, 1), 1).run(runs)
        os.killpg(watcher.pid, signal.SIGKILL)
    assert caught.value.code == 130 and not Path('late').exists()
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    wait_for(lambda: not any(alive(int(file.suffix[1:])) for file in tmp_path.glob('pretend.sh.*')))
    codes = [Record(logs, run).read().get('code') for run in runs]
    assert codes.count(-9) == 2 and codes.count(None) == 4
    assert {progress_of(run, logs).state for run in runs} == {'left'}


def test_runs_end_with_what_started_them(pretend, tmp_path):
    """Also when that is killed: the system tells them, and they save."""
    pretend('trap "echo saved; exit" TERM; touch "$0.$$"; while :; do sleep 0.05; done')
    script = 'import sys; sys.path.insert(0, sys.argv.pop(1)); executable = sys.argv.pop(1); ' \
             'from scripts import reproduce; sys.executable = executable; reproduce.main()'
    table = write_table(tmp_path / 'mini.toml', **ALONE)
    process = subprocess.Popen([PYTHON, '-c', script, ROOT, sys.executable, table, '--save_dir', 'save', '--jobs', '2',
                                '--gpu_id', 'cpu'], stdout=subprocess.DEVNULL)
    runs = wait_for(lambda: len(found := [*tmp_path.glob('pretend.sh.*')]) == 2 and found)
    process.kill()
    process.wait()
    wait_for(lambda: not any(alive(int(file.suffix[1:])) for file in runs), 30)
    assert [log.read_text() for log in Path('save/logs').glob('*.log')] == ['saved\n'] * 2


@pytest.mark.parametrize('said', [BrokenPipeError(), OSError(5, 'Input/output error')])
def test_a_terminal_that_is_gone(pretend, tmp_path, monkeypatch, said):
    """The runs are asked to save, not killed, also where nothing can be printed any more."""
    pretend('trap "echo saved; exit 143" TERM; echo began; while :; do sleep 0.05; done')
    runs, logs = plan_runs(read_table(write_table(tmp_path / 'mini.toml', **ALONE)), 'save', []), Path('save/logs')
    logs.mkdir(parents=True)

    def show(*_):
        wait_for(lambda: len([log for log in logs.glob('*.log') if log.read_text() == 'began\n']) == 2)
        raise said
    monkeypatch.setattr(local, 'summary', show)
    with pytest.raises(OSError) as caught:
        local.Local('mini', logs, Devices('cpu', 2, None, 1), 1).run(runs)
    assert caught.value is said
    assert [log.read_text() for log in logs.glob('*.log')] == ['began\nsaved\n'] * 2
    assert [Record(logs, run).read().get('code') for run in runs] == [143, 143, None, None, None, None]


# How far it is

def test_the_state_of_a_run(tmp_path):
    runs, logs = plan_runs(read_table(write_table(tmp_path / 'mini.toml')), str(tmp_path / 'save'), []), tmp_path
    teacher = next(run for run in runs if run.name == 'teacher-resnet14')
    student = next(run for run in runs if run.name == 'resnet14-resnet8-HKD-1')
    record = Record(logs, teacher)

    def states():
        return [progress_of(run, logs).state for run in (teacher, student.teacher_run, student)]
    assert states() == ['left', 'left', 'left'] and record.read() == {}
    record.begin('python x')
    assert states() == ['running', 'left', 'left'] and record.read()['command'] == 'python x'
    assert progress_of(teacher, logs, set()).state == 'left'
    os.utime(record.path, (time.time() - SILENT - 1,) * 2)       # its worker has given no sign of life
    assert states() == ['left', 'left', 'left']
    record.beat()
    assert states() == ['running', 'left', 'left']
    for code, state in ((1, 'failed'), (2, 'failed'), (-9, 'left'), (143, 'left'), (0, 'left'), (1, 'failed')):
        record.end(code)
        assert states() == [state, *['left' if state == 'left' else 'without its teacher'] * 2]
    record.log.write_text('a\r\n\n10%\r50%\r\x1b[31mb\n' + 'x' * 400 + '\n', newline='')
    assert record.last_lines() == ['a', '\\x1b[31mb', 'x' * 300]
    record.path.unlink()
    assert states() == ['left', 'left', 'left']

    folder = teacher.folder
    folder.mkdir(parents=True)
    for history in ('[', '{}', '[3, null, {"seconds": "2"}, {"seconds": NaN}]', 'null'):
        (folder / 'history.json').write_text(history)
        assert progress_of(teacher, logs).part == 0
    (folder / 'history.json').write_text('[{"seconds": 1.5}]')
    assert (progress_of(teacher, logs).part, progress_of(teacher, logs).seconds) == (0.5, 1.5)
    for parameters in ('[', '[]', '{"Total time": 3}', '{"Total time": "3"}'):
        (folder / 'parameters.json').write_text(parameters)
        (folder / 'resnet14_best.pth').touch()
        assert progress_of(teacher, logs).state == 'left'


def test_the_time_that_is_left(tmp_path):
    """By what others of the same nets and method took, else by other students or teachers."""
    runs = plan_runs(read_table(write_table(tmp_path / 'mini.toml')), str(tmp_path / 'save'), [])
    now = {run: progress_of(run, tmp_path, set()) for run in runs}
    by_name = {run.name: now[run] for run in runs}
    assert seconds_left(now, 2) is None and summary('mini', now, 2) == 'mini: 0 done, 0 running, 0 failed, 10 left'
    by_name['teacher-resnet14'].__init__('done', 1.0, 40.0)
    assert seconds_left(now, 2) is None     # nothing is known of a student
    by_name['resnet8-Student-1'].__init__('done', 1.0, 30.0)
    assert seconds_left(now, 1) == 40 + 7 * 30      # the auxiliary teacher as the teacher
    by_name['resnet14-resnet8-KD-1'].__init__('running', 0.5, 50.0)
    # the auxiliary teacher 40, Student 2 30, KD's other half 50, KD 2 100, and four others the mean of 30 and 100
    assert seconds_left(now, 2) == (40 + 30 + 50 + 100 + 4 * 65) / 2
    assert seconds_left(now, 100) == 100        # no faster than the longest
    for name in ('resnet14-resnet8-HKD-1', 'resnet14-resnet8-HKD-2'):
        by_name[name].state = 'without its teacher'
    by_name['auxiliary-resnet14-resnet14'].state = 'failed'
    assert seconds_left(now, 1) == 30 + 50 + 100 + 2 * 65
    text = summary('mini', now, 1)
    assert re.fullmatch(r'mini: 2 done, 1 running, 1 failed, 4 left, 2 without its teacher, ready about '
                        r'[A-Z][a-z]{2} \d\d:\d\d', text)
    until = time.localtime(time.time() + 310)
    assert text.endswith((time.strftime('%a %H:%M', until), time.strftime('%a %H:%M', time.localtime(
        time.time() + 309))))


@pytest.mark.parametrize('seconds', [1e300, 1e308, -1e300, -3.0])
def test_odd_seconds(call, tmp_path, monkeypatch, capsys, seconds):
    """Those of a file that was changed or damaged stop neither --status nor the report."""
    monkeypatch.chdir(tmp_path)
    runs = plan_runs(read_table(write_table(Path('mini.toml'), **ALONE)), 'save', [])
    for run in runs[:3]:
        run.folder.mkdir(parents=True)
        (run.folder / 'history.json').write_text(json.dumps([{'seconds': seconds}]))
    call(reproduce.main, 'mini.toml', '--save_dir', 'save', '--status')
    assert capsys.readouterr().out == 'mini: 0 done, 0 running, 0 failed, 6 left\n'
    call(report.main, 'mini.toml', '--save_dir', 'save')
    assert capsys.readouterr().out.endswith('report: save/report.html\n')
