"""Networks of timm, of torchvision and of a user's file behind the contract of models.base.Net."""
import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, assert_same, outcome
from torch import nn
from torchvision import models as torchvision_models

import train_student
import train_teacher
from dataset import Data
from dataset.memory import MemoryLoader
from dataset.teacher_cache.layout import outputs_checksum
from distiller_zoo import Vanilla, distiller_dict, load_inference_net, make_distiller
from helper import distributed
from helper.checkpoint import load_checkpoint, weights_checksum
from helper.errors import UserError
from helper.optim import new_optimizer
from helper.run_folder import folder_name
from models import find, model_dict
from models.adapter import evenly_spaced, tokens_to_map
from models.find import build
from models.inputs import Inputs, to_grey
from models.load import load_net, open_net
from models.sync_batchnorm import CpuSyncBatchNorm, synchronise_batchnorm
from options import student_options

timm = pytest.importorskip('timm')

# net, pixels, sizes of the stages' maps, whether the logits are a function of the last map's mean
TIMM = {
    'resnet10t': (64, [16, 8, 4, 2], True), 'resnetv2_18': (64, [16, 8, 4, 2], False),
    'convnext_atto': (64, [16, 8, 4, 2], True), 'inception_next_atto': (64, [16, 8, 4, 2], False),
    'vit_tiny_patch16_224,depth=5': (32, [2, 2, 2, 2], False),
    'vit_relpos_small_patch16_224,depth=4,embed_dim=48,num_heads=3': (32, [2, 2, 2, 2], True),
    'deit_tiny_distilled_patch16_224,depth=4': (32, [2, 2, 2, 2], False),
    'eva02_tiny_patch14_224,depth=4': (28, [2, 2, 2, 2], True),
    'swin_tiny_patch4_window7_224,depths=(1,1,1,1),embed_dim=24': (64, [16, 8, 4, 2], True),
    'mobilenetv3_small_050': (64, [16, 8, 4, 2], False), 'mobilenetv4_conv_small_035': (64, [16, 8, 4, 2], False),
    'efficientnet_lite0': (64, [32, 16, 8, 4, 2], True), 'regnetx_002': (64, [16, 8, 4, 2], True),
    'regnety_002': (64, [16, 8, 4, 2], True), 'gmlp_ti16_224': (32, [2, 2, 2, 2], True),
    'poolformer_s12': (64, [16, 8, 4, 2], True), 'pvt_v2_b0': (64, [16, 8, 4, 2], True),
    'xcit_nano_12_p16_224,depth=4': (32, [2, 2, 2, 2], False), 'levit_128s': (64, [4, 2, 1], False),
    'coat_lite_tiny': (64, [16, 8, 4, 2], False), 'ghostnet_050': (64, [16, 8, 4, 2], False),
    'repvgg_a0': (64, [16, 8, 4, 2], True), 'edgenext_xx_small': (64, [16, 8, 4, 2], True),
    'mobilevit_xxs': (64, [32, 16, 8, 4, 2], True), 'efficientvit_b0': (64, [16, 8, 4, 2], False),
    'starnet_s1': (64, [16, 8, 4, 2], True),
}
TORCHVISION = {
    'alexnet': (64, [7, 3], False), 'resnet18': (64, [16, 8, 4, 2], True), 'squeezenet1_1': (64, [15, 7, 3], False),
    'densenet121': (64, [16, 8, 4, 2], True), 'googlenet': (64, [16, 8, 4, 2], True),
    'shufflenet_v2_x0_5': (64, [8, 4, 2], True), 'mobilenet_v2': (64, [32, 16, 8, 4, 2], True),
    'mobilenet_v3_small': (64, [16, 8, 4, 2], False), 'mnasnet1_0': (64, [32, 16, 8, 4, 2], True),
    'efficientnet_b0': (64, [32, 16, 8, 4, 2], True), 'regnet_x_400mf': (64, [16, 8, 4, 2], True),
    'regnet_y_400mf': (64, [16, 8, 4, 2], True), 'convnext_tiny': (64, [16, 8, 4, 2], True),
    'swin_t': (64, [16, 8, 4, 2], True), 'inception_v3': (96, [45, 22, 20, 9, 4, 1], True),
}


def data_of(size, batch=4, **fields):
    images = torch.randint(0, 256, (3 * batch, 3, size, size), dtype=torch.uint8)
    loader = MemoryLoader(images, torch.arange(3 * batch) % 10, batch, CPU, train=True)
    return Data(loader, loader, 10, size, loader.target, **fields)


def options_of(method, *flags):
    opt = student_options(['--path-t', 'x', '--distill', method, '--batch_size', '4', *flags])
    opt.model_t = 'the teacher'
    return opt


@pytest.mark.parametrize('name', [*(f'timm:{n}' for n in TIMM), *(f'torchvision:{n}' for n in TORCHVISION)])
def test_net(name):
    """The contract, logits equal to the library's, and a training step of kd+similarity."""
    plain = name.partition(':')[2]
    size, sizes, pooled = (TIMM if name.startswith('timm') else TORCHVISION)[plain]
    torch.manual_seed(0)
    net = build(name, 10, size).eval()
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        out = net.outputs(x)
        *maps, embedding = out.feats
        assert [f.shape[2] for f in maps[1:]] == sizes and all(f.shape[2] == f.shape[3] for f in maps)
        assert torch.equal(embedding, out.embedding)
        assert out.map.shape[:2] == (2, net.num_features) and out.map.dim() == 4
        assert out.embedding.shape == (2, net.head_hidden_size)
        logits = reference(name, size, net.state_dict())(x)
        torch.testing.assert_close(out.logits, logits, rtol=1e-5, atol=1e-5 * float(logits.abs().max()))
        if pooled:
            torch.testing.assert_close(net.pooled_head()(out.map.mean((2, 3))), out.logits, rtol=1e-3, atol=1e-4)
        else:
            with pytest.raises(NotImplementedError):
                net.pooled_head()
    teacher = model_dict['resnet8'](num_classes=10)
    opt = options_of('kd+similarity', '-b', '1,3000')
    distiller = make_distiller(net, teacher, opt, data_of(size))
    optimizer = distiller.make_optimizer(1e-3, opt)
    losses, _ = distiller.train()(torch.randn(4, 3, size, size), torch.arange(4), torch.arange(4))
    losses['loss'].backward()
    optimizer.step()
    gradients = [p.grad for p in net.parameters()]      # zeros, of a block that begins as the identity
    assert losses['loss'].isfinite() and sum(grad is not None for grad in gradients) > 0.9 * len(gradients)
    assert any(bool(grad.any()) for grad in gradients if grad is not None)


def reference(name, size, weights):
    """The library's net with these weights: they have its keys."""
    library, _, plain = name.partition(':')
    plain, given = find.parse_name(name, '')
    if library == 'timm':
        if timm.get_pretrained_cfg(plain).fixed_input_size:
            given['img_size'] = size
        make = timm.create_model
    else:
        if plain in ('inception_v3', 'googlenet'):
            given = {'aux_logits': False, 'init_weights': False}
        make = torchvision_models.get_model
    # Without the time of its initialisation, where that can be: timm's nets have buffers that no state_dict has.
    with torch.device('cpu' if library == 'timm' or plain.startswith('regnet') else 'meta'):
        net = make(plain, num_classes=10, **given)
    net.load_state_dict(weights, assign=True)
    return net.eval()


CONVNEXT = 'timm:convnext_atto,dims=(8,8,8,16),depths=(1,1,1,1),patch_size=1'
VIT = 'timm:vit_tiny_patch16_224,patch_size=4,embed_dim=24,num_heads=2,depth=6'


def test_a_name_with_settings():
    assert find.parse_name('timm:x,depths=(1,2),act_layer=gelu', '') == ('x', {'depths': (1, 2), 'act_layer': 'gelu'})
    net = build(VIT, 10, 16)
    assert len(net.stage_names) == 6 and net.selected_stages == [0, 2, 3, 5] and net.name == VIT
    assert evenly_spaced(12) == [2, 5, 8, 11] and evenly_spaced(3) == [0, 1, 2]


def test_a_net_of_another_size_than_the_data():
    """With img_size, images are resized before the net, also when its checkpoint is loaded for other data."""
    net = build(f'{VIT},img_size=24', 10, 16).eval()
    x = torch.randn(2, 3, 16, 16)
    larger = nn.functional.interpolate(x, 24, mode='bicubic', antialias=True)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.net(larger))
    checkpoint = {'model': net.state_dict(), 'inputs': data_of(16).inputs}
    again = load_net('x', checkpoint, f'{VIT},img_size=24', data_of(20)).eval()
    assert again(torch.randn(2, 3, 20, 20)).shape == (2, 10)


def test_timm_decides_what_has_no_decay():
    """Position embeddings and the class token have no weight decay, as in timm's scripts."""
    net = build(VIT, 10, 16)
    optimizer = new_optimizer(Vanilla(net), 0.1, student_options(['--path-t', 'x', '--opt', 'adamw']))
    free = {id(p) for group in optimizer.param_groups if not group['weight_decay'] for p in group['params']}
    assert {id(net.net.pos_embed), id(net.net.cls_token)} <= free and id(net.net.head.weight) not in free


def test_versions_of_the_library():
    """The state_dict keeps the version that torchvision reads in an mnasnet's weights."""
    net = build('torchvision:mnasnet0_5', 10, 32)
    torchvision_models.mnasnet0_5(num_classes=10).load_state_dict(net.state_dict())


def test_tokens_become_a_map():
    tokens = torch.arange(2 * 7 * 3).view(2, 7, 3)      # one class token, then two rows of three places
    assert tokens_to_map(tokens, 2, 3)[1, :, 1, 2].equal(tokens[1, 1 + 5])


def test_selected_stages(call, teacher, small, tmp_path):
    """--stages and --stages_t: feats has only these stages, for any net."""
    net = build(VIT, 10, 16).eval()
    x = torch.randn(2, 3, 16, 16)
    before = net.outputs(x)
    net.select_stages([0, 5], 16, '--stages')
    after = net.outputs(x)
    assert len(after.feats) == 4 and after.feats[1].equal(before.feats[1]) and after.feats[2].equal(before.feats[4])
    call(train_student.main, '--path-t', teacher, '--model_s', VIT, '--distill', 'semckd', '--stages', '1,3',
         '--stages_t', '0,2', *small, '--save_dir', tmp_path, '--skip-validation')
    epoch, = json.loads(next(tmp_path.glob('student_model/*/history.json')).read_text())
    assert [len(row) for row in epoch['attention']] == [2, 2]


@pytest.mark.parametrize('flags, words', [
    (['--distill', 'attention', '--stages', '1,6'],
     '--stages 1,6: timm:vit_tiny_patch16_224,patch_size=4,embed_dim=24,num_heads=2,depth=6 has the stages 0 to 5; '
     'give some of them in rising order'),
    (['--distill', 'attention', '--stages_t', '2,1'], '--stages_t 2,1: ResNet has the stages 0 to 2'),
    (['--stages', 'x'], '--stages: x: give the numbers of stages'),
    (['--model_s', 'timm:vit_tiny_patch17_224'], '--model_s timm:vit_tiny_patch17_224: timm 1'),
    (['--model_s', 'torchvision:resnet17'], 'torchvision has no such net; did you mean resnet18'),
    (['--model_s', 'timm:resnet10t,depth'], 'depth: give settings of the net as KEY=VALUE'),
    (['--model_s', 'timm:resnet10t,checkpoint_path=x'], 'checkpoint_path=x: give settings'),
    (['--model_s', 'timm:resnet10t,depth=3'], 'timm cannot build it with num_classes=4, depth=3'),
    (['--model_s', 'timm:resnet18.foo'], '--model_s timm:resnet18.foo: no such published weights; there are: '),
    (['--model_s', 'timm:resnet18.a1_in1k'], 'timm:resnet18.a1_in1k: a1_in1k names published weights, but this net '
                                             'gets new ones; leave it out, add --pretrained, or give'),
    (['--model_t', 'torchvision:resnet18.IMAGENET1K_V1'], ': IMAGENET1K_V1 names published weights'),
    (['--model_s', 'torchvision:vit_b_32,image_size=abc'], 'image_size=abc: give the pixels of a side, from 8 to 4096'),
    (['--model_s', 'timm:vit_tiny_patch16_224,img_size=(32,32)'], 'img_size=(32, 32): give the pixels of a side'),
    (['--model_s', 'timm:resnet18,block=3'], 'block=3 (AttributeError: '),
    (['--model_s', 'timm:resnet18,name=x'], "name=x (TypeError: "),
    (['--model_s', 'torchvision:resnet18,foo=1'], 'foo=1 (TypeError: '),
    (['--model_s', 'torchvision:inception_v3'], 'cannot be used with images of 16 pixels'),
    (['--model_s', 'torchvision:maxvit_t'], '--model_s torchvision:maxvit_t: not supported, its trace'),
    (['--model_s', 'nowhere.py:build'], '--model_s nowhere.py:build: no such file'),
    (['--distill', 'kdsvd'], '--distill kdsvd: needs stages of equal channels'),
    (['--distill', 'kdsvd'], 'For any two nets: '), (['--distill', 'kdsvd'], ' dist, '),
    (['--distill', 'catkd'], 'num_heads=2,depth=6 has other layers between them'),
])
def test_bad_input(call, teacher, small, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', teacher, '--model_s', VIT, *small, '--save_dir', tmp_path, *flags)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and words in error and error.count('\n') == 1 and not [*tmp_path.iterdir()]


def test_sync_bn_keeps_activations(monkeypatch):
    """timm's batch norms include the activation, so --sync_bn does not replace them by plain ones."""
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    with pytest.raises(UserError, match='--sync_bn: not for nets with BatchNormAct2d'):
        synchronise_batchnorm(build('timm:mobilenetv3_small_050', 10, 64))
    net = build('timm:resnet10t', 10, 64)
    synchronise_batchnorm(net)
    assert isinstance(net.net.bn1, CpuSyncBatchNorm)


def test_timm_is_not_installed(monkeypatch):
    monkeypatch.setitem(__import__('sys').modules, 'timm', None)
    with pytest.raises(UserError, match='--model_s timm:resnet10t: timm is not installed; pip install timm'):
        student_options(['--path-t', 'x', '--model_s', 'timm:resnet10t'])
    student_options(['--path-t', 'x', '--model_s', 'torchvision:resnet18'])


def test_inputs():
    """Inputs converts images as PIL and torchvision do."""
    from PIL import Image
    from torchvision.transforms import v2
    from torchvision.transforms.v2 import functional
    pixels = torch.randint(0, 256, (3, 20, 20), dtype=torch.uint8)
    given, wanted = ({'mean': [m] * 3, 'std': [0.2] * 3, 'size': size, 'interpolation': 'bicubic'}
                     for m, size in ((0.5, 20), (0.4, 12)))
    images = functional.normalize(pixels[None] / 255, given['mean'], given['std'])
    expected = v2.functional.to_image(functional.to_pil_image(pixels).resize((12, 12), Image.Resampling.BICUBIC)) / 255
    expected = functional.normalize(expected, wanted['mean'], wanted['std'])
    assert (Inputs(given, wanted)(images)[0] - expected).abs().max() < 2 / 255 / 0.2        # PIL rounds to whole values
    same = Inputs(given, {**wanted, 'size': 20})(images)
    torch.testing.assert_close(same, functional.normalize(pixels[None] / 255, wanted['mean'], wanted['std']))


def test_published_preprocessing(monkeypatch):
    """Published weights have timm's mean, std, size and interpolation; the checksum of the outputs includes them."""
    made = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained=False, **more: made(name, **more))
    name, checkpoint = open_net('timm:resnet10t.c3_in1k')
    data = SimpleNamespace(num_classes=1000, image_size=32, inputs=data_of(32).inputs)
    net = load_net('timm:resnet10t', checkpoint, name, data).eval()
    assert (net.inputs.size, net.inputs.mode) == (176, 'bicubic')
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(net(x), net.net(net.inputs(x)))
    plain = load_net('timm:resnet10t', {**checkpoint, 'inputs': data.inputs}, name, data)
    # One teacher, whatever the size of a run's images; but its cached outputs are others.
    assert not hasattr(plain, 'inputs') and weights_checksum(plain) == weights_checksum(net)
    assert outputs_checksum(plain) != outputs_checksum(net)
    with pytest.raises(UserError, match='does not say how its net preprocesses images'):
        load_net('x', {**checkpoint, 'inputs': {'mean': [0, 0, 0], 'std': [0, 1, 1], 'size': 3}}, name, data)


def test_no_network(monkeypatch):
    def fail(*_, **__):
        raise OSError('no network')
    monkeypatch.setattr(timm, 'create_model', fail)
    with pytest.raises(UserError, match='--path-t timm:resnet10t: its weights cannot be downloaded .no network.'):
        open_net('timm:resnet10t')
    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fail)
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', fail)
    with pytest.raises(UserError, match='--path-t torchvision:resnet18: https.*could not be downloaded'):
        open_net('torchvision:resnet18')


def test_a_hub_that_does_not_answer(monkeypatch):
    """timm's download fails at once, not after a minute of retries."""
    constants = pytest.importorskip('huggingface_hub').constants
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', False)
    offline = []
    monkeypatch.setattr(timm, 'create_model', lambda *_, **__: offline.append(constants.HF_HUB_OFFLINE) or 1 / 0)
    with pytest.raises(UserError, match=r'cannot be downloaded \(http://127.0.0.1:9 does not answer\)'):
        open_net('timm:resnet10t')
    assert offline == [True] and constants.HF_HUB_OFFLINE is False


def test_a_file_of_safetensors(call, small, tmp_path, capsys):
    """A teacher in timm's formats: FILE with --model_t timm:NAME, and a folder with a configuration."""
    from safetensors.torch import save_file
    torch.manual_seed(0)
    made = timm.create_model('resnet10t', num_classes=4)
    folder = tmp_path / 'hub'
    folder.mkdir()
    save_file(made.state_dict(), folder / 'model.safetensors')
    config = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'input_size': [3, 32, 32], 'interpolation': 'bilinear'}
    (folder / 'config.json').write_text(json.dumps({'architecture': 'resnet10t', 'num_classes': 4,
                                                    'pretrained_cfg': config}))
    call(train_student.main, '--path-t', folder, '--distill', 'ofa', '--model_s', 'resnet8', *small, '--save_dir',
         tmp_path)
    assert next(tmp_path.glob('student_model/*')).name.startswith('S:resnet8_T:timm:resnet10t_folder_ofa')
    name, checkpoint = open_net(str(folder / 'model.safetensors'), 'timm:resnet10t')
    assert (name, checkpoint['inputs']['size']) == ('timm:resnet10t', 176)
    net = load_net('x', checkpoint, name, SimpleNamespace(num_classes=4, image_size=16, inputs=data_of(16).inputs))
    assert net.inputs.size == 176 and net.net.fc.weight.equal(made.fc.weight)
    with pytest.raises(SystemExit):
        call(train_student.main, '--path-t', folder / 'model.safetensors', *small, '--save_dir', tmp_path)
    assert 'the folder hub does not say which model this is; give --model_t;' in capsys.readouterr().err
    (folder / 'model.safetensors').write_bytes(b'x' * 100)
    with pytest.raises(UserError, match='is not a complete safetensors file'):
        open_net(str(folder))
    (folder / 'model.safetensors').unlink()
    with pytest.raises(UserError, match='model.safetensors: no such file; fetch it'):
        open_net(str(folder))
    (folder / 'config.json').unlink()
    with pytest.raises(UserError, match="is a folder without a checkpoint, NAME.pth, and without timm's config.json"):
        open_net(str(folder))


OWN = '''
from torch import nn

def build(num_classes):
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
                         nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(16, num_classes))

def broken(num_classes):
    return 1 / 0
'''


def test_a_net_of_a_users_file(call, small, tmp_path, capsys):
    """FILE.py:FUNCTION as teacher and as student. A checkpoint alone does not run code."""
    file = tmp_path / 'my_net.py'
    file.write_text(OWN)
    call(train_teacher.main, '--model', f'{file}:build', *small, '--save_dir', tmp_path)
    own = f'{tmp_path.name}-my_net.py:build'
    made, = tmp_path.glob(f'models/{own}_*/{own}_best.pth')
    flags = ['--path-t', made, '--model_s', f'{file}:build', '--distill', 'semckd', *small, '--save_dir', tmp_path]
    with pytest.raises(SystemExit):
        call(train_student.main, *flags)
    assert f'whose code is only run if you say so; add --model_t {file}:build' in capsys.readouterr().err
    call(train_student.main, *flags, '--model_t', f'{file}:build')
    assert [*tmp_path.glob(f'student_model/S:{own}_T:{own}_*')]
    file.write_text(OWN.replace('ReLU', 'Sigmoid'))
    with pytest.raises(SystemExit):
        call(train_student.main, *flags, '--model_t', f'{file}:build', '--resume')
    assert 'another run, with code of the teacher (checksum) ' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(train_teacher.main, '--model', f'{file}:broken', *small, '--save_dir', tmp_path)
    assert 'broken(num_classes=4) fails with ZeroDivisionError' in capsys.readouterr().err


OF_ITS_FOLDER = '''
import dataclasses
import pickle
from torch import nn
from layers import act, WIDTH

@dataclasses.dataclass
class Settings:
    width: "int" = WIDTH

def build(num_classes):
    w = pickle.loads(pickle.dumps(Settings())).width
    return nn.Sequential(nn.Conv2d(3, w, 3), act(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(w, num_classes))
'''


def test_modules_beside_a_net(tmp_path):
    """A file imports modules from its folder; the checksum of the teacher's outputs includes their code."""
    checksums = []
    for folder, kind in (('a', 'ReLU'), ('b', 'Sigmoid'), ('a', 'ReLU')):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / 'net.py').write_text(OF_ITS_FOLDER)
        layers = f'from torch.nn import {kind} as act  # {len(checksums)}\nWIDTH = 8'
        (tmp_path / folder / 'layers.py').write_text(layers)
        net = build(f'{tmp_path / folder / "net.py"}:build', 10, 16)
        assert str(getattr(torch.nn, kind)()) in str(net)
        for p in net.parameters():
            nn.init.constant_(p, 0.1)
        checksums.append((net.code_checksum, outputs_checksum(net)))
    assert checksums[0] == checksums[2] and checksums[0][0] != checksums[1][0] and checksums[0][1] != checksums[1][1]
    names = [folder_name(f'{tmp_path / folder / "net.py"}:build') for folder in 'ab']
    assert names == ['a-net.py:build', 'b-net.py:build'] and folder_name('net.py:build') == 'net.py:build'
    assert folder_name('timm:resnet18,in_chans=1') == 'timm:resnet18,in_chans=1'


FAULTY = '''
import random, sys
import numpy as np, torch
from torch import nn
from models.base import Net

class Plain(nn.Module):
    def __init__(self, num_classes, change=lambda net, x: x):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.more = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, num_classes)
        self.change = change
        self.generator, self.calls = np.random.default_rng(0), 0

    def forward(self, x):
        return self.change(self, self.head(self.more(self.conv(x).relu()).relu().mean((2, 3))))

class Own(Net):
    def __init__(self, num_classes):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(9, num_classes)

    def stages(self, x, preact=False):
        return [self.conv(x)] * 2, self.conv(x)

    def get_classifier(self):
        return self.head

def with_parameters(net, change):
    for p in net.parameters():
        change(p)
    return net

def counted(net, x):
    net.calls += 1
    return x * net.calls

fine = Plain
five = lambda num_classes: Plain(5)
thousand = lambda num_classes: Plain(1000)
positions = lambda num_classes: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, num_classes, 3))
double = lambda num_classes: Plain(num_classes).double()
double_logits = lambda num_classes: Plain(num_classes, lambda net, x: x.double())
frozen = lambda num_classes: Plain(num_classes).requires_grad_(False)
detached = lambda num_classes: Plain(num_classes, lambda net, x: x.detach())
not_finite = lambda num_classes: with_parameters(Plain(num_classes), lambda p: nn.init.constant_(p, float('nan')))
several = lambda num_classes: Plain(num_classes, lambda net, x: (x, x))
empty = lambda num_classes: nn.Flatten()
python_random = lambda num_classes: Plain(num_classes, lambda net, x: x if random.random() < 0.5 else 2 * x)
numpy_random = lambda num_classes: Plain(num_classes, lambda net, x: x if np.random.rand() < 0.5 else 2 * x)
torch_random = lambda num_classes: Plain(num_classes, lambda net, x: x if torch.rand(()) < 0.5 else 2 * x)
private_random = lambda num_classes: Plain(num_classes, lambda net, x: x * net.generator.random())
counts = lambda num_classes: Plain(num_classes, counted)
noise = lambda num_classes: Plain(num_classes, lambda net, x: nn.functional.dropout(x + torch.randn_like(x)))
leaves = lambda num_classes: sys.exit()

class PartlyWithout(Plain):
    def forward(self, x):
        with torch.no_grad():
            x = self.conv(x).relu()
        return self.head(self.more(x).mean((2, 3)))

class Unused(Plain):
    def forward(self, x):
        return self.conv(x)

class Functional(Plain):
    def forward(self, x):
        return nn.functional.linear(self.more(self.conv(x).relu()).relu().mean((2, 3)), *self.head.parameters())

class Mlp(nn.Sequential):
    def __init__(self, num_classes):
        super().__init__(nn.Flatten(), nn.Linear(768, 9), nn.ReLU(), nn.Linear(9, num_classes))

class InTraining(Plain):
    def forward(self, x):
        return super().forward(x) if self.training else 2 * super().forward(x)

class MoreInTraining(Plain):
    def forward(self, x):
        x = self.conv(x)
        if self.training:
            x = x + 0
        return 1 + self.head(torch.relu(1 + self.more(torch.relu(1 + x))).mean((2, 3)))

class Dropping(nn.Module):
    def forward(self, x):
        return x * torch.rand_like(x) if self.training else x

class DropsInTraining(Plain):
    def __init__(self, num_classes):
        super().__init__(num_classes)
        self.drop = Dropping()

    def forward(self, x):
        return 1 + self.head(torch.relu(1 + self.drop(self.more(1 + self.conv(x)))).mean((2, 3)))

def globally(num_classes):
    torch.set_grad_enabled(False)
    return Plain(num_classes)

def in_double(num_classes):
    torch.set_default_dtype(torch.float64)
    return Plain(num_classes)
'''
FAULTS = {
    'five': 'gives 5 logits for 10 classes; let its last layer have num_classes outputs',
    'thousand': 'gives 1000 logits for 10 classes',
    'positions': "gives logits ('N', 10, 12, 12), not one row for each image",
    'double': 'its weights are float64; let them be float32', 'double_logits': 'gives logits of float64',
    'frozen': 'all of its parameters are frozen', 'detached': 'its logits have no gradient',
    'not_finite': 'its logits are not finite with new weights',
    'several': 'returns a tuple instead of the logits alone',
    'empty': 'has no parameters, so there is nothing to train',
    'Own': 'fails for images of 16 pixels with RuntimeError',
    **dict.fromkeys(('python_random', 'numpy_random', 'torch_random', 'private_random', 'counts'),
                    'draws random numbers, or keeps a count, in Python, which the trace of its stages would freeze'),
    'PartlyWithout': 'its forward pass switches gradients off, which the trace',
    'Unused': 'the trace changes head.bias, head.weight, more.bias',
    'Mlp': 'none of its modules gives a map (N, C, H, W)',
    **dict.fromkeys(('InTraining', 'MoreInTraining'),
                    'its forward pass takes other steps in training than in evaluation'),
    'leaves': 'leaves(num_classes=10) calls sys.exit(None)',
    'globally': 'switches gradients, or the default dtype, for the whole program', 'in_double': 'switches gradients'}


def test_nets_that_do_not_fit(tmp_path):
    """Each fault is an error of one line when the net is built; a teacher needs no gradients."""
    file = tmp_path / 'faulty.py'
    file.write_text(FAULTY)
    for function, words in FAULTS.items():
        with pytest.raises(UserError) as caught:
            build(f'{file}:{function}', 10, 16, '--model_s')
        assert str(caught.value).startswith(f'--model_s {file}:{function}: ') and words in str(caught.value), caught
        assert torch.is_grad_enabled() and torch.get_default_dtype() == torch.float32
    for function in ('fine', 'noise', 'Functional', 'DropsInTraining'):
        assert build(f'{file}:{function}', 10, 16)(torch.randn(2, 3, 16, 16)).shape == (2, 10)
    for function in ('frozen', 'detached', 'not_finite', 'PartlyWithout'):
        build(f'{file}:{function}', 10, 16, trains=False)
    file.write_text('import sys\nsys.exit()')
    with pytest.raises(UserError, match='calls sys.exit'):
        build(f'{file}:fine', 10, 16)
    for name, words in (('timm:resnet10t,global_pool=', 'gives logits for each position'),
                        ('timm:resnet10t,in_chans=4', 'in_chans=4: images have three colours; give 3, or 1')):
        with pytest.raises(UserError, match=words):
            build(name, 10, 64)


def test_a_net_of_one_channel(tmp_path, capsys):
    """It gets grey images with Pillow's weights, from timm as from a file."""
    from PIL import Image
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    grey = torch.stack([torch.from_numpy(np.array(Image.fromarray(image.permute(1, 2, 0).numpy()).convert('L')))
                        for image in pixels])[:, None].float()
    assert (to_grey(pixels.float()) - grey).abs().max() < 1
    file = tmp_path / 'grey.py'
    file.write_text(OWN.replace('Conv2d(3,', 'Conv2d(1,'))
    for name in ('timm:resnet10t,in_chans=1', f'{file}:build'):
        net = build(name, 10, 32, '--model').eval()
        assert f'--model {name}: takes one channel, so it gets grey images' in capsys.readouterr().out
        x = torch.randn(2, 3, 32, 32)
        out = net.outputs(x)
        torch.testing.assert_close(net(x), out.logits)
        torch.testing.assert_close(net.run(to_grey(x))[3], out.logits)
        assert net.forward_features(x).equal(out.map)


@pytest.mark.parametrize('student', [VIT, 'resnet8',
                                     pytest.param('torchvision:shufflenet_v2_x0_5', marks=pytest.mark.slow)])
def test_a_convnext_teaches(call, small, tmp_path, student):
    """simkd deploys the teacher's norm and classifier: the run resumes bit-identically, and the net loads again."""
    call(train_teacher.main, '--model', CONVNEXT, *small, '--save_dir', tmp_path)
    made, = tmp_path.glob('models/*/*_best.pth')
    flags = ['--path-t', made, '--model_s', student, '--distill', 'simkd', *small, '--skip-validation']
    call(train_student.main, *flags, '--epochs', 2, '--save_dir', tmp_path / 'whole')
    call(train_student.main, *flags, '--save_dir', tmp_path / 'parts')
    call(train_student.main, *flags, '--epochs', 2, '--save_dir', tmp_path / 'parts', '--resume')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    best = next(tmp_path.glob('whole/student_model/*/*_best.pth'))
    assert load_checkpoint(str(best), '')['inputs']['size'] == 16
    name, net = load_inference_net(str(best), SimpleNamespace(num_classes=4, image_size=16), '')
    assert name == f'{student} by simkd' and isinstance(net.classifier[0], nn.LayerNorm)


@pytest.mark.parametrize('method', [m for m in distiller_dict if not distiller_dict[m].spec.first_stage])
def test_across_families(method):
    """With a ConvNeXt as teacher of a transformer each method takes a step, or its error lists methods that can."""
    teacher, student = build(CONVNEXT, 10, 32), build(VIT, 10, 32)
    has_beta = method in ('kd', 'ctkd') or distiller_dict[method].spec.published.get('beta')
    opt = options_of(method, *([] if has_beta else ['-b', '1']))
    opt.nce_k = 10
    data = data_of(32)
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    data.unaugmented_loader = lambda: MemoryLoader(images, torch.arange(4), 4, CPU)
    try:
        distiller = make_distiller(student, teacher, opt, data)
    except UserError as error:
        assert re.search('For any two nets: .*dist, ', str(error)), error
        return
    distiller.prepare(data)
    views = len(distiller.spec.views)
    images = torch.randn(*([views] if views > 1 else []), 4, 3, 32, 32)
    losses, _ = distiller.train()(images, torch.arange(4), torch.arange(4))
    losses['loss'].backward()
    assert losses['loss'].isfinite()


def test_the_distillation_token():
    """DeiT: one classifier learns the labels, the token's the teacher's class; the deployed net averages them."""
    torch.manual_seed(0)
    student = build('timm:deit_tiny_distilled_patch16_224,patch_size=8,embed_dim=24,num_heads=2,depth=2', 10, 16)
    teacher = model_dict['resnet8'](num_classes=10)
    distiller = make_distiller(student, teacher, options_of('deit'), data_of(16)).train()
    images, target = torch.randn(4, 3, 16, 16), torch.arange(4)
    losses, logits = distiller(images, target)
    taught = distiller.teacher(images).argmax(1)
    first, token = student.net(images)      # in training both
    cross_entropy = nn.functional.cross_entropy
    torch.testing.assert_close(losses['loss'], (cross_entropy(first, target) + cross_entropy(token, taught)) / 2)
    assert logits.equal(first)
    net = distiller.inference_net().eval()
    torch.testing.assert_close(net(images), ((first + token) / 2))
    distiller = make_distiller(teacher, student.eval(), options_of('deit'), data_of(16)).train()
    losses, logits = distiller(images, target)
    taught = student(images).argmax(1)
    torch.testing.assert_close(losses['loss'], (cross_entropy(logits, target) + cross_entropy(logits, taught)) / 2)
