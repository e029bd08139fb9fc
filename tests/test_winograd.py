"""Winograd's convolution, its gradients and its bias, sum and ReLU equal torch's."""
import pytest
import torch
import torch.nn.functional as F

from benchmarks import convolutions
from benchmarks.__main__ import main as benchmark
from cpu_kernels import build, winograd

try:
    build.library()
except OSError as missing:
    pytest.skip(f'Winograd: {missing}', allow_module_level=True)


def random(*shape):
    return torch.randn(shape).to(memory_format=torch.channels_last)


def largest_error(found, exact):
    return ((found - exact).abs().max() / exact.abs().max()).item()


@pytest.mark.parametrize('channels, filters, height, width', [
    (16, 16, 32, 32), (32, 64, 16, 16), (64, 48, 8, 8), (128, 128, 4, 4), (16, 32, 7, 7), (32, 16, 14, 9),
    (16, 16, 1, 3)])
def test_as_conv2d(channels, filters, height, width):
    """Output and gradients, compared with float64; also for images smaller than a tile or without whole tiles."""
    torch.manual_seed(0)
    images, weight, grad = random(5, channels, height, width), random(filters, channels, 3, 3), None
    found, exact = [], []
    for results, convolve, kind in ((found, winograd.conv3x3, torch.float32),
                                    (exact, lambda i, w: F.conv2d(i, w, padding=1), torch.float64)):
        inputs = [t.to(kind).requires_grad_() for t in (images, weight)]
        output = convolve(*inputs)
        grad = torch.randn(output.shape) if grad is None else grad
        results += [output, *torch.autograd.grad(output, inputs, grad.to(kind))]
    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape and largest_error(one, other) < 3e-5


def test_any_memory_format():
    images, weight = torch.randn(3, 16, 8, 8), torch.randn(32, 16, 3, 3)
    output = winograd.conv3x3(images, weight)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert largest_error(output, F.conv2d(images, weight, padding=1)) < 3e-5


def test_no_images():
    images, weight = torch.randn(0, 16, 8, 8), torch.randn(32, 16, 3, 3)
    assert winograd.conv3x3(images, weight).shape == (0, 32, 8, 8)
    assert not winograd.weight_gradient(images, torch.randn(0, 32, 8, 8)).any()


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('residual', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('channels, filters, height, width', [(16, 48, 7, 9), (32, 32, 8, 8)])
def test_epilogue(bias, residual, relu, channels, filters, height, width):
    """With frozen tensors, and with all gradients."""
    torch.manual_seed(0)
    given = [random(3, channels, height, width), random(filters, channels, 3, 3),
             torch.randn(filters) if bias else None, random(3, filters, height, width) if residual else None]
    exact = [None if t is None else t.double().requires_grad_() for t in given]
    want = F.conv2d(*exact[:3], padding=1) + (exact[3] if residual else 0)
    want = F.relu(want) if relu else want
    assert largest_error(winograd.conv3x3(*given, relu), want) < 3e-5
    learnt = [None if t is None else t.requires_grad_() for t in given]
    found, grad = winograd.conv3x3(*learnt, relu), random(*want.shape)
    assert largest_error(found, want) < 3e-5
    found.backward(grad)
    want.backward(grad.double())
    for one, other in zip(learnt, exact, strict=True):
        assert one is None or largest_error(one.grad, other.grad) < (1e-3 if relu else 3e-5)   # a sign that differs


def test_a_residual_of_another_shape():
    with pytest.raises(ValueError, match='a residual'):
        winograd.conv3x3(random(2, 16, 4, 4), random(16, 16, 3, 3), None, random(2, 16, 4, 5))


@pytest.mark.parametrize('operator, one, other', [
    ('conv3x3', (2, 16, 4, 4), (16, 32, 3, 3)), ('conv3x3', (2, 16, 4, 4), (16, 16, 5, 5)),
    ('conv3x3', (2, 24, 4, 4), (16, 24, 3, 3)), ('conv3x3', (16, 4, 4), (16, 16, 3, 3)),
    ('input_gradient', (2, 16, 4, 4), (32, 16, 3, 3)), ('weight_gradient', (2, 16, 4, 4), (3, 16, 4, 4)),
    ('weight_gradient', (2, 16, 4, 4), (2, 16, 4, 5)), ('weight_gradient', (2, 16, 4, 4), (2, 24, 4, 4))])
def test_shapes_that_do_not_agree(operator, one, other):
    with pytest.raises(ValueError, match='multiples of 16'):
        getattr(winograd, operator)(torch.zeros(one), torch.zeros(other))


def test_other_types():
    with pytest.raises(ValueError, match='it takes shapes that agree, float32'):
        winograd.conv3x3(torch.zeros(2, 16, 4, 4, dtype=torch.float64), torch.zeros(16, 16, 3, 3))


@pytest.mark.parametrize('shape, gains', [
    ((64, 64, 8, 8), True), ((4, 64, 8, 8), True), ((3, 64, 8, 8), False), ((64, 64, 2, 2), False),
    ((64, 64, 5, 5), True), ((64, 64, 1, 1), False), ((0, 64, 8, 8), False), ((64, 32, 8, 8), False),
    ((64, 8, 8), False)])
def test_only_where_it_is_faster(shape, gains):
    conv = torch.nn.Conv2d(64, 64, 3, padding=1)
    assert winograd.is_faster(conv, torch.empty(shape)) == gains
    assert not winograd.is_faster(conv, torch.empty(shape, dtype=torch.float64))


def test_the_same_with_any_number_of_threads():
    images, weight, grad, found = random(7, 32, 16, 16), random(32, 32, 3, 3), random(7, 32, 16, 16), []
    threads = torch.get_num_threads()
    for n in (1, 2, 3):
        torch.set_num_threads(n)
        found.append([winograd.conv3x3(images, weight), winograd.weight_gradient(images, grad)])
    torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(map(torch.equal, found[0], other))


@pytest.mark.parametrize('arguments, fits', [
    ({}, True), ({'padding': 'same'}, True), ({'bias': False}, True), ({'stride': 2}, False), ({'groups': 2}, False),
    ({'dilation': 2, 'padding': 2}, False), ({'padding': 0}, False), ({'padding_mode': 'reflect'}, False),
    ({'in_channels': 24}, False), ({'out_channels': 24}, False), ({'kernel_size': 1, 'padding': 0}, False)])
def test_suits(arguments, fits):
    conv = torch.nn.Conv2d(**{'in_channels': 16, 'out_channels': 32, 'kernel_size': 3, 'padding': 1, **arguments})
    assert winograd.supports(conv) == fits


def test_benchmark(call, capsys, monkeypatch):
    call(benchmark, 'convolutions', '--batch_size', 1, '--rounds', 1)
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[3:]]
    assert len(rows) == 3 * len(convolutions.CONVOLUTIONS)
    assert all(float(row[-3]) > 0 and float(row[-4]) > 0 for row in rows)
    assert {row[-1] for row in rows if row[0] == '512,'} == {'no'} and rows[0][-1] == 'yes'

    build.library.cache_clear()
    monkeypatch.setenv('CXX', 'nowhere/c++')
    for arguments in (['convolutions'], ['recipes', '--compile', '--gpu_id', 'cpu']):
        with pytest.raises(SystemExit) as caught:
            call(benchmark, *arguments)
        assert caught.value.code == 2 and "no C++ compiler 'nowhere/c++'" in capsys.readouterr().err
    build.library.cache_clear()

