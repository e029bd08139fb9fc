"""Checkpoints: what is refused and how, what is recognised, and that nothing is lost."""
import argparse
import collections
import os
import pickle
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import Hostile

from helper import unpickle
from helper.checkpoint import load_checkpoint, load_weights, save_checkpoint
from helper.errors import UserError
from helper.files import write_json
from models import model_dict
from models.load import fill, load_net, open_checkpoint, open_net
from models.recognise import find_architecture


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
    with pytest.raises(UserError, match='folder; give the checkpoint file in it, one of resnet14_best.pth, last.pth'):
        load_checkpoint(str(teacher.parent), '--path-t')


def records(path) -> dict:
    """name -> content of what torch.save wrote."""
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write_records(path, content: dict, change=lambda archive: None) -> None:
    with zipfile.ZipFile(path, 'w') as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        change(archive)


def with_comment(path):
    """Records are compressed or changed, and a comment hides the end of the archive from Python's reader."""
    content = bytearray(path.read_bytes())
    content[content.rindex(bytes(range(1, 9)))] ^= 4        # within a weight
    content[-2:] = b'\4\0'                                  # the length of the comment
    path.write_bytes(content + b'PK\5\6')


def overlapping(path):
    """One record of a megabyte, listed a hundred times."""
    write_records(path, {**records(path), 'x/data/9': bytes(10**6)},
                  lambda archive: archive.filelist.extend([archive.getinfo('x/data/9')] * 99))


def twice(path):
    """Two records of one name: which one is meant?"""
    content = records(path)
    write_records(path, {**content, **{name.upper(): data for name, data in content.items()}})


def compressed(path):
    content = records(path)
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, data in content.items():
            archive.writestr(name, data)


@pytest.mark.parametrize('damage', [with_comment, overlapping, twice, compressed])
def test_what_is_checked_is_what_is_loaded(tmp_path, damage):
    path = tmp_path / 'x.pth'
    torch.save({'model': {'w': torch.frombuffer(bytearray(range(1, 9)) * 30, dtype=torch.uint8)}}, path)
    load_checkpoint(str(path), '--path-t')
    damage(path)
    with pytest.raises(UserError, match='x.pth: not a PyTorch checkpoint, or cut short or damaged') as caught:
        load_checkpoint(str(path), '--path-t')
    words = {overlapping: 'overlapping records', compressed: 'compressed records', twice: 'two records of one name'}
    assert words.get(damage, '') in str(caught.value)


# A pickle of {key: None}, whose key would keep the unpickler busy for ever, overflow its stack, or fill the memory.
KEYS = {'shared': b')' + b''.join(b'q%ch%c\x86' % (i, i) for i in range(60)), 'deep': b')' + b'\x85' * 10**6,
        'memo': b')r\xff\xff\xff\x7f'}


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('kind', KEYS)
def test_keys_that_never_end(tmp_path, kind, zipped):
    path, bomb = tmp_path / 'x.pth', b'\x80\2}' + KEYS[kind] + b'Ns.'
    if zipped:
        torch.save({}, path)
        write_records(path, {**records(path), 'x/data.pkl': bomb})
    else:
        start = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {'little_endian': True}]
        path.write_bytes(b''.join(pickle.dumps(value, 2) for value in start) + bomb + pickle.dumps([], 2))
    words = 'a memo index that is too large' if kind == 'memo' else 'values within values without end'
    with pytest.raises(UserError, match=rf'damaged \({words}\)'):
        load_checkpoint(str(path), '--path-t')


def nest(times):
    value = []
    for _ in range(times):
        value = [value, value]
    return value


ODD = {
    'shared lists': (lambda: nest(40), 'values within values without end'),
    'sparse': (lambda: torch.zeros(2, 2).to_sparse(), 'w is a torch.sparse_coo tensor on cpu'),
    'meta': (lambda: torch.zeros(2, device='meta'), 'tensor on meta'),
    'expanded': (lambda: torch.zeros(1, 64).expand(20_000_000, 64), 'w claims a shape of (20000000, 64), which is'),
    'quantised': (lambda: torch.quantize_per_tensor(torch.zeros(2), 1.0, 0, torch.quint8), 'w is a quantised tensor'),
    'nested': (lambda: torch.nested.nested_tensor([torch.zeros(1), torch.zeros(2)]), ''),
}


@pytest.mark.filterwarnings('ignore')
@pytest.mark.parametrize('kind', ODD)
def test_values_that_no_checkpoint_holds(tmp_path, monkeypatch, kind):
    make, words = ODD[kind]
    monkeypatch.setattr(unpickle, 'MAX_VALUES', 10**5)
    torch.save({'model': {'w': make()}}, tmp_path / 'x.pth')
    with pytest.raises(UserError) as caught:
        load_checkpoint(str(tmp_path / 'x.pth'), '--path-t')
    assert words in str(caught.value) and 'x.pth: ' in str(caught.value)


@pytest.mark.skipif(sys.platform == 'win32', reason='no pipes in folders')
def test_pipes_and_devices(tmp_path):
    """They would never end."""
    os.mkfifo(tmp_path / 'pipe.pth')
    for path in (tmp_path / 'pipe.pth', '/dev/zero'):
        with pytest.raises(UserError, match=f'--resume {path}: is no file'):
            load_checkpoint(str(path), '--resume')


@pytest.mark.parametrize('zipped', [True, False])
def test_published_forms_load(tmp_path, zipped):
    """torch 1.0's file format, DataParallel's prefix, no batch counters, tensors beside the weights."""
    net = model_dict['resnet8'](num_classes=10)
    state = {f'module.{k}': v for k, v in net.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save({'epoch': 240, 'model': state, 'accuracy': torch.tensor(72.0)}, tmp_path / 'old.pth',
               _use_new_zipfile_serialization=zipped)
    copy = model_dict['resnet8'](num_classes=10)
    fill(copy, open_checkpoint(str(tmp_path / 'old.pth')), '--path-t old.pth', 'no')
    assert all(torch.equal(v, copy.state_dict()[k]) for k, v in net.state_dict().items())


def foreign_forms(net, average):
    """name -> (what somebody else's script saves of `net`, whose average is another net; what is said)."""
    raw, mean = net.state_dict(), average.state_dict()
    args = argparse.Namespace(model='resnet8', betas=(0.9, 0.99), out=Path('x'))

    def named(prefix, state):
        return {f'{prefix}{key}': value for key, value in state.items()}
    objects = 'objects beside the weights are left out: argparse.Namespace'
    return {
        'plain': (mean, ''),
        'ImageNet example': ({'epoch': 3, 'arch': 'resnet50', 'state_dict': named('module.', mean),
                              'best_acc1': torch.tensor(7.)}, "prefix 'module.' removed"),
        'timm': ({'epoch': 3, 'arch': 'resnet8', 'state_dict': raw, 'state_dict_ema': mean, 'args': args, 'version': 2,
                  'metric': np.float64(7)}, "weights under 'state_dict_ema', the average of those under 'state_dict'"),
        'DeiT': ({'model': raw, 'model_ema': mean, 'args': args}, objects),
        'torchvision': ({'model': raw, 'model_ema': {'n_averaged': torch.tensor(3), **named('module.', mean)},
                         'args': args}, "prefix 'module.' removed, 1 other left out (n_averaged)"),
        'compiled, parallel': ({'network': named('module._orig_mod.model.', mean)},
                               "weights under 'network', prefix 'module.model.' removed"),
        'lightning': ({'state_dict': {**named('net.', mean), 'loss.weight': torch.ones(3)}, 'hyper': Dict(a=1),
                       'callbacks': collections.defaultdict(list, x=[Path('x')])},
                      "prefix 'net.' removed, 1 other left out (loss.weight)"),
        'auxiliary': ({'state_dict': {**mean, 'AuxLogits.fc.weight': torch.ones(1)}},
                      '1 weights of auxiliary classifiers left out'),
        'deep': ({'weights': {'params': {'module': named('backbone.', mean)}}},
                 "weights under 'weights/params/module', prefix 'backbone.' removed"),
    }


class Dict(dict):
    """As easydict's."""


@pytest.mark.parametrize('zipped', [True, False])
@pytest.mark.parametrize('form', foreign_forms(torch.nn.Module(), torch.nn.Module()))
def test_checkpoints_of_other_scripts(tmp_path, capsys, form, zipped):
    """The average's weights are taken, and a line says which; what the file says of its net counts for nothing."""
    net, average = (model_dict['resnet8'](num_classes=10) for _ in range(2))
    content, said = foreign_forms(net, average)[form]
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    checkpoint = open_checkpoint(str(tmp_path / 'x.pth'))
    assert not {'arch', 'num_classes', 'inputs', 'classes'} & checkpoint.keys()
    loaded = load_net(str(tmp_path / 'x.pth'), checkpoint, 'resnet8', SimpleNamespace(num_classes=10, image_size=32))
    assert all(torch.equal(value, average.state_dict()[key]) for key, value in loaded.state_dict().items())
    out = capsys.readouterr().out
    assert said in out and (out.count('\n') <= 2 if said else not out)


def test_checkpoint_key(tmp_path, capsys):
    net, other = (model_dict['resnet8'](num_classes=10).state_dict() for _ in range(2))
    both = {**{f'student.{key}': value for key, value in net.items()},
            **{f'teacher.{key}': value for key, value in other.items()}}
    for content, key, words in (
            ({'model': other, 'model_ema': net}, 'model_ema', ''), ({'model': net, 'model_ema': other}, 'model', ''),
            ({'student': net, 'teacher': other}, 'student', 'holds several sets of weights; choose one by '
             '--checkpoint_key, of student, teacher'),
            ({'state_dict': both}, 'state_dict/student', 'holds several such nets; choose one by --checkpoint_key, of '
             'student, teacher'),
            ({'weights_of_mine': net}, 'weights_of_mine', 'no weights under a usual name; --checkpoint_key chooses one '
             'of weights_of_mine')):
        torch.save(content, tmp_path / 'x.pth')
        data = SimpleNamespace(num_classes=10, image_size=32)
        if words:
            with pytest.raises(UserError, match=words):
                load_net('x', open_checkpoint(str(tmp_path / 'x.pth')), 'resnet8', data)
        loaded = load_net('x', open_checkpoint(str(tmp_path / 'x.pth'), key=key), 'resnet8', data).state_dict()
        assert all(torch.equal(value, net[name]) for name, value in loaded.items())
        assert f"weights under '{key}'" in capsys.readouterr().out or key == 'model'
    with pytest.raises(UserError, match='--checkpoint_key weight: no weights are there; there are: weights_of_mine'):
        open_checkpoint(str(tmp_path / 'x.pth'), key='weight')
    save_checkpoint(tmp_path / 'x.pth', {'model': net, 'arch': 'resnet8', 'num_classes': 10})
    with pytest.raises(UserError, match='--checkpoint_key model: --path-t .* has one set of weights; leave it out'):
        open_checkpoint(str(tmp_path / 'x.pth'), key='model')


@pytest.mark.parametrize('zipped', [True, False])
def test_nothing_of_a_file_runs(tmp_path, capsys, zipped):
    """Whatever stands beside the weights: calls, states, attributes of what an unpickler finds."""
    net = model_dict['resnet8'](num_classes=10).state_dict()
    for beside in (Hostile(tmp_path / 'ran'), [{Hostile(tmp_path / 'ran'): 1}]):
        torch.save({'model': net, 'x': beside}, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
        with pytest.raises(UserError, match=r'refused, it holds code or objects beside tensors \(posix.system\)'):
            load_checkpoint(str(tmp_path / 'x.pth'), '--path-t')
    defaults = torch._utils._rebuild_tensor_v2.__defaults__
    for name in ('torch._utils\n_rebuild_tensor_v2', 'collections\nOrderedDict') if zipped else ():
        torch.save({'model': net, 'x': 'MARK', 'args': argparse.Namespace()}, tmp_path / 'x.pth')
        content = records(tmp_path / 'x.pth')       # a function that is given attributes: BUILD of (None, {...})
        state = pickle.dumps((None, {'__defaults__': (1,)}), 2)[2:-1]
        content['x/data.pkl'] = content['x/data.pkl'].replace(b'X\4\0\0\0MARK', f'c{name}\n'.encode() + state + b'b')
        write_records(tmp_path / 'x.pth', content)
        with pytest.raises(UserError, match='not a PyTorch checkpoint'):
            load_checkpoint(str(tmp_path / 'x.pth'), '--path-t')
    assert torch._utils._rebuild_tensor_v2.__defaults__ == defaults and not (tmp_path / 'ran').exists()
    torch.save({'model': torch.nn.Linear(1, 1), 'state': {0: torch.zeros(1)}}, tmp_path / 'x.pth')
    with pytest.raises(UserError, match=r"'model' is a torch.nn.modules.linear.Linear and holds no weights; save"):
        open_checkpoint(str(tmp_path / 'x.pth'))
    torch.save({'model': net}, tmp_path / 'x.pth')
    write_records(tmp_path / 'x.pth', {**records(tmp_path / 'x.pth'), 'x/constants.pkl': b''})
    with pytest.raises(UserError, match='damaged .a TorchScript program; save the state_dict of its net'):
        load_checkpoint(str(tmp_path / 'x.pth'), '--path-t')


def test_only_our_checkpoints_say_what_they_are(tmp_path):
    """Also those that were written before they had a version; others' `arch` is at most proposed."""
    state = model_dict['resnet8'](num_classes=10).state_dict()
    said = {'model': state, 'arch': 'vgg8', 'num_classes': 7}
    file = tmp_path / 'x.pth'
    for content in ({**said, 'format_version': 1}, said, {**said, 'epoch': 3, 'best_acc': 9.0}):
        torch.save(content, file)
        name, checkpoint = open_net(str(file))
        assert (name, checkpoint['num_classes'], 'hint' in checkpoint) == ('vgg8', 7, False)
    for content, words in (
            ({**said, 'epoch': 3, 'best_acc1': 9.0}, 'give --model_t, perhaps vgg8'),
            ({'state_dict': state, 'arch': 'resnet18'}, 'perhaps (timm:resnet18 or )?torchvision:resnet18'),
            (state, 'give --model_t, perhaps resnet8'),
            ({'format_version': 2, **said}, 'was written by a later version of this project, in format 2'),
            ({**said, 'num_classes': 'ten'}, "says that its net has 'ten' classes instead of a whole number from 0 to"),
            ({**said, 'num_classes': 10**9}, 'says that its net has 1000000000 classes instead of')):
        torch.save(content, file)
        with pytest.raises(UserError, match=f'--path-t {file}: .*{words}'):
            open_net(str(file))


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
    assert find_architecture(f'save/models/{folder}/ckpt_epoch_240.pth', {}) == name
    assert find_architecture(f'save/models/{folder}/ckpt_epoch_240.pth', {'arch': 'vgg8'}) == 'vgg8'


@pytest.mark.parametrize('folder', ['my_teacher', 'resnet9_vanilla', 'resnet32x5'])
def test_unknown_teacher(folder):
    with pytest.raises(UserError, match=f'the folder {folder} does not say which model this is; give --model_t;'):
        find_architecture(f'save/models/{folder}/x.pth', {})


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
    assert load_checkpoint(str(path), '') == {'epoch': 1, 'format_version': 1}
    write_json(tmp_path / 'a.json', {'x': 1})
    assert sorted(p.name for p in tmp_path.iterdir()) == ['a.json', 'net.pth']      # no temporary file is left
