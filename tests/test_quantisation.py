"""--qat: a net that computes in 8 bits, learns so, and is exported with its own ranges."""
import copy
import csv
import json
import shutil
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, Here, assert_same

import scripts.compare_int8 as compare_int8
import scripts.export_student as export_student
import train_student
import train_teacher
from dataset import get_dataloaders
from export import qat, verify
from export.qat import integer_net
from helper.checkpoint import load_checkpoint
from helper.errors import UserError
from models.base import Net
from models.find import build
from models.fold import fold_batchnorm
from models.load import load_net, open_checkpoint
from models.quantisation import (
    CLIPPED,
    RANGES,
    calibrate,
    calibration_images,
    quantise,
    remove_rounding,
    round_weight,
    scales_of,
)
from options import student_options

NETS = ['resnet8', *(pytest.param(name, marks=pytest.mark.slow) for name in (
    'MobileNetV2', 'ShuffleV2', 'vgg8', 'timm:mobilenetv3_small_050', 'torchvision:resnet18'))]


def trained(name, size=32):
    """A net whose batch norms are not the identity, in eval mode, and images."""
    torch.manual_seed(0)
    net, images = build(name, 10, size), torch.randn(16, 3, size, size)
    for m in net.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(m.weight, -1.5, 1.5)
            torch.nn.init.normal_(m.bias, 0, 0.2)
    with torch.no_grad():
        for _ in range(3):
            net.train()(images)
    return net.eval(), images


def test_weights_by_hand():
    weight = torch.tensor([[127.0, 0.4, -0.6, -127.0], [0.0, 0.0, 0.0, 0.0], [1.27, 0.014, -0.006, 0.0]])
    want = torch.tensor([[127.0, 0.0, -1.0, -127.0], [0.0, 0.0, 0.0, 0.0], [1.27, 0.01, -0.01, 0.0]])
    torch.testing.assert_close(round_weight(weight), want)


def test_activations_by_hand():
    """Zero is one of the 256 values; values outside the range get its ends, and no gradient."""
    class Same(Net):
        def outputs(self, x, preact=False):
            return torch.cat([x])
    net = Same()
    quantise(net, 4)
    net.activation_ranges = torch.tensor([[-1.0, 254.0]])
    scales, zero_points = scales_of(net.activation_ranges)
    assert scales.tolist() == [1] and zero_points.tolist() == [1]
    x = torch.tensor([[-3.0, -0.6, 0.0, 0.4, 2.6, 300.0]], requires_grad=True)
    y = net.outputs(x)
    assert y.tolist() == [[-1.0, -1.0, 0.0, 0.0, 3.0, 254.0]]
    y.sum().backward()
    assert x.grad.tolist() == [[0.0, 1.0, 1.0, 1.0, 1.0, 0.0]]


def test_ranges():
    """All but CLIPPED of the values at each end, of batches together, before an activation function overwrites them."""
    class Swish(Net):
        def outputs(self, x, preact=False):
            return torch.nn.functional.hardswish(x, inplace=True)
    net = Swish()
    quantise(net, 4)
    values = torch.linspace(-5, 1, 8000)
    calibrate(net, [values[:4000].view(1, 1, 40, 100).clone(), values[4000:].view(1, 1, 40, 100).clone()])
    assert net.activation_ranges[0].tolist() == pytest.approx([-5 + 6 * CLIPPED, 1 - 6 * CLIPPED], abs=5e-3)
    assert net.outputs(torch.full((1, 1, 2, 2), 0.5)).mean() == pytest.approx(0.5 * 3.5 / 6, abs=0.02)
    calibrate(net, [torch.full((1, 1, 40, 100), 3.0)])
    assert net.activation_ranges.tolist() == [[0.0, 3.0]]       # a range contains 0


@pytest.mark.parametrize('name', NETS)
def test_the_onnx_file_computes_the_same(name, tmp_path):
    """All convolutions in 8 bits; batch norms with negative weights included.

    A float that lies between two integers may be rounded otherwise there, and the difference grows from layer to layer:
    it stays below that of the rounding itself.
    """
    onnx, onnxruntime = pytest.importorskip('onnx'), pytest.importorskip('onnxruntime')
    if ':' in name:
        pytest.importorskip(name.partition(':')[0])
    net, images = trained(name)
    plain = net(images).detach()
    quantise(net, 32)
    calibrate(net, [images])
    rounded = net(images).detach()
    torch.onnx.export(integer_net(net, 32), (images, ), tmp_path / 'net.onnx', dynamo=True, external_data=False,
                      opset_version=20, verbose=False)
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(tmp_path / 'optimised.onnx'), 3
    session = onnxruntime.InferenceSession(tmp_path / 'net.onnx', options)
    logits = torch.from_numpy(session.run(None, {session.get_inputs()[0].name: images.numpy()})[0])
    assert (logits - rounded).abs().mean() < (plain - rounded).abs().mean() < 0.1 * plain.std()
    operators = Counter(node.op_type for node in onnx.load(tmp_path / 'optimised.onnx').graph.node)
    convolutions = sum(isinstance(m, torch.nn.Conv2d) for m in net.modules())
    assert operators['QLinearConv'] == convolutions and not operators['Conv']
    assert not operators['BatchNormalization']


@pytest.mark.parametrize('name', ['resnet8', 'timm:mobilenetv3_small_050', 'torchvision:resnet18'])
def test_the_ranges_are_saved(name):
    """Beside the weights, whose names stay those of the library."""
    if ':' in name:
        pytest.importorskip(name.partition(':')[0])
    net, images = trained(name)
    plain, keys = net(images), {*net.state_dict()}
    quantise(net, 32)
    calibrate(net, [images])
    state, rounded = net.state_dict(), net(images)
    assert {*state} == keys | {RANGES}
    other = build(name, 10, 32).eval()
    quantise(other, 32)
    other.load_state_dict(state)
    assert torch.equal(other(images), rounded) and not torch.equal(rounded, plain)
    assert torch.equal(copy.deepcopy(other).eval()(images), rounded)
    remove_rounding(other)
    assert torch.equal(other(images), plain) and {*other.state_dict()} == keys
    assert type(other) is type(build(name, 10, 32))


def weights_of(file):
    return load_checkpoint(str(file), '')['model']


@pytest.fixture(scope='module')
def flags(call, small, teacher, tmp_path_factory):
    """Flags of a run with --qat from a student that has learnt for an epoch."""
    save = tmp_path_factory.mktemp('student')
    call(train_teacher.main, '--model', 'resnet8', *small, '--save_dir', save)
    return [*small, '--path_t', teacher, '--model_s', 'resnet8', '--epochs', 2, '--learning_rate', 0.001, '--qat',
            '--initial_checkpoint', next(save.glob('models/*/resnet8_best.pth'))]


@pytest.fixture(scope='module')
def run(call, flags, tmp_path_factory):
    save = tmp_path_factory.mktemp('whole')
    call(train_student.main, *flags, '--save_dir', save)
    return next(save.glob('student_model/*'))


def test_the_ranges_are_those_of_the_initial_student(flags, run):
    """Training keeps them."""
    opt = student_options([str(flag) for flag in flags])
    usual = [str(flag) for flag in flags if flag not in ('--learning_rate', 0.001)]
    assert student_options(usual).learning_rate == 0.0005
    data = get_dataloaders(opt, CPU)
    net = load_net(opt.initial_checkpoint, open_checkpoint(opt.initial_checkpoint), 'resnet8', data)
    quantise(net, 16)
    calibrate(net, calibration_images(data))
    weights = weights_of(run / 'resnet8_best.pth')
    assert torch.equal(weights[RANGES], net.activation_ranges) and weights[RANGES].abs().max() > 0
    assert not torch.equal(weights['conv1.weight'], net.conv1.weight)


def test_resume(call, flags, run, tmp_path, interrupt, capsys):
    """To the bit, without the initial checkpoint."""
    initial = shutil.copy(flags[-1], tmp_path / 'resnet8_best.pth')
    flags = [*flags[:-1], initial, '--save_dir', tmp_path, '--resume', 'auto']
    interrupt(3)
    with pytest.raises(SystemExit):
        call(train_student.main, *flags)
    initial.unlink()
    call(train_student.main, *flags)
    assert 'the weights are those of the resumed run' in capsys.readouterr().out
    assert_same(weights_of(next(tmp_path.glob('student_model/*/resnet8_best.pth'))),
                weights_of(run / 'resnet8_best.pth'))


def test_evaluate_and_a_run_that_starts_from_it(call, flags, run, tmp_path, capsys):
    """--evaluate measures the rounded net; another run starts without its ranges."""
    best = run / 'resnet8_best.pth'
    call(train_student.main, *flags[:-3], '--evaluate', best)
    accuracy = json.loads((run / 'test_best_metrics.json').read_text())['test_acc']
    assert f'top-1 {accuracy:.2f}' in capsys.readouterr().out
    call(train_student.main, *flags[:-3], '--initial_checkpoint', best, '--save_dir', tmp_path)
    assert 'its activation ranges of --qat left out, all 56 tensors loaded' in capsys.readouterr().out
    assert RANGES not in weights_of(next(tmp_path.glob('student_model/*/resnet8_best.pth')))


def test_export(call, run, tmp_path, monkeypatch, capsys):
    """The file in 8 bits has the run's ranges and is compared with the rounded net; the others are without rounding."""
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(verify, 'RuntimeProcess', Here)
    call(export_student.main, run, '--out', tmp_path / 'out', '--int8', '--formats', 'safetensors', '--num_workers', 0)
    card = json.loads((tmp_path / 'out' / 'model_card.json').read_text())
    in_8_bits = card['files']['student_int8.onnx']
    assert in_8_bits['ranges'] == '--qat' and in_8_bits['same first class %'] >= 90
    accuracy = json.loads((run / 'test_best_metrics.json').read_text())['test_acc']
    assert in_8_bits['rounded network top-1 %'] == pytest.approx(accuracy)
    assert card['files']['student.safetensors']['largest difference of logits'] == 0
    text = (tmp_path / 'out' / 'MODEL_CARD.md').read_text()
    assert f'compared with the rounded network in PyTorch (top-1 {accuracy:.2f} %)' in text
    assert f'{accuracy:.2f} with the rounding of --qat' in capsys.readouterr().out
    for flag, value in (('--int8_ranges', 'entropy'), ('--calibration', 64)):
        with pytest.raises(SystemExit):
            call(export_student.main, run, '--out', tmp_path / 'no', '--int8', flag, value)
        assert f'{flag} {value}: ' in capsys.readouterr().err and not (tmp_path / 'no').exists()


def test_the_file_of_a_student_of_qat_may_lose_a_point():
    rounded, file = (verify.Evaluation(images=200, correct=correct, agreeing=100) for correct in (160, 158))
    assert file.fault_of_qat(rounded) == ''
    file.correct = 157
    assert file.fault_of_qat(rounded) == \
        'its accuracy is 78.50 %, and the rounded network has 80.00 %; at most 1.0 less is allowed'
    file.failure = 'no runtime'
    assert file.fault_of_qat(rounded) == 'no runtime'


@pytest.mark.parametrize('others', [(), pytest.param(('minmax', 'entropy', 'percentile', 'best'),
                                                      marks=pytest.mark.slow)])
def test_compare_int8(call, flags, run, tmp_path, monkeypatch, capsys, others):
    """A row for each kind of 8 bits of a student, and for --qat."""
    pytest.importorskip('onnxruntime')
    monkeypatch.setattr(verify, 'RuntimeProcess', Here)
    runs = [Path(flags[-1]).parent, run] if others else [run]
    call(compare_int8.main, *runs, '--num_workers', 0, '--csv', tmp_path / 'rows.csv')
    with open(tmp_path / 'rows.csv', encoding='utf-8') as file:
        rows = [*csv.DictReader(file)]
    assert [row['bits'] for row in rows] == [*(['32 bits', *others] if others else []), '32 bits', '--qat']
    assert rows[-2]['run'] == run.name and float(rows[-1]['same class %']) >= 90
    accuracy = json.loads((run / 'test_best_metrics.json').read_text())['test_acc']
    assert float(rows[-2]['top-1 %']) == pytest.approx(accuracy, abs=0.01)
    assert f'{run.name}  --qat  {rows[-1]["top-1 %"]}' in capsys.readouterr().out


@pytest.mark.parametrize('more, text', [
    ([], '--qat: continues from a trained student; give its checkpoint as --initial_checkpoint'),
    (['--distill', 'simkd'], '--qat: --distill simkd does not train the logits of the plain student'),
    (['--distill', 'embed', '--unlabelled', '.'], '--qat: --distill embed does not train'),
    (['--compile'], '--compile: changes how the student computes'), (['--amp', 'bfloat16'], '--amp bfloat16: '),
    (['--fast'], '--fast: '), (['--grad_checkpointing'], '--grad_checkpointing: '), (['--sync_bn'], '--sync_bn: '),
    (['--drop_path', '0.1'], '--drop_path 0.1: '),
    (['--dataset', 'imagenet', '--dali', 'cpu'], '--dali cpu: cannot read the single images that --qat')])
def test_refused(more, text):
    initial = ['--initial_checkpoint', 'x.pth'] if more else []
    with pytest.raises(UserError) as error:
        student_options(['--path_t', 'timm:resnet18', '--qat', *initial, *more])
    assert str(error.value).startswith(text)


def test_a_student_that_computes_otherwise_in_training():
    class Dropped(Net):
        def outputs(self, x, preact=False):
            x = torch.cat([x])
            return x * torch.ones(2, 1, 1, 1) if self.training else x
    with pytest.raises(UserError, match='--model_s x: has layers that only compute in training'):
        quantise(Dropped().eval(), 4, '--model_s x')


def test_ranges_of_large_maps():
    """Sampled from all of the map: here each column has values of its own."""
    class Same(Net):
        def outputs(self, x, preact=False):
            return torch.cat([x])
    net = Same().eval()
    quantise(net, 4)
    images = torch.linspace(-1, 1, 32).expand(64, 16, 32, 32)
    calibrate(net, [images])
    assert net.activation_ranges.tolist() == [[-1.0, 1.0]]


def test_a_layer_called_by_keywords():
    class Linear(Net):
        def outputs(self, x, preact=False):
            return torch.nn.functional.linear(torch.cat(tensors=[x.mean((2, 3))]), weight=self.weight, bias=None)
    net = Linear().eval()
    net.weight = torch.nn.Parameter(torch.tensor([[127.0, 0.4, -0.6]]))
    quantise(net, 4)
    calibrate(net, [torch.linspace(0, 255, 256).view(1, 1, 1, -1).expand(1, 3, 1, 256)])
    assert net.activation_ranges.shape == (3, 2)        # of mean, cat and linear
    x = torch.tensor([[[[3.0]], [[100.0]], [[100.0]]]])
    scales, zero_points = scales_of(net.activation_ranges)
    assert zero_points.tolist() == [0, 0, 0]
    assert net.outputs(x).item() == pytest.approx(127 * 3 - 100, rel=0.02)


def test_the_bias_of_a_channel_without_weights():
    """Batch norms can switch a channel off; its bias stays in the file."""
    net, images = trained('resnet8', 8)
    with torch.no_grad():
        net.bn1.weight[:3] = torch.tensor([0.0, 1e-12, 1e-6])
        net.bn1.bias[:3] = 0.5
    quantise(net, 8)
    calibrate(net, [images])
    layers = []
    folded = copy.deepcopy(net)
    fold_batchnorm(folded, 8)
    folded.new_pass = lambda net: qat._CollectIntegers(net, layers)
    folded.outputs(images)
    integers, scales = layers[0][1]
    assert (integers * scales)[:3].tolist() == pytest.approx([0.5] * 3, rel=1e-4)


@pytest.mark.parametrize('ranges', [[3.0, 4.0], [-4.0, -3.0], [5.0, -5.0], [0.0, float('inf')]])
def test_damaged_ranges(run, tmp_path, ranges):
    content = load_checkpoint(str(run / 'resnet8_best.pth'), '')
    content['model'][RANGES][3] = torch.tensor(ranges)
    torch.save(content, tmp_path / 'net.pth')
    data = SimpleNamespace(num_classes=4, image_size=16, inputs=content['inputs'], classes=content['classes'],
                           same_classes=False)
    with pytest.raises(UserError, match='must be finite and contain 0; the file is damaged'):
        load_net(str(tmp_path / 'net.pth'), open_checkpoint(str(tmp_path / 'net.pth')), 'resnet8', data)


def test_as_a_teacher(call, small, run, tmp_path, capsys):
    """Without its rounding."""
    call(train_student.main, *small, '--path_t', run / 'resnet8_best.pth', '--save_dir', tmp_path, '--compile')
    assert 'resnet8_best.pth: teaches without the rounding of --qat' in capsys.readouterr().out


def test_evaluate_compiled(call, small, run, capsys):
    """The kernels for CPUs leave the rounding in."""
    call(train_student.main, *small, '--path_t', run / 'resnet8_best.pth', '--evaluate', run / 'resnet8_best.pth',
         '--compile')
    metrics = json.loads((run / 'test_best_metrics.json').read_text())
    assert f'top-1 {metrics["test_acc"]:.2f}' in capsys.readouterr().out
