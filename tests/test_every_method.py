"""Every method, and the flags that change one, in real runs: most of an hour, so only by sh scripts/test.sh -m slow."""
import json
import signal

import pytest
import torch
from conftest import CPU, assert_same, build, few, outcome

import train_student
import train_teacher
from distiller_zoo import distiller_dict
from helper.compile import compile_forward
from helper.loops import train_epoch
from options import student_options

pytestmark = pytest.mark.slow

WAYS = [*distiller_dict,        # and what changes them
        'rkd+crd', 'wttm+crd', 'dist+kd', 'mlld+crd', 'factor+kd', 'kd --logit_stand',
        'dkd --logit_stand', 'mlld --logit_stand', 'ctkd --logit_stand', 'ctkd --ctkd_base dkd', 'sdd --sdd_base dkd',
        'catkd --cat_normalize -b 40', 'kd --opt dot', 'crd --opt dot', 'mlld --opt dot',
        'rkd+crd --opt dot', 'kd --entropy_weights', 'dkd --entropy_weights --logit_stand', 'mlld --entropy_weights',
        'reviewkd --entropy_weights', 'abkd --abkd_base dkd', 'kd --nesterov', 'wkdl+wkdf', 'reviewkd+nd',
        'ikl --ikl_prior on', 'vkd --vkd_norm standardize']
PAIRS = [('resnet14', 'wrn_16_1'), ('wrn_16_1', 'resnet8')]
EQUAL_CHANNELS = ('fsp', 'kdsvd')       # for these, nets of one width
TEACHERS = {}


def digits(call, tmp_path_factory, model):
    """A teacher of three epochs on the digits, trained once."""
    if model not in TEACHERS:
        save = tmp_path_factory.mktemp(model)
        call(train_teacher.main, '--model', model, '--dataset', 'digits', '--epochs', 3, '--gpu_id', 'cpu', '--seed', 1,
             '--batch_size', 16, '--learning_rate', 0.02, '--lr_decay_epochs', 2, '--save_dir', save)
        TEACHERS[model] = next(save.glob('models/*/*_best.pth'))
    return TEACHERS[model]


@pytest.mark.parametrize('way, teacher, student', [
    (way, *pair) for way in WAYS for pair in (PAIRS if way in distiller_dict else PAIRS[:1])])
def test_two_epochs_on_digits(call, tmp_path_factory, tmp_path, way, teacher, student):
    if way.split()[0] in EQUAL_CHANNELS:
        teacher, student = ('resnet20', 'resnet8') if teacher == 'resnet14' else ('resnet14', 'resnet8')
    gentle = ['-b', 1] if way in ('semckd', 'pkt', 'attention', 'similarity', 'nst', 'hint', 'fsp', 'factor') else []
    call(train_student.main, '--path-t', digits(call, tmp_path_factory, teacher), '--model_s', student, '--dataset',
         'digits', '--epochs', 2, *few(way), '--batch_size', 32, '--gpu_id', 'cpu', '--seed', 1, '--save_dir',
         tmp_path, '--learning_rate', 0.05 if way in ('simkd', 'ctkd') else 0.005, *gentle, '--distill', *way.split())
    history = json.loads(next(tmp_path.glob('student_model/*/history.json')).read_text())
    first, last = (epoch['train'] for epoch in history)
    assert last['ce'] < first['ce'] and last['top1'] > first['top1'] and last['top1'] > 15
    print(f'{way}: {teacher} -> {student}: {history[-1]["test_acc"]:.2f}')


@pytest.mark.parametrize('way', WAYS)
def test_resumed_to_the_bit(call, small, teacher, tmp_path, interrupt, way):
    """Stopped within the first epoch, at its end, and within the second."""
    def run(save, *flags):
        call(train_student.main, '--path_t', teacher, *few(way), *small, '--epochs', 2,
             '--learning_rate', 0.001, '--save_dir', save, '--distill', *way.split(), *flags)
    run(tmp_path / 'whole')
    for steps in (2, 1, 2):
        interrupt(steps)
        with pytest.raises(SystemExit) as caught:
            run(tmp_path / 'parts', '--resume', 'auto')
        assert caught.value.code == 128 + signal.SIGTERM
    run(tmp_path / 'parts', '--resume', 'auto')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))


@pytest.mark.parametrize('way', WAYS)
def test_the_compiled_step(way):
    """Six steps, of which DOT makes the first uncompiled; in the first stage too where there is one."""
    found = []
    for compiled in (False, True):
        opt = student_options(['--path-t', 'x', '--batch_size', '8', *few(way), '--distill', *way.split()])
        distiller, loader, opt = build(**{**vars(opt), 'method': opt.distill})
        if compiled:
            compile_forward(distiller, 8, CPU)
        torch.manual_seed(3)
        found.append([])
        for _ in range(1 + distiller.in_first_stage):
            optimizer = distiller.make_optimizer(1e-4, opt)
            for epoch in (1, 2):
                distiller.begin_epoch(epoch, 2)
                found[-1].append(train_epoch(epoch, loader, distiller, optimizer, opt)['loss'])
            if distiller.in_first_stage:
                distiller.end_first_stage()
    assert found[1] == pytest.approx(found[0], rel=0.1 if 'crd' in way else 1e-3)       # crd draws other negatives
