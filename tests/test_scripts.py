"""The two train scripts and compare.py, from the command line to the files they leave."""
import io
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import few, flags_of_methods, options, write_images
from matplotlib.backends.backend_agg import FigureCanvasAgg

import train_student
import train_teacher
from analysis import published
from analysis.estimate import Timer
from analysis.runs import experiment_labels, group_trials, original_teacher
from distiller_zoo import distiller_dict, task
from helper import cli, records
from helper import run as run_module
from helper.checkpoint import load_checkpoint
from helper.cli import current_options
from helper.errors import UserError
from helper.run_folder import RunPaths
from models import model_dict, model_names
from options import student_options, teacher_options
from scripts import compare, write_docs

ROOT = Path(__file__).resolve().parents[1]
README_COMMAND = ('--path_t ./save/models/resnet32x4_vanilla/ckpt_epoch_240.pth --distill semckd '
                  '--model_s resnet8x4 -r 1 -a 1 -b 400 --trial 0')

WITH_CLASSES = [name for name, method in distiller_dict.items() if method.spec.learns_classes]


def read(path):
    return json.loads(path.read_text())


def weights(path):
    return load_checkpoint(str(path), '')['model']


def test_defaults():
    opt = student_options(['--path-t', 'x'])
    expected = {
        'path_t': 'x', 'print_freq': 200, 'batch_size': 64, 'num_workers': len(os.sched_getaffinity(0)),
        'epochs': 240, 'gpu_id': '0',
        'learning_rate': 0.05, 'lr_decay_epochs': [150, 180, 210], 'lr_decay_rate': 0.1, 'weight_decay': 5e-4,
        'momentum': 0.9, 'nesterov': False,
        'dataset': 'cifar100', 'model_s': 'resnet8', 'distill': 'kd', 'trial': '1', 'gamma': 1.0,
        'alpha': 1.0, 'beta': 0.0, 'kd_T': 4.0, 'deterministic': False, 'skip_validation': False, 'data_dir': './data',
        'use_lmdb': False, 'dali': None, 'skip_bad_images': False, 'evaluate': None,
        'feat_dim': 128, 'mode': 'exact', 'nce_k': 16384, 'nce_t': 0.07, 'nce_m': 0.5, 'hint_layer': 1,
        'transform_layer_t': [], 'transform_layer_s': [], 'no_edge_transform': False, 'hkd_initial_weight': 100.0,
        'hkd_decay': 0.7, 'init_epochs': 30, 'image_size': 32, 'save_dir': './save', 'channels_last': True,
        'train_fraction': 1.0, 'seed': opt.seed, 'flags': opt.flags, 'init_learning_rate': None,
        'multiprocessing_distributed': False,
        'dist_url': 'tcp://127.0.0.1:23451', 'dist_timeout': 600, 'sync_bn': False, 'amp': None, 'resume': None,
        'save_every': 0.0, 'compile': False, 'fast': False, 'teacher_cache': None, 'wandb': None,
        'dot_delta': None, 'loss_warmup_epochs': None, 'kl_warmup_epochs': None, 'logit_stand': False,
        'entropy_weights': False, 'entropy_T': None, 'entropy_bound': None, 'dist_beta': 1.0,
        'dist_gamma': 1.0, 'nkd_gamma': None, 'ttm_exponent': 0.1, 'wttm_exponent': 0.2, 'dkd_alpha': 1.0,
        'dkd_beta': None, 'rld_alpha': 1.0, 'rld_beta': None, 'rld_alpha_T': 1.0, 'skd_tikhonov': 0.1,
        'wkdl_weight': None, 'wkdl_decay_from': None, 'wkdl_cost': 'cka', 'simkd_factor': 2, 'cat_resolution': None,
        'cat_normalize': False, 'sdd_base': 'kd', 'sdd_scales': None, 'ctkd_base': 'kd', 'ctkd_loops': None,
        'teacher_weights': None, 'checkpoint_key': None, 'mean_t': None, 'std_t': None, 'size_t': None,
        'interpolation_t': None, 'model_t': None, 'stages': None, 'stages_t': None, 'ofa_gamma': None,
        'abkd_base': 'kd', 'ab_alpha': None,
        'ab_beta': None, 'ldrld_alpha': 10.5, 'ldrld_beta': 7.0, 'ldrld_k': None, 'luminet_alpha': None,
        'tekap_count': 3, 'tekap_strength': 0.1, 'tekap_weight': 0.8, 'recipe': None, 'opt': 'sgd',
        'sched': 'step', 'warmup_epochs': 0, 'warmup_lr': 1e-5, 'min_lr': 0.0, 'poly_power': 0.9,
        'clip_grad': None, 'grad_accum': 1,
        'smoothing': 0.0, 'mixup': 0.0, 'cutmix': 0.0, 'bce_loss': False, 'drop_path': 0.0, 'model_ema': None,
        'model_ema_warmup': False, 'aa': None, 'reprob': 0.0, 'balance_classes': False,
        'normalise': None, 'crop': None, 'scale': [0.08, 1.0], 'ratio': [3 / 4, 4 / 3], 'hflip': 0.5, 'vflip': 0.0,
        'color_jitter': 0.0, 'train_interpolation': 'bilinear', 'images_in': 'auto', 'estimate': False,
        'overwrite': False,
        'same_classes': False, 'fit': 'crop', 'max_pixels': 178956970, 'split': None,
        'val_fraction': None, 'patience': None, 'pretrained': False, 'initial_checkpoint': None, 'freeze_epochs': 0,
        'layer_decay': 1.0, 'backbone_lr': 1.0, 'interpolation': None, 'crop_pct': None, 'no_test': False,
        'grad_checkpointing': False, 'shard_cache_gb': 100.0, 'cache_epochs': None, 'cache_topk': None, 'cache_seed': 0,
        'unlabelled': None, 'unlabelled_batch': None, 'embed_map': 0.0, 'teacher_head': None, 'qat': False}
    others = vars(opt).keys() - expected.keys()
    assert {name: vars(opt)[name] for name in expected} == expected and others <= flags_of_methods()
    assert opt.flags.filled_in == ['seed', 'num_workers'] and {'epochs', 'seed', 'trial'} < opt.flags.may_differ
    assert opt.flags.defaults['lr_decay_epochs'] == [150, 180, 210] and 'learning_rate' not in opt.flags.may_differ
    assert opt.flags.given == {'path_t'}
    opt = teacher_options([])
    assert (opt.model, opt.save_freq, opt.trial, opt.learning_rate) == ('resnet110', 40, '0', 0.05)


def test_which_flags_are_given(tmp_path):
    (tmp_path / 'recipe.txt').write_text('--sched cosine --model_ema')
    opt = student_options(['--path_t', 'x', '--kd_T=4.0', '-b', '0', '--no-channels_last', '--recipe',
                           str(tmp_path / 'recipe.txt')])
    assert opt.flags.given == {'path_t', 'kd_T', 'beta', 'channels_last', 'recipe', 'sched', 'model_ema'}


@pytest.mark.parametrize('flags, words', [
    ('--lr_decay_epochs 30 60 90', '60: belongs to no flag; separate its values with commas: '
                                   '--lr_decay_epochs 30,60,90'),
    ('-b 45 0.8', '0.8: belongs to no flag; separate its values with commas: --beta 45,0.8'),
    ('--batch_size=60 --epochs 30 60', '60: belongs to no flag; --epochs takes one value: passes over the training'),
    ('--gpu_id 0 1', '1: belongs to no flag; --gpu_id takes one value: the GPU to train on, or a list with commas'),
    ('--fast yes', 'yes: belongs to no flag; --fast takes no value'),
    ('--lr 0.1', '--lr: no such flag; here it is --learning_rate'),
    ('-j 4', '-j: no such flag; here it is --num_workers'),
    ('--weight-decay 0 --Arch=x', '--Arch=x: no such flag; here it is --model_s'),
    ('--wandb-project x', '--wandb-project: no such flag; here it is --wandb'),
    ('--distill kd --dkd_beta 3', '--dkd_beta 3.0: --distill kd does not use it; it goes with dkd, ctkd, sdd, abkd'),
    ('--distill rkd+pkt --nce_k 3', '--nce_k 3: --distill rkd+pkt does not use it; it goes with crd'),
    ('--distill kd --init_epochs 3', '--init_epochs 3: --distill kd does not use it; it goes with'),
    ('-b -1,2', '-b -1.0,2.0: --distill kd has one loss; give one weight'),
    ('-r 0 --smoothing 0.1', '--smoothing 0.1: has no effect without a cross-entropy, which -r 0 leaves out'),
    ('--distill simkd --bce_loss', '--bce_loss: has no effect without a cross-entropy, which -r 0 leaves out'),
    ('--distill rkd -a 0 --kd_T 2', '--kd_T 2.0: --distill rkd has no soft labels here; give -a 1, or leave it out'),
    ('--distill rkd+kd -b 1,0 --kd_T 2', '--kd_T 2.0: --distill rkd+kd has no soft labels here; give kd a weight, or'),
    ('--distill ctkd --kd_T 2', '--kd_T 2.0: --distill ctkd learns its temperature; leave it out'),
    ('--distill abkd --dkd_beta 2', '--dkd_beta 2.0: has no effect without --abkd_base dkd; leave it out'),
    ('--distill sdd --dkd_alpha 2', '--dkd_alpha 2.0: has no effect without --sdd_base dkd; leave it out'),
    ('--distill irg --no_edge_transform', '--no_edge_transform: has no effect without --transform_layer_t; leave it'),
    ('--distill embed --stages 1,2', '--stages 1,2: --distill embed reads no stages of this net; it goes with hint, '),
    ('--distill ofa --stages_t 1,2', '--stages_t 1,2: --distill ofa reads no stages of this net; it goes with hint, '),
    ('-b 256', '-b 256: --distill kd has no loss of its own to weight; -a is the weight of the soft labels, '
               '--batch_size the images a step; give -b 0, or leave it out')])
def test_words_and_flags_that_do_not_fit(flags, words):
    with pytest.raises(UserError) as caught:
        student_options(['--path-t', 'x', *flags.split()])
    assert str(caught.value).startswith(words)


def test_flags_that_a_method_shares():
    for flags in ('--distill sdd --sdd_base dkd --dkd_beta 3', '--distill rkd+crd --nce_k 3 -b 1,1',
                  '--distill ctkd -b 0', '--distill abound --init_epochs 3', '--distill fsp -r 1 -a 1 -b 50',
                  '--distill kd -r 0.1 -a 0.9 -b 0', '--distill simkd --smoothing 0', '--distill ofa --stages 1,2',
                  '--distill abkd+dkd --dkd_beta 3', '--distill ctkd+kd --kd_T 2', '--distill ttm+kd --kd_T 2',
                  '--distill skd --kd_T 2', '--distill rkd+crd -b -1,2'):
        student_options(['--path-t', 'x', *flags.split()])


def test_flags_take_both_spellings():
    opt = student_options(shlex.split(README_COMMAND))
    assert (opt.path_t, opt.distill, opt.model_s, opt.gamma, opt.alpha, opt.beta, opt.trial) == (
        './save/models/resnet32x4_vanilla/ckpt_epoch_240.pth', 'semckd', 'resnet8x4', 1.0, 1.0, 400.0, '0')
    opt = student_options(['--path-t=x', '--batch-size', '7', '--skip_validation', '--lr-decay-epochs=3,4',
                           '--no_channels_last', '--model-s', 'ShuffleV1', '--distill', 'semckd', '--print_freq', '9'])
    assert (opt.path_t, opt.batch_size, opt.skip_validation, opt.lr_decay_epochs) == ('x', 7, True, [3, 4])
    assert (opt.channels_last, opt.learning_rate, opt.beta, opt.print_freq) == (False, 0.01, 400.0, 9)
    assert student_options(['--path-t', 'x', '--distill', 'semckd', '-b', '0']).beta == 0.0
    assert student_options(['--path-t', 'x', '--deterministic']).seed == 12345


def test_teacher_outputs(call, small, tmp_path, capfd):
    arguments = ['--model', 'resnet8', '--save_dir', tmp_path, *small, '--epochs', 2, '--save_freq', 2, '-t', 'x',
                 '--print-freq', 2]
    call(train_teacher.main, *arguments, '--estimate')
    estimate = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert not list(tmp_path.iterdir())
    call(train_teacher.main, *arguments)
    folder = tmp_path / 'models' / 'resnet8_folder_lr_0.05_decay_0.0005_trial_x'
    assert sorted(p.name for p in folder.iterdir()) == [
        '.lock', 'ckpt_epoch_2.pth', 'history.json', 'last.pth', 'parameters.json', 'previous.pth', 'resnet8_best.pth',
        'test_best_classes.json', 'test_best_metrics.json', 'test_last_metrics.json']
    best, last = (load_checkpoint(str(folder / f), '') for f in ('resnet8_best.pth', 'ckpt_epoch_2.pth'))
    assert set(best) == {'epoch', 'model', 'best_acc', 'optimizer', 'arch', 'num_classes', 'inputs', 'classes',
                         'format_version', 'split', 'normalisation', 'val_fraction', 'chosen_on'}
    assert (last['epoch'], best['arch'], best['num_classes']) == (2, 'resnet8', 4)
    metrics, parameters = read(folder / 'test_best_metrics.json'), read(folder / 'parameters.json')
    assert set(metrics) == {'test_loss', 'test_acc', 'test_acc_top5', 'epoch'} and metrics['test_acc_top5'] == 100
    assert metrics['test_acc'] == best['best_acc'] and metrics['epoch'] == best['epoch']
    count = sum(v.numel() for k, v in best['model'].items() if 'running' not in k and 'num_batches' not in k)
    assert parameters['Total params'] == pytest.approx(count / 1e6) and 0 < parameters['Total time'] < 600
    assert (parameters['model'], parameters['epochs'], parameters['seed']) == ('resnet8', 2, 1)
    assert [e['epoch'] for e in read(folder / 'history.json')] == [1, 2]
    out = capfd.readouterr().out
    assert 'epoch 1 [2/3]  loss ' in out and 'images/s' in out and 'best top-1' in out
    files = [*folder.iterdir(), *(tmp_path / 'tensorboard' / folder.name).iterdir()]
    assert estimate['disk_bytes'] == pytest.approx(sum(file.stat().st_size for file in files), rel=0.05)
    assert estimate['teacher_cache_bytes'] == 0
    assert estimate['hours'] * 3600 == pytest.approx(2 * estimate['seconds_per_epoch']) and estimate['epochs'] == 2
    assert scalar_tags(tmp_path / 'tensorboard' / folder.name) == (
        {'train_acc', 'train_loss', 'test_acc', 'test_loss', 'test_acc_top5', 'lr'}, set())


def test_an_estimate_of_two_stages_and_of_the_cache(call, small, teacher, tmp_path, capfd):
    arguments = ['--path-t', teacher, '--save_dir', tmp_path, *small, '--estimate']
    call(train_student.main, *arguments, '--distill', 'fsp', '--init_epochs', 1000)
    *words, found = capfd.readouterr().out.splitlines()
    found = json.loads(found)
    assert found['hours'] * 3600 > 100 * found['seconds_per_epoch'] and 's before the first epoch' in words[-3]
    call(train_student.main, *arguments, '--distill', 'pkt', '--teacher_cache', '--skip-validation')
    *words, found = capfd.readouterr().out.splitlines()
    slots = 162 * 48        # of each a checksum, in whole blocks after a header, and 4 logits or an embedding of 64
    assert json.loads(found)['teacher_cache_bytes'] == 2 * (4096 + 8 * 4096) + slots * 4 * (4 + 64)
    assert words[-1].endswith("MB, and 2.19 MB of the teacher's cache when it is full")
    assert not list(tmp_path.iterdir())


def test_the_first_steps_do_not_count_in_an_estimate():
    timer = Timer(torch.device('cpu'))
    timer.marks = [(0, 10.0), (1, 20.0), (2, 21.0), (3, 22.0), (4, 22.5), (6, 23.5)]
    assert timer.seconds_per_batch() == 0.5
    timer.marks = timer.marks[:2]       # where there are no others
    assert timer.seconds_per_batch() == 10


def scalar_tags(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder))
    events.Reload()
    return set(events.Tags()['scalars']), set(events.Tags()['images'])


@pytest.mark.parametrize('method', WITH_CLASSES)
def test_student_outputs(call, small, teacher, tmp_path, capfd, method):
    call(train_student.main, '--path_t', teacher, '--distill', method, '--model_s', 'resnet8', '--save_dir', tmp_path,
         '-b', 0 if method in ('kd', 'ctkd') else 1, *few(method, negatives=20), *small)
    usual = options(method)
    beta = 0.0 if method in ('kd', 'ctkd') else 1.0
    name = f'S:resnet8_T:resnet14_folder_{method}_r:{usual.gamma}_a:{usual.alpha}_b:{beta}_1'
    folder = tmp_path / 'student_model' / name
    best = load_checkpoint(str(folder / 'resnet8_best.pth'), '')
    assert {'epoch', 'model', 'best_acc', 'arch', 'num_classes'} <= set(best)
    assert ('attention' in best) == (method == 'semckd')
    last = load_checkpoint(str(folder / 'last.pth'), '')        # whose part that is the method's the best one has too
    part = {name for name in last['module'] if not name.startswith('student.')}
    assert set(best.get('distiller', ())) == part and ('distiller' in best) == bool(part)
    parameters = read(folder / 'parameters.json')
    assert parameters['model_t'] == 'resnet14' and 0 < parameters['Total time'] < 1 and parameters['beta'] == beta
    out = capfd.readouterr().out
    accuracy = load_checkpoint(str(teacher), '')['best_acc']
    assert f'teacher top-1: {accuracy:.2f}' in out
    scalars, images = scalar_tags(tmp_path / 'student_tensorboards' / name)
    assert scalars >= {'train_acc', 'train_loss', 'test_acc', 'test_loss', 'test_acc_top5', 'lr'}
    assert ('attention' in images) == (method == 'semckd')
    assert ('first stage, epoch 1: loss' in out) == distiller_dict[method].spec.first_stage


@pytest.mark.parametrize('main', [train_teacher.main, train_student.main], ids=['teacher', 'student'])
def test_the_best_checkpoint_is_that_of_the_best_epoch(call, small, teacher, tmp_path, monkeypatch, main):
    """Written when an epoch is better than all before, and then alone."""
    accuracies, written = iter([50.0, 40.0, 60.0, 60.0, 55.0]), []
    monkeypatch.setattr(task, 'validate', lambda *args, **kwargs: {
        'test_loss': 1.0, 'test_acc': next(accuracies), 'test_acc_top5': 90.0,
        'predictions': torch.tensor([[0.0], [1.0], [0.5]])})
    original = run_module.save_checkpoint
    monkeypatch.setattr(run_module, 'save_checkpoint', lambda path, state, **keep: (
        keep or path.name == 'last.pth' or written.append((path.name, state['epoch'])), original(path, state, **keep)))
    flags = ['--path-t', teacher, '--skip-validation'] if main == train_student.main else ['--model', 'resnet8']
    call(main, *flags, *small, '--save_dir', tmp_path, '--epochs', 5)
    assert written == [('resnet8_best.pth', 1), ('resnet8_best.pth', 3)]
    folder = next(tmp_path.glob('*/*/resnet8_best.pth')).parent
    best = load_checkpoint(str(folder / 'resnet8_best.pth'), '')
    assert (best['epoch'], best['best_acc']) == (3, 60.0)
    metrics = {'test_loss': 1.0, 'test_acc_top5': 90.0}
    assert read(folder / 'test_best_metrics.json') == {**metrics, 'test_acc': 60.0, 'epoch': 3}
    assert read(folder / 'test_last_metrics.json') == {**metrics, 'test_acc': 55.0, 'epoch': 5}
    report = read(folder / 'test_best_classes.json')
    assert (report['epoch'], report['images'], report['ece']) == (3, 1, 50.0)


@pytest.mark.parametrize('main, total', [(train_teacher.main, 7200.0), (train_student.main, 2.0)],
                         ids=['teacher', 'student'])
def test_the_unit_of_the_total_time(call, small, teacher, tmp_path, monkeypatch, main, total):
    """Two hours, in seconds for a teacher and in hours for a student."""
    times = iter([1000.0])
    monkeypatch.setattr(records, 'time', SimpleNamespace(time=lambda: next(times, 8200.0)))
    call(main, *(['--path-t', teacher] if main == train_student.main else ['--model', 'resnet8']), *small,
         '--save_dir', tmp_path)
    assert read(next(tmp_path.glob('*/*/parameters.json')))['Total time'] == total


def test_two_passes(call, small, teacher, tmp_path, capfd):
    """A student can teach, as in HKD's second pass: its checkpoint says what it is."""
    call(train_student.main, '--path_t', teacher, '--distill', 'pkt', '--save_dir', tmp_path, *small)
    first = next((tmp_path / 'student_model').glob('S:resnet8_T:resnet14_folder_pkt_*')) / 'resnet8_best.pth'
    capfd.readouterr()
    call(train_student.main, '--path_t', first, '--distill', 'hkd', '--hkd_decay', 0.5, '--save_dir', tmp_path, *small,
         '--skip-validation')
    assert (tmp_path / 'student_model' / 'S:resnet8_T:resnet8_folder_hkd_r:1.0_a:1.0_b:1.0_1').is_dir()
    assert 'teacher top-1' not in capfd.readouterr().out


@pytest.mark.parametrize('main', [train_teacher.main, train_student.main], ids=['teacher', 'student'])
def test_a_run_with_dali_is_named_by_it(call, small, teacher, tmp_path, monkeypatch, main):
    """Its other augmentation gives other numbers. (Another data set's loader stands in for DALI's.)"""
    import dataset
    script = sys.modules[main.__module__]

    def loaders(opt, *args, **kwargs):
        return dataset.get_dataloaders(SimpleNamespace(**{**vars(opt), 'dataset': 'folder', 'dali': None,
                                                          'image_size': 16}), *args, **kwargs)
    monkeypatch.setattr(script, 'get_dataloaders', loaders)
    flags = ['--path-t', teacher] if main == train_student.main else ['--model', 'resnet8']
    place = small.index('--image_size')         # not of imagenet
    call(main, *flags, *small[:place], *small[place + 2:], '--save_dir', tmp_path, '--dataset', 'imagenet', '--dali',
         'cpu')
    folder = next(tmp_path.glob('*/*/last.pth')).parent
    assert folder.name.endswith('_1_dali:cpu' if main == train_student.main else '_trial_0_dali:cpu')
    assert read(folder / 'parameters.json')['dali'] == 'cpu'


def test_list(capsys):
    with pytest.raises(SystemExit) as caught:
        student_options(['--list'])
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert all(any(line.startswith(f'{name} ') for line in out.splitlines()) for name in (*distiller_dict, *model_dict))
    assert 'arXiv:2012.03236' in out and '83,892' in out


def test_a_seed_gives_identical_weights(call, small, teacher, tmp_path):
    found = []
    for run, seed in (('a', 1), ('b', 1), ('c', 2)):
        call(train_student.main, '--path_t', teacher, '--distill', 'semckd', '-b', 1, '--save_dir', tmp_path / run,
             *small, '--seed', seed)
        found.append(weights(next((tmp_path / run).glob('student_model/*/resnet8_best.pth'))))
    assert all(torch.equal(v, found[1][k]) for k, v in found[0].items())
    assert not torch.equal(found[0]['fc.weight'], found[2]['fc.weight'])


def test_two_stems(call, small, tmp_path):
    """ResNet18 on small images is the net with the 3x3 stem, under the name that the user gave."""
    call(train_teacher.main, '--model', 'ResNet18', '--save_dir', tmp_path, *small)
    best = next(tmp_path.glob('models/ResNet18_folder_*/ResNet18_best.pth'))
    assert load_checkpoint(str(best), '')['arch'] == 'ResNet18_cifar'
    assert weights(best)['conv1.weight'].shape == (64, 3, 3, 3)


def test_compare(call, small, teacher, tmp_path, capfd):
    for trial in (1, 2):
        call(train_student.main, '--path_t', teacher, '--distill', 'semckd', '-b', 1, '--save_dir', tmp_path, *small,
             '--trial', trial, '--seed', trial)
    students = sorted((tmp_path / 'student_model').iterdir())
    call(compare.main, teacher.parent, *students, '--figure', tmp_path / 'new' / 'figure.png')
    out = capfd.readouterr().out
    found = [read(student / 'test_best_metrics.json')['test_acc'] for student in students]
    row = next(line for line in words(out) if 'semckd, taught by resnet14' in line)
    assert row.startswith('resnet8 ') and f' 2 {sum(found) / 2:.2f} ± {abs(found[0] - found[1]) / 2 ** 0.5:.2f} ' in row
    assert out.splitlines()[-1].endswith('figure.png') and (tmp_path / 'new' / 'figure.png').stat().st_size > 5000

    for student, predicted in zip(students, (1, 2), strict=True):
        history = read(student / 'history.json')
        history[-1] |= {'test_classes_predicted': predicted}
        (student / 'history.json').write_text(json.dumps(history))
    call(compare.main, *students)
    out = capfd.readouterr().out
    assert 'resnet8, semckd, taught by resnet14: of 2 runs ' in out and ', 1 in the last epoch predict one class' in out
    assert 'top-5' not in out       # of four classes

    # Not trials of one experiment: the same run twice, other data, more processes.
    call(compare.main, students[0], f'{students[0]}/', students[0] / '..' / students[0].name)
    assert '±' not in capfd.readouterr().out
    parameters = read(students[0] / 'parameters.json')
    for name in ('labels (checksum)', 'images (checksum)', 'teacher (checksum)', 'processes', 'epochs', 'data_dir'):
        (students[0] / 'parameters.json').write_text(json.dumps({**parameters, name: '7'}))
        call(compare.main, *students)
        out = capfd.readouterr().out
        assert '±' not in out and f'semckd, taught by resnet14, {name} 7' in out
    (students[0] / 'parameters.json').write_text(json.dumps({**parameters, 'seed': 2, 'path_t': 'moved'}))
    call(compare.main, *students)
    done = capfd.readouterr()
    assert '±' in done.out and 'with the same seed' in done.err


@pytest.mark.parametrize('file, change, words', [
    ('parameters.json', lambda p: [p], 'not those of a run'), ('parameters.json', lambda p: {**p, 'dataset': None}, ''),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc': None}, 'not those of a run'),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc': 1.5},
     'says top-1 1.5 of epoch 1, but history.json '),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc_top5': 'x'}, 'not those of a run'),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc': float('nan')}, 'a number is NaN'),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc': float('inf')}, 'a number is Infinity'),
    ('test_best_metrics.json', lambda p: {**p, 'test_acc': 10**400}, 'not those of a run'),
    ('parameters.json', lambda p: {**p, 'Total params': 10**400}, 'not those of a run'),
    ('parameters.json', lambda p: {**p, 'lr_decay_epochs': [[1]]}, 'an option is nested'),
    ('parameters.json', lambda p: {**p, 'dataset': '(', 'distill': 'hkd', 'model_s': 'x', 'model_t': 'y',
                                   'path_t': 'z'}, ''),
    ('history.json', lambda p: [{**p[-1], 'attention': [[1, 2], [3]]}], 'a picture is no matrix'),
    ('history.json', lambda p: [{**p[-1], 'attention': [[1, None]]}], 'not those of a run'),
    ('history.json', lambda p: [{**p[-1], 'attention': 'no'}], 'not those of a run'),
    ('parameters.json', lambda p: {k: v for k, v in p.items() if k != 'Total time'}, 'not finished; train on')])
def test_compare_damaged_files(call, teacher, tmp_path, capsys, file, change, words):
    """One line, and the other runs are shown."""
    folder = tmp_path / 'run'
    shutil.copytree(teacher.parent, folder)
    (folder / file).write_text(json.dumps(change(read(folder / file))))
    call(compare.main, folder, teacher.parent, '--figure', tmp_path / 'x.png')
    done = capsys.readouterr()
    assert 'resnet14' in done.out and words in done.err and done.err.count('\n') == bool(words)


def test_compare_reads_only_files_that_end(call, teacher, tmp_path, capsys):
    """A pipe, nesting without end, and names that would act on the terminal."""
    for i in range(3):
        shutil.copytree(teacher.parent, tmp_path / f'{i}')
    (tmp_path / '0' / 'parameters.json').unlink()
    os.mkfifo(tmp_path / '0' / 'parameters.json')
    (tmp_path / '1' / 'history.json').write_text('[' * 100_000)
    parameters = read(tmp_path / '2' / 'parameters.json')
    (tmp_path / '2' / 'parameters.json').write_text(json.dumps({**parameters, 'model': 'evil\x1b[31m\nnet'}))
    call(compare.main, *(tmp_path / f'{i}' for i in range(3)))
    done = capsys.readouterr()
    assert '0: parameters.json: is no file' in done.err and '1: history.json: no JSON that can be read' in done.err
    assert done.err.count('\n') == 2 and 'evil\\x1b[31m\\nnet' in done.out and '\x1b' not in done.out


@pytest.mark.parametrize('name', ['', '.', 'figure', 'figure.foo'])
def test_compare_figures_have_a_name(call, teacher, tmp_path, capsys, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(compare.main, teacher.parent, '--figure', name)
    assert caught.value.code == 2 and '--figure' in capsys.readouterr().err and list(tmp_path.iterdir()) == []


def test_compare_takes_an_option_that_is_none_for_one_that_is_missing(call, teacher, tmp_path, capsys):
    """A run from before a flag existed, and one that did not give it, are trials of one experiment."""
    shutil.copytree(teacher.parent, tmp_path / 'old')
    parameters = read(teacher.parent / 'parameters.json')
    assert None in parameters.values()
    kept = {name: value for name, value in parameters.items() if value is not None}
    (tmp_path / 'old' / 'parameters.json').write_text(json.dumps({**kept, 'seed': 9, 'trial': 'old'}))
    call(compare.main, teacher.parent, tmp_path / 'old')
    assert '±' in capsys.readouterr().out


def test_compare_without_plus_minus(capsys, monkeypatch):
    monkeypatch.setattr(sys, 'stdout', io.TextIOWrapper(io.BytesIO(), 'ascii'))
    cli.show('1.00 ± 0.50')
    sys.stdout.seek(0)
    assert sys.stdout.read() == '1.00 +- 0.50\n'


def run_of(student, top1, teacher='', method='alone', dataset='cifar100', **more):
    """As read_run gives it."""
    return {'experiment': {'names': [dataset, student, teacher, method], **more}, 'seed': top1, 'dataset': dataset,
            'properties': {}, 'last': top1 - 1, 'one_class': {'best': False, 'last': False}, 'model': student,
            'teacher': teacher, 'distill': method, 'method': method, 'parameters': 1234, 'top1': top1, 'top5': 99.5,
            'seconds': 60.0, 'chosen_on': 'test'}


def words(text):
    """The lines of a table, but for the rule."""
    return [' '.join(line.split()) for line in text.splitlines() if not line.startswith('---')]


def test_compare_trials_and_published():
    """Trials are one row; what is published stands beside it; columns that say nothing are left out."""
    runs = [run_of('resnet8x4', 76.0, 'resnet32x4', 'semckd'), run_of('resnet8x4', 72.0),
            run_of('resnet8x4', 77.0, 'resnet32x4', 'semckd'), run_of('resnet56', 72.0), run_of('resnet14', 70.0)]
    assert words(compare.compare_table(group_trials(runs))) == [
        'model trained parameters trials top-1 % last % published top-5 % seconds',
        'resnet8x4 semckd 1,234 2 76.50 ± 0.71 75.50 ± 0.71 76.23 ± 0.04 (SemCKD) 99.50 60',
        'resnet8x4 alone 1,234 1 72.00 71.00 73.09 ± 0.30 (SemCKD) 99.50 60',
        'resnet56 alone 1,234 1 72.00 71.00 72.34 (RepDistiller, last epoch) 99.50 60',
        'resnet14 alone 1,234 1 70.00 69.00 99.50 60']
    other = [run_of('resnet8x4', top1, dataset='digits', **more) for top1, more in (
        (72.0, {}), (70.0, {'unlabelled': 'more'}))]
    assert words(compare.compare_table(group_trials(other))) == [
        'model trained parameters top-1 % last % top-5 % seconds',
        'resnet8x4 alone, without unlabelled 1,234 72.00 71.00 99.50 60',
        'resnet8x4 alone, unlabelled more 1,234 70.00 69.00 99.50 60']
    assert words(compare.compare_table(group_trials(runs + other)))[0].startswith('data model ')


def test_a_label_names_few_settings():
    """Options that always differ together are named once, those that are alike not at all."""
    runs = [run_of('resnet8', 70.0, batch_size=size, learning_rate=rate, epochs=epochs, momentum=0.9)
            for size, rate, epochs in ((64, 0.1, 1), (128, 0.2, 1), (128, 0.2, 2))]
    assert experiment_labels([[run] for run in runs]) == [
        'alone, batch_size 64, epochs 1', 'alone, batch_size 128, epochs 1', 'alone, batch_size 128, epochs 2']


def test_compare_says_what_an_accuracy_is_not():
    """A net of one class is named; of at most five classes the first five say nothing; a deviation stands at both."""
    runs = [run_of('resnet8', 50.0, dataset='folder'), run_of('resnet8', 40.0, dataset='folder')]
    for run in runs:
        run['properties'] = {'classes': 5}
    assert words(compare.compare_table(group_trials(runs))) == [
        'model trained parameters trials top-1 % last % seconds', 'resnet8 alone 1,234 2 45.00 ± 7.07 44.00 ± 7.07 60']
    assert list(compare.one_class_notes(group_trials(runs))) == []
    runs[0]['one_class'] = {'best': False, 'last': True}
    assert list(compare.one_class_notes(group_trials(runs))) == [
        'resnet8, alone: of 2 runs 0 in the best epoch, 1 in the last epoch predict one class for all images; '
        'such an accuracy is only the share of that class']


def test_the_legend_hides_no_curve():
    """It stands below the curves, with a line for each experiment, and the picture grows with it."""
    runs = [{**run_of('resnet8', 50.0, 't', f'method {i}'), 'curve': [50.0 - i], 'pictures': {}} for i in range(20)]
    fig = compare.draw_figure(group_trials(runs))
    FigureCanvasAgg(fig).draw()
    (legend,), (axis,) = fig.legends, fig.axes
    assert len(legend.get_texts()) == 20 and axis.get_legend() is None
    box = axis.get_window_extent()
    assert legend.get_window_extent().y1 < box.y0 and box.height > 250


def test_trials_of_other_data_are_not_averaged():
    """Nor where a run that does not say its data stands between them."""
    runs = [run_of('resnet8', top1, dataset='folder') for top1 in (50.0, 51.0, 52.0)]
    for run, properties in zip(runs, ({}, {'images (checksum)': 1}, {'images (checksum)': 2}), strict=True):
        run['properties'] = properties
    assert [len(group) for group in group_trials(runs)] == [2, 1]
    assert 'images (checksum) 2' in compare.compare_table(group_trials(runs))


@pytest.mark.parametrize('flags, found', [
    ('hint -a 0', 'hint, alpha 0.0'), ('hint -a 0 --hint_layer 2', 'hint, alpha 0.0, hint_layer 2'), ('hint', 'hint'),
    ('kd', 'kd'), ('kd --logit_stand', 'kd, logit_stand True'), ('kd --opt dot', 'kd, opt dot'),
    ('rkd --opt dot', 'rkd'), ('ickd', 'ickd'), ('ickd -a 1', 'ickd, alpha 1.0'), ('ickd -b 2', 'ickd'),
    ('simkd', 'simkd'), ('simkd --simkd_factor 4', 'simkd, simkd_factor 4'), ('crd+wttm -b 0.8,4', 'crd+wttm'),
    ('wttm+crd', 'crd+wttm'), ('ctkd --ctkd_base dkd', 'ctkd, ctkd_base dkd')])
def test_how_a_run_is_named_in_the_published_table(flags, found):
    opt = vars(student_options(['--path-t', 'x', '--distill', *flags.split()]))
    assert published.method_key(opt['distill'], published.non_default_options(opt, opt)) == found


def test_relative_improvement():
    """The published column, from the published table: to what rounding the table to two digits leaves."""
    theirs = {row['over']: float(row['ari']) for row in published.read_table('published_ari.csv')}
    gap_closed = theirs.pop('teacher')
    top1 = {name: figure.top1 for name, figure in published.published_figures('cifar100', 'SemCKD').items()}
    found = published.relative_improvement(top1, 'semckd')
    assert found.keys() == theirs.keys()
    for method, (percent, pairs, left_out) in found.items():
        assert (pairs, left_out) == (7, []) and abs(percent - theirs[method]) < 0.25
    assert all(name in model_names() for key in published.published_figures('cifar100') for name in key[:2] if name)
    for row in published.read_table('published.csv'):     # every method, net and option exists
        if row['method'] != 'alone':
            opt = student_options(['--path-t', 'x', '--distill', row['method'], '--dataset', row['dataset']])
            assert all(hasattr(opt, name) for name in published.parse_options(row))
        assert not row['teacher'] or row['teacher'] in model_dict or row['teacher'] == 'ResNet50'
    imagenet = published.published_figures('imagenet')
    assert imagenet['ResNet34', 'ResNet18', 'ctkd, ctkd_base dkd'] == (71.51, None, 'CTKD', 'best', None)
    assert imagenet['ResNet34', 'ResNet18', 'ickd, alpha 1.0'].source == 'ICKD, pretrained student'
    rows = published.read_table('published.csv')
    assert {row['epoch'] for row in rows} == {'best', 'last', 'unknown'}
    assert {row['epoch'] for row in rows if row['source'] == 'RepDistiller'} == {'last'}

    # The teachers, which have the names of students in that table, are RepDistiller's.
    teachers = {'resnet32x4': 79.42, 'vgg13': 74.64, 'wrn_40_2': 75.61}
    pairs = [(teacher, student) for teacher, student, method in top1 if method == 'semckd']
    improved = sum(top1[t, s, 'semckd'] - top1['', s, 'alone'] for t, s in pairs)
    gap = sum(teachers[t] - top1['', s, 'alone'] for t, s in pairs)
    assert len(pairs) == 7 and abs(improved / gap * 100 - gap_closed) < 0.25
    assert published.closed_gap({('', 's', 'alone'): 60.0, ('', 't', 'alone'): 80.0, ('t', 's', 'semckd'): 75.0,
                               ('u', 's', 'semckd'): 70.0}, 'semckd') == (75.0, 1)

    runs = [run_of('resnet8', 60.0), run_of('resnet8', 62.0, 't', 'kd'), run_of('resnet8', 64.0, 't', 'semckd')]
    with_teacher = compare.improvement_table(group_trials([*runs, run_of('t', 65.0)]), 'semckd').splitlines()
    assert with_teacher[-1].split() == ['gap', 'to', 'the', 'teacher', 'closed', '80.00', '1', '68.34']
    table = compare.improvement_table(group_trials(runs), 'semckd').splitlines()
    assert table[0].startswith('SemCKD over') and table[-1].split() == ['kd', '100.00', '1', '72.65']
    for given, why in ((runs[1:], 'of the student alone'), ([*runs, run_of('x', 1.0, dataset='y')], 'several data'),
                       ([*runs, run_of('resnet8', 61.0, 't', 'kd', beta=3)], 'resnet8, kd, beta 3, and another'),
                       ([*runs[1:], run_of('resnet8', 62.0)], 'which is worse than that method')):
        with pytest.raises(UserError, match=f'--ari: .*{why}'):
            compare.improvement_table(group_trials(given), 'semckd')


def test_compare_names_the_first_teacher():
    """HKD's teacher is an auxiliary net; the tables name the one that taught that."""
    given = {'dataset': 'cifar100', 'distill': 'hkd', 'model_t': 'resnet8x4', 'path_t':
             'save/student_model/S:resnet8x4_T:resnet32x4_cifar100_pkt_r:1.0_a:1.0_b:30000.0_1/resnet8x4_best.pth'}
    assert original_teacher(given) == 'resnet32x4'
    assert original_teacher({**given, 'distill': 'kd'}) == 'resnet8x4'
    assert original_teacher({**given, 'path_t': 'save/models/resnet8x4_vanilla/x.pth'}) == 'resnet8x4'


BAD = {     # what is wrong -> (arguments, what the line says); {teacher} is filled in
    'no teacher': (['--path-t', 'nowhere.pth'], '--path-t nowhere.pth: no such file'),
    'no path': ([], 'the following arguments are required: --path-t'),
    'unknown flag': (['--learing_rate', '1'], '--learing_rate: no such flag; did you mean --learning_rate'),
    'student': (['--model_s', 'resnet9'], '--model_s resnet9: no such model; did you mean resnet'),
    'method': (['--distill', 'kdd'], '--distill kdd: no such method; did you mean kd'),
    'dataset': (['--dataset', 'cifar1000'], '--dataset cifar1000: no such data set; did you mean cifar100'),
    'epochs': (['--epochs', '0'], '--epochs: 0: give a whole number of at least 1'),
    'temperature': (['--kd_T', '0'], '--kd_T: 0: give a number above 0'),
    'not a number': (['-b', 'nan'], '-b/--beta: nan: give a number'),
    'decay': (['--lr_decay_epochs', 'a,b'], '--lr_decay_epochs: a,b: give epochs as whole numbers'),
    'batch': (['--batch_size', '4000'], '--batch_size 4000: folder has 48 training images'),
    'data': (['--data_dir', 'nowhere'], '--data_dir: nowhere: no such folder'),
    'gpu': (['--gpu_id', 'first'], '--gpu_id first: give the number of a GPU, as 0, mps or cpu'),
    'output': (['--save_dir', '{teacher}'], '--save_dir {teacher}: cannot write'),
    'trial': (['--trial', '../x'], '--trial ../x: the trial is a part of a folder name'),
    'hint layer': (['--distill', 'hint', '--hint_layer', '4'], '--hint_layer 4: resnet8 has feature layers 0..3'),
    'hint': (['--distill', 'hint', '--hint_layer', '5'], '--hint_layer: 5: give a whole number of at least 0'),
    'widths': (['--distill', 'fsp', '--model_s', 'resnet8x4'], '--distill fsp: needs layers of equal channels'),
    'svd widths': (['--distill', 'kdsvd', '--model_s', 'vgg8'], '--distill kdsvd: needs stages of equal channels'),
    'irg layer': (['--distill', 'irg', '--transform_layer_s', '1', '9', '--transform_layer_t', '1', '2'],
                  '--transform_layer_s 9: resnet8 has feature layers 0..4'),
    'irg pairs': (['--distill', 'irg', '--transform_layer_s', '1', '2'], 'give both the same even number'),
    'no negatives': (['--distill', 'crd', '--nce_k', '0'], '--nce_k: 0: give a whole number of at least 1'),
    'momentum': (['--distill', 'crd', '--nce_m', '1.5'], '--nce_m: 1.5: give a number of at least 0 and of at most 1'),
    'mode': (['--distill', 'crd', '--mode', 'hard'], "--mode: invalid choice: 'hard' (choose from"),
    'one image': (['--distill', 'rkd', '--batch_size', '1'], '--batch_size 1: RKD compares the images of a batch'),
    'classes': (['--dataset', 'digits'], 'a net of 4 classes, but the data has 10'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(call, small, teacher, tmp_path, capsys, case):
    arguments, words = BAD[case]
    arguments = [a.format(teacher=teacher) for a in arguments]
    if case not in ('no path', 'no teacher'):
        arguments = ['--path-t', teacher, *arguments]
    if '--save_dir' not in arguments:
        arguments += ['--save_dir', tmp_path]
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *small[:4], *small[6 if case == 'classes' else 4:], *arguments)    # no --image_size
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and words.format(teacher=teacher) in error
    assert list(tmp_path.iterdir()) == []               # nothing was written


def test_exit_code_of_the_process(tmp_path):
    """As a shell sees it: one line on stderr, exit code 2, no traceback."""
    command = [sys.executable, ROOT / 'train_student.py', '--gpu_id', 'cpu', '--path-t', tmp_path / 'x.pth']
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == '' and done.stderr.startswith('error: --path-t')
    assert done.stderr.count('\n') == 1


def test_an_unreadable_image_loses_nothing(call, small, tmp_path, capsys):
    write_images(tmp_path / 'train', 8)
    write_images(tmp_path / 'test', 2)
    arguments = [*small, '--data_dir', tmp_path, '--model', 'resnet8', '--save_dir', tmp_path / 'save']
    call(train_teacher.main, *arguments)
    best = next((tmp_path / 'save').glob('models/*/resnet8_best.pth'))
    before = best.read_bytes()
    (tmp_path / 'train' / 'ant' / '1.png').write_bytes(b'no image')
    with pytest.raises(SystemExit):
        call(train_teacher.main, *arguments)
    assert str(tmp_path / 'train' / 'ant' / '1.png') in capsys.readouterr().err and best.read_bytes() == before


@pytest.mark.parametrize('script', sorted(p.name for p in (ROOT / 'scripts').glob('*.sh')))
def test_shell_scripts_parse(script):
    assert subprocess.run(['sh', '-n', ROOT / 'scripts' / script]).returncode == 0


# In python's place: notes its arguments, and makes the checkpoint that a train script would leave.
FAKE_PYTHON = """#!{python}
import json, os, sys
from pathlib import Path
arguments = sys.argv[1:]
with open(os.environ['ASKED'], 'a') as file:
    file.write(json.dumps(arguments) + chr(10))
value = lambda flag: arguments[len(arguments) - arguments[::-1].index(flag)]        # the last one counts
if arguments[0].endswith(os.environ.get('FAIL', '-')):
    sys.exit(2)
if 'train' in arguments[0]:
    save, data = Path(value('--save_dir')), value('--dataset')
    if 'teacher' in arguments[0]:
        model = value('--model')
        folder = save / 'models' / f'{{model}}_{{data}}_lr_0.05_decay_0.0005_trial_0'
    else:
        model = value('--model_s')
        weights = '_'.join(f'{{n}}:{{value("-" + n)}}' for n in 'rab' if '-' + n in arguments)
        name = ['S:' + model, 'T:' + os.environ['MODEL_T'], data, value('--distill'), weights, value('--trial')]
        folder = save / 'student_model' / '_'.join(name)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f'{{model}}_best.pth').touch()
    (folder / 'parameters.json').write_text('Total time')
    sys.exit(os.environ.get('FAILS') == value('--distill') if '--distill' in arguments else 0)
"""


@pytest.fixture
def shell(tmp_path):
    """shell(script, *arguments, **variables): run it with a fake python; (what ran, its asked command lines)."""
    asked, fake = tmp_path / 'asked', tmp_path / 'bin' / 'python'
    fake.parent.mkdir()
    fake.write_text(FAKE_PYTHON.format(python=sys.executable))
    fake.chmod(0o755)

    def run(script, *arguments, **variables):
        asked.write_text('')
        done = subprocess.run(['sh', ROOT / 'scripts' / script, *arguments], capture_output=True, text=True, env={
            **os.environ, 'PATH': f'{fake.parent}:{os.environ["PATH"]}', 'VIRTUAL_ENV': 'x', 'ASKED': str(asked),
            'SAVE': str(tmp_path / 'with a space'), **variables})
        return done, [json.loads(line) for line in asked.read_text().splitlines()]
    return run


def values(asked, flag):
    """What each command line gives for a flag in the end."""
    return [line[len(line) - line[::-1].index(flag)] for line in asked if flag in line]


def test_the_list_of_methods(shell, tmp_path):
    """Arguments reach every run, the teacher's and hkd's first pass too; all methods run, then the table is shown."""
    nets = {'MODEL_T': 'resnet14', 'MODEL_S': 'resnet8', 'MODEL_A': 'resnet20', 'EPOCHS': '8', 'DATASET': 'folder'}
    flags = ['--data_dir', '/some data', '--gpu_id', 'cpu', '--trial', '7']
    done, asked = shell('run_cifar_distill.sh', *flags, **nets)
    assert done.returncode == 0, done.stderr
    runs, table = asked[:-1], asked[-1]
    count = 1 + len(WITH_CLASSES) + 1         # the teacher, each method, and the first pass of hkd
    assert [line[0] for line in runs] == ['train_teacher.py'] + ['train_student.py'] * (count - 1)
    assert values(runs, '--data_dir') == ['/some data'] * count and values(runs, '--gpu_id') == ['cpu'] * count
    assert values(runs, '--save_dir') == [str(tmp_path / 'with a space')] * count
    assert values(runs, '--lr_decay_epochs') == ['5,6,7'] * count and values(runs, '--epochs') == ['8'] * count
    assert values(runs, '--trial') == ['7'] * (count - 2) + ['auxiliary', '7']
    assert set(values(runs, '--distill')) == set(WITH_CLASSES)
    assert [student_options(line[1:]).beta for line in runs[-2:]] == [30000.0, 1.0]
    for line in runs[1:]:           # the weights are the published ones
        usual = ['--path-t', 'x', '--distill', *values([line], '--distill')]
        opt, usual = student_options(line[1:]), student_options(usual)
        assert (opt.gamma, opt.alpha, opt.beta) == (usual.gamma, usual.alpha, usual.beta)
    rates = {values([line], '--distill')[0]: values([line], '--learning_rate')[0] for line in runs
             if '--learning_rate' in line}
    assert rates == {'mlld': '0.025', 'skd': '0.1'}
    assert values(runs, '--init_epochs') == ['1'] * sum(method.spec.first_stage for method in distiller_dict.values())
    teachers = values(runs, '--path-t')
    assert {Path(teacher).name for teacher in teachers[:-1]} == {'resnet14_best.pth'}
    assert Path(teachers[-1]).parent.name == 'S:resnet20_T:resnet14_folder_pkt_r:1.0_a:1.0_b:30000.0_auxiliary'
    assert table[0] == 'scripts/compare.py' and len(table) == 1 + len(WITH_CLASSES)      # the folder of each method

    done, asked = shell('run_cifar_distill.sh', *flags, **nets, FAILS='crd', METHODS='crd hkd')
    assert done.returncode == 1 and done.stderr == 'not run to the end: crd\n'      # teacher and first pass are there
    assert [values([line], '--distill') for line in asked[:-1]] == [['crd'], ['hkd']]


def test_the_study_of_unlabelled_images(shell):
    """Five runs of each seed, of which the last starts from what the one before has written."""
    done, asked = shell('run_unlabelled.sh', '--gpu_id', 'cpu', MODEL_T='resnet20', SEEDS='4')
    assert done.returncode == 0, done.stderr
    teacher, alone, kd, unlabelled, embed, tuned = (
        (teacher_options if line[0] == 'train_teacher.py' else student_options)(line[1:]) for line in asked[:-1])
    embed.model_t = 'resnet20'
    assert tuned.initial_checkpoint == str(RunPaths.of_student(embed).best) and embed.dataset == 'unlabelled'
    assert {opt.path_t for opt in (kd, unlabelled, embed)} == {str(RunPaths.of_teacher(teacher).best)}
    assert {opt.train_fraction for opt in (alone, kd, unlabelled, tuned)} == {0.1} and teacher.train_fraction == 1
    assert {opt.seed for opt in (alone, kd, unlabelled, embed, tuned)} == {4}
    assert unlabelled.unlabelled == embed.unlabelled == 'data/cifar10/train' and asked[-1][0] == 'scripts/compare.py'


def test_the_study_of_three_teachers(shell):
    """Five runs of each seed: two methods with one teacher and with three, and kd with --teacher_weights agree."""
    done, asked = shell('run_multi_teacher.sh', '--gpu_id', 'cpu', MODEL_T='resnet20', SEEDS='4 5')
    assert done.returncode == 0, done.stderr
    teachers = [teacher_options(line[1:]) for line in asked[:3]]
    students = [student_options(line[1:]) for line in asked[3:-1]]
    files = [str(RunPaths.of_teacher(teacher).best) for teacher in teachers]
    assert len({*files}) == 3 and [teacher.seed for teacher in teachers] == [1, 2, 3]
    assert [opt.seed for opt in students] == [4] * 5 + [5] * 5 and asked[-1][0] == 'scripts/compare.py'
    assert [(opt.distill, opt.path_t) for opt in students[:4]] == [
        (method, path) for method in ('kd', 'reviewkd') for path in (files[0], files)]
    agree = students[4]
    assert (agree.teacher_weights, agree.alpha, agree.path_t) == ('agree', 3, files)


def test_the_study_of_8_bits(shell):
    """Two runs of each net, of which the second starts from the first, and their comparison."""
    done, asked = shell('run_int8.sh', MODEL_T='resnet20', SEEDS='4')
    assert done.returncode == 0, done.stderr
    teacher = teacher_options(asked[0][1:])
    for first, second, compared in zip(asked[1::3], asked[2::3], asked[3::3], strict=True):
        plain, qat = (student_options(line[1:]) for line in (first, second))
        assert plain.path_t == qat.path_t == str(RunPaths.of_teacher(teacher).best)
        plain.model_t = qat.model_t = 'resnet20'
        best = RunPaths.of_student(plain).best
        assert qat.initial_checkpoint == str(best) and qat.qat and not plain.qat
        assert compared[:3] == ['scripts/compare_int8.py', str(best.parent), str(RunPaths.of_student(qat).folder)]
    file = 'save/models/RUN/vgg8_best.pth'
    done, asked = shell('run_int8.sh', MODEL_T='vgg8', SEEDS='4', TEACHER=file, PIXELS='48', EPOCHS='60')
    assert done.returncode == 0 and {*values(asked, '--image_size')} == {'48'}
    plain, qat = (student_options(line[1:]) for line in asked[:2])
    assert (plain.epochs, plain.path_t) == (60, file)
    plain.model_t = 'vgg8'
    assert qat.initial_checkpoint == str(RunPaths.of_student(plain).best)


@pytest.mark.parametrize('script, variables, arguments, words', [
    ('run_cifar_distill.sh', {'TEACHER': 'typo.pth'}, [], 'TEACHER typo.pth: no such file'),
    ('run_imagenet_distill.sh', {'TEACHER': 'typo.pth'}, [], 'TEACHER typo.pth: no such file'),
    ('run_cifar_distill.sh', {'METHODS': 'kd semkd'}, [], 'METHODS semkd: no such method here; there are: kd hint'),
    ('run_cifar_distill.sh', {}, ['--save-dir', 'x'], '--save-dir: set the variable SAVE instead'),
    ('own_photos.sh', {}, [], 'FOLDER : no such folder; sh scripts/own_photos.sh FOLDER [TEACHER] [STUDENT]'),
    ('own_photos.sh', {}, ['nowhere'], 'FOLDER nowhere: no such folder'),
    ('run_cifar_vanilla.sh', {}, ['--dataset', 'cifar10'], '--dataset: set the variable DATASET instead')])
def test_scripts_refuse(shell, script, variables, arguments, words):
    done, asked = shell(script, *arguments, **variables)
    assert done.returncode == 2 and done.stderr.startswith(f'error: {words}') and done.stderr.count('\n') == 1
    assert asked == []


def test_the_imagenet_list(shell, tmp_path):
    (tmp_path / 'my teacher.pth').touch()
    done, asked = shell('run_imagenet_distill.sh', '--data_dir', '/some data', TEACHER=str(tmp_path / 'my teacher.pth'),
                        GPU='0,1', EPOCHS='3', MODEL_T='ResNet34')
    assert done.returncode == 0, done.stderr
    assert values(asked, '--distill') == ['kd', 'hint', 'attention', 'similarity', 'vid', 'semckd', 'pkt', 'hkd']
    assert values(asked, '--data_dir') == ['/some data'] * 8 and values(asked, '--gpu_id') == ['0,1'] * 8
    assert values(asked, '--lr_decay_epochs') == ['1,2'] * 8 and values(asked, '--dali') == ['gpu'] * 8
    assert values(asked, '--path-t')[:7] == [str(tmp_path / 'my teacher.pth')] * 7
    assert 'ResNet18Double_T:ResNet34_imagenet_pkt' in values(asked, '--path-t')[7]
    parsed = [student_options(line[1:]) for line in asked[:-1]]
    assert [opt.beta for opt in parsed] == [0.0, 100.0, 1000.0, 3000.0, 1.0, 50.0, 30000.0, 1.0]
    assert all(opt.multiprocessing_distributed and opt.dist_url == 'tcp://127.0.0.1:23333' for opt in parsed)
    assert all((opt.learning_rate, opt.weight_decay, opt.batch_size) == (0.1, 1e-4, 256) for opt in parsed)
    assert [opt.model_s for opt in parsed] == ['ResNet18'] * 6 + ['ResNet18Double', 'ResNet18']
    assert asked[-1][0] == 'scripts/compare.py' and len(asked[-1]) == 8


def test_docs_repeat_what_the_methods_declare(call, tmp_path, monkeypatch, capsys):
    """A copy of the three files is up to date; after a change write_docs names the file, and mends it."""
    for file in write_docs.BLOCKS:
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    shutil.copy(ROOT / 'docs/results.md', tmp_path / 'docs')
    monkeypatch.setattr(write_docs, 'ROOT', tmp_path)

    def exit_code(*flags):
        with pytest.raises(SystemExit) as caught:
            call(write_docs.main, *flags)
        return caught.value.code
    assert exit_code('--check') == 0 and capsys.readouterr().out == ''
    page = tmp_path / 'docs' / 'methods.md'
    page.write_text(page.read_text().replace('1, 1, 400', '1, 1, 40'))
    assert exit_code('--check') == 1
    assert capsys.readouterr().out == 'docs/methods.md: out of date; run python scripts/write_docs.py\n'
    assert exit_code() == 0 and page.read_text() == (ROOT / 'docs/methods.md').read_text()
    page.write_text('no lines that mark the block')
    assert exit_code() == 2
    assert capsys.readouterr().err.startswith('error: docs/methods.md: needs the lines "methods: written by ')


def test_the_teachers_list(shell):
    done, asked = shell('run_cifar_vanilla.sh', '--gpu_id', '1', TEACHERS='resnet8 vgg8', LR='0.1')
    assert done.returncode == 0 and values(asked, '--model') == ['resnet8', 'vgg8']
    assert values(asked, '--gpu_id') == ['1', '1'] and values(asked, '--learning_rate') == ['0.1', '0.1']


def test_the_steps_for_own_photographs(shell, tmp_path):
    """The plan gets all arguments; the export is of the best student; --estimate stops before the first run."""
    save = tmp_path / 'with a space'
    save.mkdir()
    (save / 'best.txt').write_text('a run\n')
    (save / 'summary.txt').write_text('the end\n')
    arguments = [str(tmp_path), 'timm:resnet18', '--epochs', '3']
    done, asked = shell('own_photos.sh', *arguments, GPU_ID='1')
    assert done.returncode == 0 and done.stdout.endswith('\nthe end\n'), done.stderr
    installed, steps = [line for line in asked if line[0] == '-m'], [line for line in asked if line[0] != '-m']
    assert [line[-1] for line in installed] == ['requirements-export.txt', 'timm']
    assert [Path(line[0]).name for line in steps] == ['own_photos.py', 'reproduce.py', 'own_photos.py', 'report.py',
                                                      'export_student.py', 'predict.py']
    assert steps[0][1:] == ['plan', str(save), *arguments] and steps[2][1:] == ['best', str(save)]
    assert steps[1][1] == str(save / 'own_photos.toml') and values(steps, '--gpu_id') == ['1']
    assert steps[4][1] == 'a run' and steps[5][1:] == [str(save / 'export'), str(save / 'examples')]

    done, asked = shell('own_photos.sh', *arguments, '--estimate')
    assert [Path(line[0]).name for line in asked if line[0] != '-m'] == ['own_photos.py', 'reproduce.py']
    assert asked[-1][-2:] == ['--dry-run', '--estimate']


@pytest.mark.parametrize('is_new', [False, True])
def test_own_photographs_where_the_export_fails(shell, tmp_path, is_new):
    """Without a new config.json the script ends, and an earlier export stays; with one it continues."""
    save = tmp_path / 'with a space'
    (save / 'export').mkdir(parents=True)
    for file in ('best.txt', 'summary.txt', 'export/config.json', 'export/MODEL_CARD.md'):
        (save / file).write_text('x\n')
    os.utime(save / 'export' / 'config.json', (0, 10**12 if is_new else 0))
    done, asked = shell('own_photos.sh', str(tmp_path), FAIL='export_student.py')
    assert done.returncode == (0 if is_new else 2), done.stderr
    assert Path(asked[-1][0]).name == ('predict.py' if is_new else 'export_student.py')
    assert ('complete without the file in 8 bits' in done.stdout) == is_new and (save / 'export/MODEL_CARD.md').exists()


def test_a_script_with_the_real_python(tree, tmp_path):
    """From no teacher to the table, in a folder with a space."""
    done = subprocess.run(['sh', ROOT / 'scripts' / 'run_cifar_distill.sh', '--data_dir', tree, '--image_size', '16',
                           '--gpu_id', 'cpu', '--num_workers', '0'], capture_output=True, text=True, env={
        **os.environ, 'VIRTUAL_ENV': 'x', 'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}',
        'DATASET': 'folder', 'MODEL_T': 'resnet14', 'MODEL_S': 'resnet8', 'EPOCHS': '1', 'METHODS': 'kd', 'BATCH': '16',
        'SAVE': str(tmp_path / 'a b')})
    assert done.returncode == 0, done.stderr
    assert '\nresnet8  kd, taught by resnet14' in done.stdout


def test_a_failed_run_leaves_an_older_one_alone(call, small, teacher, tmp_path, capsys):
    arguments = ['--path_t', teacher, '--save_dir', tmp_path, *small]
    call(train_student.main, *arguments)
    folder = next((tmp_path / 'student_model').iterdir())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments, '--learning_rate', '1e9', '--overwrite')
    assert caught.value.code == 2 and 'the loss diverged in epoch 1' in capsys.readouterr().err
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_a_run_does_not_replace_its_own_teacher(call, small, teacher, tmp_path, capsys):
    call(train_student.main, '--path_t', teacher, '--save_dir', tmp_path, *small)
    first = next((tmp_path / 'student_model').glob('*/resnet8_best.pth'))
    call(train_student.main, '--path_t', first, '--save_dir', tmp_path, *small)
    second = next((tmp_path / 'student_model').glob('S:resnet8_T:resnet8_*/resnet8_best.pth'))
    before = second.read_bytes()
    with pytest.raises(SystemExit):
        call(train_student.main, '--path_t', second, '--save_dir', tmp_path, *small)
    assert 'give another --trial' in capsys.readouterr().err and second.read_bytes() == before


def test_kdsvd_diverges_in_one_line(call, small, teacher, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(train_student.main, '--path_t', teacher, '--save_dir', tmp_path, '--distill', 'kdsvd', *small,
             '--learning_rate', '1e9')
    assert 'the loss diverged' in capsys.readouterr().err


def test_batch_of_one_pixel(call, small, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(train_teacher.main, '--model', 'MobileNetV2', '--save_dir', tmp_path, *small, '--batch_size', 1)
    assert '--batch_size 1: batch normalisation needs' in capsys.readouterr().err
    call(train_teacher.main, '--model', 'MobileNetV2', '--save_dir', tmp_path, *small, '--batch_size', 47)


def test_compare_leaves_out_what_is_no_run(call, teacher, tmp_path, capsys):
    call(compare.main, teacher.parent, tmp_path)
    done = capsys.readouterr()
    assert 'resnet14' in done.out and f'left out: {tmp_path}' in done.err
    # Runs below a folder are found, each once.
    shutil.copytree(teacher.parent, tmp_path / 'models' / 'a')
    shutil.copytree(teacher.parent, tmp_path / 'models' / 'b')
    (tmp_path / 'link').symlink_to(tmp_path / 'models')
    call(compare.main, tmp_path, tmp_path / 'models' / 'a')
    assert ' 2 ' in capsys.readouterr().out.splitlines()[2]
    shutil.rmtree(tmp_path / 'models')
    with pytest.raises(SystemExit):
        call(compare.main, tmp_path)
    with pytest.raises(SystemExit) as caught:
        call(compare.main, teacher.parent, '--figure', tmp_path / 'x.foo')
    assert caught.value.code == 2


def test_options_of_an_older_version():
    """--opt dot was --optimizer dot."""
    assert current_options({'opt': 'sgd', 'optimizer': 'dot', 'epochs': 2}) == {'opt': 'dot', 'epochs': 2}
    assert current_options({'opt': 'adamw', 'optimizer': 'sgd'}) == {'opt': 'adamw'}
    assert student_options(['--path-t', 'x', '--optimizer', 'dot']).opt == 'dot'
