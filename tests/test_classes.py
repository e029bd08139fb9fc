"""Class names of a checkpoint and of the data: outputs are reordered if the order differs; other names are refused."""
from types import SimpleNamespace

import pytest
import torch
from conftest import CLASSES, CPU, build, data_options
from torch import nn

import dataset
import train_student
import train_teacher
from dataset.teacher_cache.layout import outputs_checksum
from distiller_zoo import load_inference_net
from export import verify
from helper.checkpoint import load_checkpoint, save_checkpoint
from helper.errors import UserError
from models import model_dict
from models.base import Net, Outputs
from models.classes import class_order, reorder_classes
from models.load import load_net, open_net

ORDER = [2, 0, 3, 1]


def data_of(classes, same_classes=False):
    return SimpleNamespace(classes=tuple(classes), num_classes=4, image_size=16, same_classes=same_classes)


def in_another_order(teacher, file, classes=None):
    """The teacher's checkpoint with its classes in another order, or renamed to `classes`."""
    state = load_checkpoint(str(teacher), '')
    for name in ('fc.weight', 'fc.bias'):
        state['model'][name] = state['model'][name][ORDER]
    state['classes'] = classes or [state['classes'][i] for i in ORDER]
    save_checkpoint(file, state)
    return str(file)


@pytest.fixture
def other(teacher, tmp_path):
    return in_another_order(teacher, tmp_path / 'other.pth')


def test_class_order():
    names = ['cat', 'ant', 'dog', 'bee']
    assert class_order(names, data_of(CLASSES), 'x') == [1, 3, 0, 2]
    assert class_order([*CLASSES], data_of(CLASSES), 'x') is None
    for unknown in (None, [], [0, 1, 2, 3], {'ant': 0}):        # of a foreign checkpoint
        assert class_order(unknown, data_of(CLASSES), 'x') is None
    assert class_order(names, SimpleNamespace(num_classes=4), 'x') is None
    with pytest.raises(UserError) as caught:
        class_order(['bee', 'cat', 'dog', 'eel'], data_of(CLASSES), 'x')
    assert str(caught.value) == (
        'x: its class names are not those of the data: only the checkpoint has eel, only the data have ant; give data '
        'with the same class names, or --same_classes if the classes mean the same in their order (0: bee is ant, '
        '1: cat is bee, 2: dog is cat, 3: eel is dog)')
    with pytest.raises(UserError, match='another order than those of the data, and some have the same name; .*'
                                        r'\(0: ant is bee, 1: bee is ant\)'):
        class_order(['ant', 'bee', 'cat', 'cat'], data_of(['bee', 'ant', 'cat', 'cat']), 'x')
    assert class_order(['eel', 'bee', 'cat', 'ant'], data_of(CLASSES, same_classes=True), 'x') is None


class Scaled(Net):
    """Has a linear layer that does not return its logits."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def get_classifier(self):
        return self.fc

    def outputs(self, x, preact=False):
        embedding = x.mean((2, 3))
        return Outputs(self.fc(embedding) + torch.arange(4.0), embedding, [embedding], x)


@pytest.mark.parametrize('name', ['resnet8', 'vgg8', 'MobileNetV2', 'ShuffleV1', 'simkd', 'scaled'])
def test_reordered_outputs(name):
    if name == 'simkd':
        net, order = build('simkd')[0].inference_net(), [*range(9, -1, -1)]
    else:
        net, order = Scaled() if name == 'scaled' else model_dict[name](num_classes=4), ORDER
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        before = net.eval()(images)
        reorder_classes(net, order, 16)
        torch.testing.assert_close(net(images), before[:, order])
        if name == 'scaled':
            torch.testing.assert_close(net.outputs(images).logits, before[:, order])
            with pytest.raises(NotImplementedError):
                net.get_classifier()
        elif name != 'simkd':       # what srrl and others read
            torch.testing.assert_close(net.get_classifier()(net.hidden(net.outputs(images).embedding)),
                                       before[:, order])


def test_a_teacher_in_another_order(teacher, other, tree, capsys):
    """Outputs and their checksum stay the same; the checksum of the file differs."""
    data = dataset.get_dataloaders(data_options(data_dir=str(tree), normalise=None), CPU)
    nets = {}
    for file in (str(teacher), other):
        name, checkpoint = open_net(file)
        nets[file] = load_net(file, checkpoint, name, data).eval()
    said = capsys.readouterr().out
    assert said == f'--path-t {other}: has the classes of the data in another order; its outputs are reordered to ' \
                   f'match the data\n'
    one, two = nets.values()
    images = next(iter(data.test_loader))[0]
    with torch.no_grad():
        assert one(images).equal(two(images))
    assert outputs_checksum(one) == outputs_checksum(two) and one.checksum != two.checksum
    assert two.checksum == load_net(other, open_net(other)[1], 'resnet14', data_of(CLASSES[::-1])).checksum
    assert load_inference_net(other, data, '--evaluate')[1](images).equal(two(images))


def test_a_teacher_of_another_program_in_another_order(other, tmp_path, capsys):
    """It says its classes as a list, or as ImageFolder's class_to_idx."""
    names, weights = (load_checkpoint(other, '')[key] for key in ('classes', 'model'))
    for classes in ({'classes': names}, {'class_to_idx': {name: names.index(name) for name in sorted(names)}}):
        torch.save({'state_dict': weights, **classes}, tmp_path / 'theirs.pth')
        name, checkpoint = open_net(str(tmp_path / 'theirs.pth'), 'resnet14')
        net = load_net('x', checkpoint, name, data_of(CLASSES))
        assert net.fc.weight[ORDER].equal(weights['fc.weight'])
        assert 'its outputs are reordered to match the data' in capsys.readouterr().out
    torch.save({'state_dict': weights}, tmp_path / 'theirs.pth')
    for is_same in (False, True):
        name, checkpoint = open_net(str(tmp_path / 'theirs.pth'), 'resnet14')
        net = load_net('x', checkpoint, name, data_of(CLASSES, same_classes=is_same))
        assert net.fc.weight.equal(weights['fc.weight'])
        is_said = '--path-t x: does not name its classes; its outputs are taken in the order of the data: ant, bee, ' \
                  'cat, dog\n' in capsys.readouterr().out
        assert is_said != is_same


def test_an_export_is_measured_in_its_own_order(teacher, other, tree):
    data = dataset.get_dataloaders(data_options(data_dir=str(tree)), CPU)
    right = []
    for file in (str(teacher), other):
        checkpoint = load_checkpoint(file, '')
        net = load_net(file, {**checkpoint, 'classes': None}, 'resnet14', data).eval()       # in its own order
        shipped = verify.NormalisedNet(net, [*data.mean], [*data.std])
        order = class_order(checkpoint['classes'], data, '')
        found = verify.evaluate(shipped, {}, data.test_loader, 'uint8', nn.Sequential(net), order)
        right.append((found.network.correct, found.teacher.correct))
    assert right[0][0] == right[0][1] == right[1][0]


def test_the_scripts_compare_the_names(call, teacher, other, small, tmp_path, capfd):
    renamed = in_another_order(teacher, tmp_path / 'renamed.pth', ['a', 'b', 'c', 'd'])

    def evaluate(file, *flags):
        call(train_teacher.main, '--evaluate', file, *small, *flags)
        return capfd.readouterr().out.splitlines()[-1]
    assert evaluate(teacher) == evaluate(other) != evaluate(renamed, '--same_classes')
    for main, flag in ((train_teacher.main, '--evaluate'), (train_student.main, '--path-t')):
        with pytest.raises(SystemExit) as caught:
            call(main, flag, renamed, *small, '--save_dir', tmp_path / 'save')
        assert caught.value.code == 2 and capfd.readouterr().err.startswith(
            f'error: {flag} {renamed}: its class names are not those of the data: only the checkpoint has a, b, c, d, '
            f'only the data have ant, bee, cat, dog; give data with')
    with pytest.raises(UserError, match='--same_classes: has no effect without --evaluate'):
        train_teacher.teacher_options(['--same_classes'])
    assert not (tmp_path / 'save').exists()
