"""--pretrained and --initial_checkpoint: what is loaded, what is new, and what is refused."""
import json
import shlex
import shutil
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import train_student
import train_teacher
from helper.checkpoint import load_checkpoint, save_checkpoint
from helper.errors import UserError
from models.find import build
from models.load import load_net, open_net
from models.start import CHECKSUM, load_start, open_initial
from option_checkpoints import open_start, set_preprocessing
from options import student_options, teacher_options

CLASSES = ('ant', 'bee', 'cat', 'dog')
INPUTS = {'mean': [0.5, 0.4, 0.3], 'std': [0.2, 0.3, 0.4], 'size': 32, 'interpolation': 'bicubic'}


def data_of(classes=CLASSES, image_size=32):
    return SimpleNamespace(classes=classes, num_classes=len(classes), image_size=image_size, same_classes=False)


def start_net(name, path, data):
    """(the net `name` after --initial_checkpoint `path`, its new weights before, the properties of the run)."""
    torch.manual_seed(1)
    net = build(name, data.num_classes, data.image_size)
    before = {key: value.clone() for key, value in net.state_dict().items()}
    return net, before, load_start(net, open_initial(str(path), name, '--model'), data)


@pytest.fixture(scope='module')
def checkpoint(tmp_path_factory):
    """file(classes, arch, **more): a checkpoint of this project with random weights."""
    folder = tmp_path_factory.mktemp('start')

    def write(classes=CLASSES, arch='resnet8', **more):
        torch.manual_seed(0)
        net = build(arch, len(classes), 32)
        file = folder / f'{len([*folder.iterdir()])}.pth'
        save_checkpoint(file, {'model': net.state_dict(), 'arch': arch, 'num_classes': len(classes), 'inputs': INPUTS,
                               'classes': [*classes], **more})
        return file
    return write


@pytest.mark.parametrize('name, classifier', [
    ('resnet8', {'fc.weight', 'fc.bias'}), ('MobileNetV2', {'classifier.0.weight', 'classifier.0.bias'}),
    ('vgg8', {'classifier.weight', 'classifier.bias'}), ('timm:resnet10t', {'fc.weight', 'fc.bias'}),
    ('timm:deit_tiny_distilled_patch16_224,depth=1', {f'{head}.{key}' for head in ('head', 'head_dist')
                                                      for key in ('weight', 'bias')}),
    ('torchvision:squeezenet1_1', {'classifier.1.weight', 'classifier.1.bias'}),
    ('torchvision:mobilenet_v3_small', {'classifier.3.weight', 'classifier.3.bias'})])
def test_new_classifier(checkpoint, capsys, name, classifier):
    """A classifier of other classes has torch's initial weights, all else is loaded, and a line says so."""
    file = checkpoint('abcdefg', name)
    net, before, properties = start_net(name, file, data_of())
    saved = load_checkpoint(str(file), '')['model']
    state = net.state_dict()
    assert all(state[key].equal(saved[key]) for key in saved.keys() - classifier)
    for weight in (state[key] for key in classifier if key.endswith('weight')):
        bound = weight[0].numel() ** -0.5
        assert 0.9 * bound < weight.abs().max() <= bound
    line = capsys.readouterr().out.splitlines()[-1]
    count = len(before)
    assert line.startswith(f'--initial_checkpoint {file}: {count - len(classifier)} of {count} tensors loaded')
    assert line.endswith('of 4 classes instead of 7') and all(key in line for key in classifier)
    assert properties == load_start(net, open_initial(str(file), name, '--model'), data_of())


def test_classes(checkpoint, capsys):
    """Equal class names: all is loaded. In another order: its rows are reordered. Other names: new."""
    file = checkpoint()
    saved = load_checkpoint(str(file), '')['model']['fc.weight']
    net, *_ = start_net('resnet8', file, data_of())
    assert net.fc.weight.equal(saved) and 'tensors loaded, with the classifier' in capsys.readouterr().out
    net, *_ = start_net('resnet8', file, data_of(CLASSES[::-1]))
    assert net.fc.weight.equal(saved.flip(0)) and 'are reordered' in capsys.readouterr().out
    net, *_ = start_net('resnet8', file, data_of(('eel', 'fox', 'gnu', 'hen')))
    assert not torch.isin(net.fc.weight, saved).any()
    assert 'of the classes eel, fox, gnu, hen instead of ant, bee, cat, dog' in capsys.readouterr().out


def test_classes_that_mean_the_same(checkpoint):
    """--same_classes loads the classifier of classes with other names."""
    file, data = checkpoint(), data_of(('Ameise', 'Biene', 'Katze', 'Hund'))
    data.same_classes = True
    net, *_ = start_net('resnet8', file, data)
    assert net.fc.weight.equal(load_checkpoint(str(file), '')['model']['fc.weight'])


def test_refused(checkpoint):
    def refusal(file, name='resnet8', data=None):
        with pytest.raises(UserError) as error:
            start_net(name, file, data or data_of())
        return str(error.value)
    assert 'holds the weights of resnet8, but --model is vgg8' in refusal(checkpoint(), 'vgg8')
    assert 'the network that --distill simkd deploys' in refusal(checkpoint(inference_net='simkd'))
    weights = load_checkpoint(str(checkpoint()), '')['model']
    damaged = {'layer1.0.bn1.weight (16,) is missing': {k: v for k, v in weights.items() if k != 'layer1.0.bn1.weight'},
               'conv1.weight is (1,), the model has (16, 3, 3, 3)': {**weights, 'conv1.weight': torch.ones(1)},
               'has NaN among': {**weights, 'conv1.weight': weights['conv1.weight'] * float('nan')}}
    for text, model in damaged.items():
        assert text in refusal(checkpoint(model=model))


def test_a_vit_for_other_images(checkpoint, capsys):
    """timm resamples position embeddings."""
    name = 'timm:vit_tiny_patch16_224,depth=1'
    file = checkpoint(arch=name)
    net, before, _ = start_net(name, file, data_of(image_size=64))
    assert net.net.pos_embed.shape == (1, 17, 192) and not net.net.pos_embed.equal(before['pos_embed'])
    assert net.net.head.weight.equal(load_checkpoint(str(file), '')['model']['head.weight'])
    assert 'pos_embed resampled by timm for images of 64 pixels' in capsys.readouterr().out


def test_published_weights(monkeypatch, capsys):
    """--pretrained loads what timm downloads, with timm's preprocessing, and keeps the tag in the net's name."""
    made = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained=False, **more: made(name, **more))
    opt = teacher_options(['--model', 'timm:resnet10t.c3_in1k', '--pretrained', '--dataset', 'folder'])
    start = open_start(opt)
    set_preprocessing(opt, start)
    assert opt.image_size == 176 and start.inputs['interpolation'] == 'bicubic'
    net = build(opt.model, 4, 32)
    load_start(net, start, data_of())
    assert net.net.conv1[0].weight.equal(start.checkpoint['model']['conv1.0.weight'])
    assert '--pretrained timm:resnet10t.c3_in1k: ' in capsys.readouterr().out


@pytest.mark.parametrize('flags', [['--pretrained'], ['--initial_checkpoint', 'timm:resnet10t']])
def test_published_weights_without_a_network(monkeypatch, flags):
    def unreachable(*_, **__):
        raise OSError('no network')
    opt = teacher_options(['--model', 'timm:resnet10t', *flags])
    monkeypatch.setattr(timm, 'create_model', unreachable)
    with pytest.raises(UserError, match='their folder or safetensors file as --initial_checkpoint') as error:
        open_start(opt)
    assert str(error.value).startswith(flags[0]) and 'model_t' not in str(error.value)


@pytest.mark.parametrize('flags, message', [
    (['--model', 'resnet8', '--pretrained'], '--model resnet8 has no published weights; give the weights of a file'),
    (['--model', 'ResNet18', '--pretrained'], 'give --model torchvision:resnet18, the same net with published weights'),
    (['--model', 'timm:nf_resnet26', '--pretrained'], '--model timm:nf_resnet26 has no published weights'),
    (['--pretrained', '--initial_checkpoint', 'x'], '--pretrained: --initial_checkpoint x also sets the initial'),
    (['--evaluate', 'x', '--initial_checkpoint', 'x'], '--initial_checkpoint: has no effect with --evaluate'),
    (['--evaluate', 'x', '--model', 'timm:resnet10t', '--pretrained'], '--pretrained: has no effect with --evaluate'),
    (['--model', 'timm:resnet10t.c3_in1k'], 'add --pretrained'),
])
def test_refused_options(flags, message):
    with pytest.raises(UserError) as error:
        teacher_options(flags)
    assert message in str(error.value)


@pytest.fixture
def folder(tmp_path):
    """A folder as timm writes it, of a net with 7 classes."""
    folder = tmp_path / 'timm'
    folder.mkdir()
    torch.manual_seed(0)
    save_file(timm.create_model('resnet10t', num_classes=7).state_dict(), folder / 'model.safetensors')
    config = {'mean': [0.5, 0.4, 0.3], 'std': [0.5, 0.4, 0.3], 'input_size': [3, 16, 16], 'interpolation': 'bilinear'}
    (folder / 'config.json').write_text(json.dumps({'architecture': 'resnet10t', 'num_classes': 7,
                                                    'pretrained_cfg': config}))
    return folder


@pytest.mark.parametrize('main', [train_teacher.main, train_student.main], ids=['teacher', 'student'])
def test_runs(call, small, teacher, folder, tmp_path, capsys, main):
    """A run takes its image size and preprocessing from the start; another start is another run."""
    place = small.index('--image_size')
    flags = [*small[:place], *small[place + 2:], '--save_dir', tmp_path, '--initial_checkpoint', folder, '--model',
             'timm:resnet10t']
    if main is train_student.main:
        flags[-2:] = ['--path-t', teacher, '--model_s', 'timm:resnet10t']
    call(main, *flags)
    assert f'{folder}: its net takes images of 16 pixels, so --image_size is 16' in capsys.readouterr().out
    run = next(tmp_path.glob('*/*/last.pth')).parent
    parameters = json.loads((run / 'parameters.json').read_text())
    assert parameters['initial_checkpoint'] == str(folder) and parameters[CHECKSUM] > 0
    saved = load_checkpoint(str(run / 'last.pth'), '')
    assert saved['inputs']['mean'] == [0.5, 0.4, 0.3] and saved['inputs']['size'] == 16
    with pytest.raises(SystemExit):
        call(main, *flags, '--initial_checkpoint', teacher)
    assert 'but --model' in capsys.readouterr().err
    weights = load_file(folder / 'model.safetensors')
    save_file({**weights, 'fc.bias': weights['fc.bias'] + 1}, folder / 'model.safetensors')     # of the old classifier
    call(main, *flags, '--resume', 'auto')
    save_file({**weights, 'bn1.bias': weights['bn1.bias'] + 1}, folder / 'model.safetensors')
    with pytest.raises(SystemExit):
        call(main, *flags, '--resume', 'auto')
    assert f'another run, with initial weights (checksum) {parameters[CHECKSUM]}, now' in capsys.readouterr().err
    shutil.rmtree(folder)
    call(main, *flags, '--epochs', 2, '--resume', 'auto')
    assert f'{folder}: the weights are those of the resumed run' in capsys.readouterr().out
    assert json.loads((run / 'parameters.json').read_text())[CHECKSUM] == parameters[CHECKSUM]
    with pytest.raises(SystemExit):
        call(main, *flags, '--epochs', 2, '--trial', 9)
    assert f'--initial_checkpoint {folder}: no such file' in capsys.readouterr().err


def test_a_resumed_run_downloads_nothing(call, small, tmp_path, monkeypatch, capsys):
    """Its weights are in last.pth, and its preprocessing too."""
    made = timm.create_model
    monkeypatch.setattr(timm, 'create_model', lambda name, pretrained=False, **more: made(name, **more))
    flags = [*small, '--model', 'timm:resnet10t', '--pretrained', '--save_dir', tmp_path]
    call(train_teacher.main, *flags)
    monkeypatch.setattr('models.timm_net.published', None)
    call(train_teacher.main, *flags, '--epochs', 2, '--resume', 'auto')
    assert '--pretrained timm:resnet10t: the weights are those of the resumed run' in capsys.readouterr().out
    state = load_checkpoint(str(next(tmp_path.glob('models/*/last.pth'))), '')
    assert state['epoch'] == 3 and state['inputs']['interpolation'] == 'bicubic'


def test_the_command_that_fine_tunes(checkpoint, folder):
    """A teacher of other classes is refused with a command that train_teacher.py accepts."""
    data = SimpleNamespace(**vars(data_of()), flags=('--dataset', 'folder', '--data_dir', 'my data'))
    for path, name in ((checkpoint('abcdefg'), None), (folder, None), (folder / 'model.safetensors', 'timm:resnet10t')):
        arch, opened = open_net(str(path), name)
        with pytest.raises(UserError, match='a net of 7 classes, but the data has 4; fine-tune it first') as error:
            load_net(str(path), opened, arch, data)
        opt = teacher_options(shlex.split(str(error.value))[-10:])
        assert (opt.model, opt.initial_checkpoint, opt.data_dir) == (arch, str(path), 'my data')
        assert opt.freeze_epochs == 1


def test_sets_of_weights(tmp_path):
    """--checkpoint_key is that of --initial_checkpoint in train_teacher.py, that of --path-t in train_student.py."""
    nets = {key: build('resnet8', 4, 32).state_dict() for key in ('net', 'student')}
    torch.save(nets, tmp_path / 'two.pth')
    flags = ['--initial_checkpoint', str(tmp_path / 'two.pth'), '--checkpoint_key', 'student']
    start = open_start(teacher_options(['--model', 'resnet8', *flags]))
    assert start.checkpoint['model']['fc.bias'].equal(nets['student']['fc.bias'])
    with pytest.raises(UserError, match='several sets of weights; choose one by --checkpoint_key of train_teacher.py'):
        open_start(student_options(['--path-t', 'x', *flags]))
