"""Checkpoints: what is refused and how, what is recognised, and that nothing is lost."""
import os
import pickle
from types import SimpleNamespace

import pytest
import torch

from helper.checkpoint import load_checkpoint, load_net, load_weights, save_checkpoint, teacher_name, weights_of
from helper.errors import UserError
from helper.files import write_json
from models import model_dict


class Hostile:
    """Runs a shell command when it is unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


def test_hostile_files_are_refused_by_name(tmp_path):
    mark = tmp_path / 'ran'
    torch.save({'model': Hostile(mark)}, tmp_path / 'zip.pth')
    torch.save({'model': Hostile(mark)}, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    for protocol in (2, 4):
        (tmp_path / f'bare{protocol}.pth').write_bytes(pickle.dumps({'model': Hostile(mark)}, protocol))
    torch.save(torch.nn.Linear(1, 1), tmp_path / 'module.pth')
    for name, word in (('zip', 'posix.system'), ('legacy', 'posix.system'), ('bare2', 'posix.system'),
                       ('bare4', 'posix.system'), ('module', 'Linear')):
        with pytest.raises(UserError, match=f'--path-t .*{name}.pth: refused.*{word}'):
            load_checkpoint(str(tmp_path / f'{name}.pth'), '--path-t')
    assert not mark.exists()


def test_damaged_and_wrong_files(tmp_path, teacher):
    whole = teacher.read_bytes()
    for size in (0, 1, 100, len(whole) // 2, len(whole) - 10):
        (tmp_path / 'cut.pth').write_bytes(whole[:size])
        with pytest.raises(UserError, match='cut.pth: not a PyTorch checkpoint, or cut short'):
            load_checkpoint(str(tmp_path / 'cut.pth'), '--path-t')
    (tmp_path / 'text.pth').write_text('a letter')
    with pytest.raises(UserError, match='not a PyTorch checkpoint'):
        load_checkpoint(str(tmp_path / 'text.pth'), '--path-t')
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(UserError, match='holds a list'):
        load_checkpoint(str(tmp_path / 'list.pth'), '--path-t')
    with pytest.raises(UserError, match='no such file'):
        load_checkpoint(str(tmp_path / 'none.pth'), '--path-t')
    with pytest.raises(UserError, match='is a folder; give the checkpoint file in it, one of resnet14_best.pth'):
        load_checkpoint(str(teacher.parent), '--path-t')


@pytest.mark.parametrize('zipped', [True, False])
def test_published_forms_load(tmp_path, zipped):
    """torch 1.0's file format, DataParallel's prefix, no batch counters, tensors beside the weights."""
    net = model_dict['resnet8'](num_classes=10)
    state = {f'module.{k}': v for k, v in net.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save({'epoch': 240, 'model': state, 'accuracy': torch.tensor(72.0)}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=zipped)
    copy = model_dict['resnet8'](num_classes=10)
    load_weights(copy, weights_of(load_checkpoint(str(tmp_path / 'old.pth'), '--path-t')), 'old')
    assert all(torch.equal(v, copy.state_dict()[k]) for k, v in net.state_dict().items())


def test_weights_that_do_not_fit_change_nothing():
    net = model_dict['resnet8'](num_classes=10)
    before = {k: v.clone() for k, v in net.state_dict().items()}
    other = model_dict['resnet8'](num_classes=10).state_dict()
    wide, deep = model_dict['resnet8'](num_classes=100), model_dict['resnet14'](num_classes=10)
    for fault, words in (
            (wide.state_dict(), r'fc.weight is \(100, 64\), the model has \(10, 64\)'),
            (deep.state_dict(), r'layer1.1.conv1.weight \(16, 16, 3, 3\) is not in'),
            ({k: v for k, v in other.items() if k != 'fc.bias'}, r'fc.bias \(10,\) is missing'),
            ({**other, 'fc.bias': 'ten'}, r'fc.bias is str'),
            ({**other, 'fc.bias': torch.zeros(10, dtype=torch.int64)}, r'fc.bias is torch.int64'),
            ({}, 'holds no weights')):
        with pytest.raises(UserError, match=words):
            load_weights(net, fault, 'teacher')
        assert all(torch.equal(v, net.state_dict()[k]) for k, v in before.items())


@pytest.mark.parametrize('folder, name', [
    ('resnet32x4_vanilla', 'resnet32x4'), ('resnet8x4_double_vanilla', 'resnet8x4_double'), ('vgg13', 'vgg13'),
    ('wrn_40_2_vanilla', 'wrn_40_2'), ('ResNet50_vanilla', 'ResNet50'),
    ('resnet110_cifar100_lr_0.05_decay_0.0005_trial_0', 'resnet110'),
    ('S:resnet8x4_T:resnet32x4_cifar100_kd_r:1.0_a:1.0_b:0.0_1', 'resnet8x4'),
    ('S~ShuffleV2_T~vgg13_cifar100_kd_r~1.0_a~1.0_b~0.0_1', 'ShuffleV2')])
def test_teacher_is_recognised(folder, name):
    assert teacher_name(f'save/models/{folder}/ckpt_epoch_240.pth', {}) == name
    assert teacher_name(f'save/models/{folder}/ckpt_epoch_240.pth', {'arch': 'vgg8'}) == 'vgg8'


@pytest.mark.parametrize('folder', ['my_teacher', 'resnet9_vanilla', 'resnet32x5'])
def test_unknown_teacher(folder):
    with pytest.raises(UserError, match=f'the folder {folder} does not say which model this is; .*resnet32x4'):
        teacher_name(f'save/models/{folder}/x.pth', {})


def test_teacher_of_other_classes():
    data = SimpleNamespace(num_classes=10, image_size=32)
    with pytest.raises(UserError, match='a net of 100 classes, but the data has 10'):
        load_net('x', {'num_classes': 100, 'model': {}}, 'resnet8', data)
    with pytest.raises(UserError, match='no such model; did you mean resnet8'):
        load_net('x', {'model': {}}, 'resnet_8', data)


def test_a_failed_write_keeps_the_old_file(tmp_path):
    path = tmp_path / 'net.pth'
    save_checkpoint(path, {'epoch': 1})
    with pytest.raises(Exception, match='(?i)pickle'):
        save_checkpoint(path, {'epoch': 2, 'bad': lambda: None})
    assert load_checkpoint(str(path), '') == {'epoch': 1}
    write_json(tmp_path / 'a.json', {'x': 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'net.pth']      # no temporary file is left
