"""Folded teachers, the compiled step and 16 bits compute the same as the plain step; the benchmarks run."""
import importlib
import json
import os
import subprocess
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, NETS, ROOT, assert_same, build

import helper
from benchmarks import scaling, threads, whole
from benchmarks.__main__ import main as benchmark
from distiller_zoo import distiller_dict
from helper.compile import compile_forward, speed_up
from helper.device import Precision, cores
from helper.errors import UserError
from helper.loops import train_epoch
from helper.meter import Meter
from helper.optim import sgd
from models import model_dict
from models.find import build as build_net
from models.fold import fold_batchnorm

PARTLY = {'wrn_16_1': 6, 'wrn_16_2': 6, 'wrn_40_1': 18, 'wrn_40_2': 18}     # norms after a sum stay


def with_statistics(name):
    """A net in eval mode whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = build_net(name, 10, 32).eval()
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for m in norms:
        m.running_mean.normal_(0, 0.1)
        m.running_var.uniform_(0.5, 2)
        torch.nn.init.uniform_(m.weight, 0.5, 1.5)
        torch.nn.init.normal_(m.bias, 0, 0.1)
    return net, len(norms)


@pytest.mark.parametrize('name', NETS)
@torch.no_grad()
def test_a_folded_net_computes_the_same(name):
    """Logits, features and pre-activations are equal up to rounding."""
    net, norms = with_statistics(name)
    size = 64 if 'imagenet' in name.lower() else 32
    images = torch.randn(2, 3, size, size)

    def outputs():
        found = []
        for preact in (False, True):
            try:
                out = net.outputs(images, preact)
            except NotImplementedError:
                continue
            found += [*out.feats, out.map, out.logits]
        return found
    before = outputs()
    assert fold_batchnorm(net, size) == PARTLY.get(name, norms)
    for a, b in zip(before, outputs(), strict=True):
        assert (a - b).abs().max() <= 2e-5 * a.abs().max()


@torch.no_grad()
def test_a_norm_of_timm_with_an_activation_is_folded():
    pytest.importorskip('timm')
    net, norms = with_statistics('timm:mobilenetv3_small_050')
    images = torch.randn(2, 3, 32, 32)
    before = net(images)
    assert fold_batchnorm(net, 32) == norms == 34
    assert (net(images) - before).abs().max() <= 1e-4 * before.abs().max()


def test_a_norm_that_others_read_stays():
    """If the convolution's output is also a feature, or is read twice, nothing is folded into it."""
    class Net(torch.nn.Module):
        def __init__(self, kind):
            super().__init__()
            self.conv, self.bn, self.kind = torch.nn.Conv2d(3, 4, 1), torch.nn.BatchNorm2d(4), kind

        def outputs(self, x, preact=False):
            x = self.conv(x)
            y = self.bn(x)
            if self.kind == 'sum':
                y = y + x
            if self.kind == 'again':
                y = self.bn(y)
            return [x if self.kind == 'feature' else y, y], y.mean((2, 3))
    assert [fold_batchnorm(Net(kind), 8) for kind in ('plain', 'sum', 'again', 'feature')] == [1, 0, 0, 0]


def test_compile_without_a_compiler(monkeypatch):
    monkeypatch.setenv('CXX', 'nowhere/c++')
    opt = SimpleNamespace(compile=True, fast=False, batch_size=4, grad_checkpointing=False)
    with pytest.raises(UserError, match="--compile: there is no C\\+\\+ compiler 'nowhere/c\\+\\+'; install it"):
        speed_up(torch.nn.Linear(2, 2), opt, CPU)


@pytest.mark.parametrize('amp', [None, 'bfloat16'])
def test_compile_says_what_it_leaves_out(capsys, amp):
    opt = SimpleNamespace(compile=True, fast=False, batch_size=4, grad_checkpointing=False, amp=amp)
    speed_up(model_dict['resnet8'](num_classes=4), opt, CPU)
    assert ('with --amp bfloat16 only the outputs for --teacher_cache' in capsys.readouterr().out) == bool(amp)


@pytest.mark.parametrize('nesterov', [False, True])
def test_sgd_from_zeros_is_sgd(nesterov):
    """The zero momentum before the first step changes no step."""
    opt = SimpleNamespace(momentum=0.9, nesterov=nesterov, weight_decay=5e-4)
    torch.manual_seed(0)
    nets = [torch.nn.Linear(5, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    optimizers = [sgd(nets[0].parameters(), 0.1, opt),
                  torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, weight_decay=5e-4)]
    for _ in range(4):
        x = torch.randn(7, 5)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(x).pow(2).sum().backward()
            optimizer.step()
    assert torch.allclose(nets[0].weight, nets[1].weight, rtol=1e-6)


def test_the_eager_sgd_is_torchs():
    """Weights and state are bit-identical, also after a state is loaded."""
    opt = SimpleNamespace(momentum=0.9, nesterov=False, weight_decay=5e-4)
    torch.manual_seed(0)
    nets = [torch.nn.Linear(5, 3) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())

    def build():
        theirs = torch.optim.SGD(nets[1].parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, fused=True)
        return sgd(nets[0].parameters(), 0.1, opt), theirs
    optimizers = build()
    for step in range(4):
        if step == 2:
            states = [optimizer.state_dict() for optimizer in optimizers]
            optimizers = build()
            for optimizer, state in zip(optimizers, states, strict=True):
                optimizer.load_state_dict(state)
        x = torch.randn(7, 5)
        for net, optimizer in zip(nets, optimizers, strict=True):
            optimizer.zero_grad()
            net(x).pow(2).sum().backward()
            optimizer.step()
    assert_same(*(net.state_dict() for net in nets))
    assert_same(*(dict(optimizer.state_dict()) for optimizer in optimizers))


def test_a_plain_run_imports_no_slow_package(small, teacher, tmp_path):
    """Packages that take long to import: torch's compiler, and those that only other flags and scripts need."""
    slow = ('torch._dynamo', 'torch._inductor', 'sympy', 'sklearn', 'scipy', 'torchvision', 'matplotlib', 'lmdb',
            'nvidia.dali')
    flags = [str(flag) for flag in ('train_student.py', '--path-t', teacher, '--save_dir', tmp_path, *small)]
    code = (f'import sys\nsys.argv = {flags}\nimport train_student\n'
            f'import os\nassert "tensorboard" not in sys.modules and os.environ["GOMP_SPINCOUNT"] == "2000"\n'
            f'train_student.main()\nfrom dataset import digits\n'
            f'digits.load(None)\nprint([name for name in {slow} if name in sys.modules])')
    env = {name: value for name, value in os.environ.items() if name not in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT')}
    done = subprocess.run([sys.executable, '-c', code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == '[]' and 'best top-1' in done.stdout


@pytest.mark.parametrize('name, value', [('OMP_WAIT_POLICY', 'ACTIVE'), ('GOMP_SPINCOUNT', '7')])
def test_the_waiting_that_the_user_has_set_stays(name, value, monkeypatch):
    for variable in ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT'):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv(name, value)
    importlib.reload(helper)
    assert os.environ[name] == value and os.environ.get('GOMP_SPINCOUNT', '7') == '7'


class Curve(Meter):
    """A meter that records the loss of every step."""

    losses: list

    def update(self, terms, *batch):
        super().update(terms, *batch)
        self.losses.append(terms['loss'].detach().float().numpy().item())


def curve(monkeypatch, fast, amp=None, batch=32, epochs=34):
    """The losses of 100 steps of kd."""
    distiller, loader, opt = build('kd', batch=batch, size=16)
    if not fast:
        loader.channels_last = False
    else:
        fold_batchnorm(distiller.teacher, 16)
        distiller.to(memory_format=torch.channels_last)
        compile_forward(distiller, batch, CPU)
    Curve.losses = losses = []
    monkeypatch.setattr('helper.loops.Meter', Curve)
    optimizer = sgd(distiller.parameters(), 0.001, opt)      # a larger rate would amplify rounding errors
    for epoch in range(1, epochs + 1):
        train_epoch(epoch, loader, distiller, optimizer, opt, precision=Precision(amp, CPU))
    return losses[:100]


def test_the_fast_curve_is_the_reference_curve(monkeypatch):
    """100 steps in float32: folded, channels_last and compiled, compared with NCHW and eager."""
    reference, fast = (curve(monkeypatch, fast) for fast in (False, True))
    assert len(fast) == 100 and fast != reference          # sums in another order: the compiled step was used
    assert fast == pytest.approx(reference, rel=1e-3) and fast[:10] == pytest.approx(reference[:10], rel=1e-5)


def test_the_curve_in_16_bits(monkeypatch):
    """18 steps in bfloat16 stay within 3 % of float32, on average."""
    reference, half = (curve(monkeypatch, False, amp, batch=8, epochs=6) for amp in (None, 'bfloat16'))
    off = [abs(a - b) / a for a, b in zip(reference, half, strict=True)]
    assert 0 < sum(off) / len(off) < 0.03 and half[-1] < half[0]


@pytest.mark.parametrize('method', distiller_dict)
def test_every_method_in_16_bits(method):
    """The losses are within 2 % of float32, but not equal; relational losses are computed in float32."""
    found = []
    for amp in (None, 'bfloat16'):
        distiller, loader, opt = build(method)
        optimizer = sgd(distiller.parameters(), 1e-4, opt)
        loader.order.generator.manual_seed(1)
        found.append([])
        for _ in range(1 + distiller.in_first_stage):
            averages = train_epoch(1, loader, distiller, optimizer, opt, precision=Precision(amp, CPU))
            found[-1].append(averages['loss'])
            if distiller.in_first_stage:
                distiller.end_first_stage()
    assert found[1] == pytest.approx(found[0], rel=0.02) and found[1] != found[0]


def test_only_full_training_batches():
    """A short batch, evaluation and 16 bits run as before."""
    used = []

    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(16, 16, 3, padding=1)

        def outputs(self, x, preact=False):
            return self.conv(x)

        def forward(self, x):
            used.append('outputs' in self.__dict__)
            return self.outputs(x)
    net, images = Net(), torch.randn(4, 16, 8, 8)
    assert 'rewritten' in compile_forward(net, 4, CPU)
    net(images), net(images[:3]), net.eval()(images)
    with torch.autocast('cpu', torch.bfloat16):
        assert net.train()(images).dtype == torch.bfloat16
    assert used == [True, False, False, False] and 'outputs' not in net.__dict__


@pytest.mark.slow
def test_benchmark(call, tmp_path, capfd):
    out = tmp_path / 'found.json'
    few = ['--batch_size', 4, '--steps', 2, '--rounds', 1, '--num_workers', 0, '--gpu_id', 'cpu']
    call(benchmark, 'recipes', '--pair', 'resnet14,resnet8,attention', *few, '--json', out)
    found = json.loads(out.read_text())
    assert [row['recipe'] for row in found['rows']] == ['reference', 'fast']
    for row in found['rows']:
        assert row['images/s'] > 0 and row['peak MiB'] > 50 and 0 < row['of ceiling'] < 1.5
        assert set(row['seconds a step']) == {'loader', 'teacher', 'student', 'method', 'optimiser'}
    assert 'resnet14,resnet8,attention  fast' in capfd.readouterr().out
    call(benchmark, 'loader', *few)
    assert 'fast' in capfd.readouterr().out


@pytest.mark.slow
def test_further_benchmarks(call, capfd):
    few = ['--batch_size', 4, '--steps', 2, '--rounds', 1, '--num_workers', 0, '--gpu_id', 'cpu']
    call(benchmark, 'cache', '--pair', 'resnet14,resnet8,kd', *few)
    assert 'resnet14,resnet8,kd  filling' in capfd.readouterr().out
    call(benchmark, 'networks', '--nets', 'torchvision:shufflenet_v2_x0_5', '--image_size', 32, *few)
    assert 'torchvision:shufflenet_v2_x0_5  adapter' in capfd.readouterr().out


@pytest.mark.slow
def test_benchmarks_of_processes(call, capfd, monkeypatch):
    few = ['--batch_size', 4, '--steps', 2, '--rounds', 1, '--gpu_id', 'cpu']
    call(benchmark, 'scaling', '--ddp', '--pair', 'resnet14,resnet8,attention', *few)
    assert 'resnet14,resnet8,attention  static_graph' in capfd.readouterr().out
    monkeypatch.setattr(scaling, 'measure', lambda opt, device: [scaling.measure_one(opt, opt.pair[0], 1, 1)])
    call(benchmark, 'scaling', '--pair', 'resnet14,resnet8,attention', *few)
    assert 'resnet14,resnet8,attention          1             1' in capfd.readouterr().out
    monkeypatch.setattr(threads, 'SETTINGS', {'one thread': {'OMP_NUM_THREADS': '1'}})
    call(benchmark, 'threads', '--pair', 'resnet14,resnet8,kd', *few)
    assert 'resnet14,resnet8,kd  one thread' in capfd.readouterr().out


def test_int8_benchmark(call, tmp_path):
    """A row for each number of threads; the file in 8 bits is smaller."""
    pytest.importorskip('onnxruntime')
    call(benchmark, 'int8', '--files', 'resnet8,16', '--json', tmp_path / 'found.json')
    rows = json.loads((tmp_path / 'found.json').read_text())['rows']
    assert [(row['net'], row['pixels'], row['threads']) for row in rows] == [('resnet8', 16, 1), ('resnet8', 16, 2)]
    assert all(row['8 bits MB'] < row['32 bits MB'] / 2 for row in rows)
    assert all(row['speed'] == row['32 bits ms'] / row['8 bits ms'] for row in rows)


@pytest.mark.slow
def test_whole_processes(call, tmp_path, monkeypatch, capfd):
    """Both sides train a student on all images with the given flags; the numbers are those of the processes."""
    monkeypatch.setattr(whole, 'tempfile', SimpleNamespace(TemporaryDirectory=lambda: nullcontext(str(tmp_path))))
    start = time.perf_counter()
    call(benchmark, 'whole', '--pair', 'resnet8,resnet8,kd', '--images', 48, '--rounds', 1, '--batch_size', 16,
         '--num_workers', 0, '--gpu_id', 'cpu', '--cold', '--full_cache', '--flags=--momentum 0.5', '--json',
         tmp_path / 'found.json')
    took = time.perf_counter() - start
    reference, ours = json.loads((tmp_path / 'found.json').read_text())['rows']
    for row in (reference, ours):
        assert row['all rounds'] == [row['seconds']] and row['seconds'] > 1
        assert row['images/s'] == pytest.approx(48 / row['seconds'])
        assert row['ratio'] == pytest.approx(reference['seconds'] / row['seconds'])
    assert reference['seconds'] + ours['seconds'] < took
    output = capfd.readouterr().out
    assert 'resnet8,resnet8,kd  reference' in output and 'train_student.py --momentum 0.5 --teacher_cache' in output

    parameters = json.loads(next(tmp_path.glob('save/student_model/*/parameters.json')).read_text())
    assert parameters['training images'] == 48 and parameters['momentum'] == 0.5
    assert parameters['Total time'] * 3600 < ours['seconds']
    first = model_dict['resnet8'](num_classes=100).state_dict()
    for file in ('save/student.pth', 'save/student_model/*/resnet8_best.pth'):
        student = torch.load(next(tmp_path.glob(file)), weights_only=True)['model']
        assert student.keys() == first.keys() and student['bn1.num_batches_tracked'] == 3
    with pytest.raises(UserError, match='a process ended with 2: error: --nonsense: no such flag'):
        whole.seconds([sys.executable, 'train_student.py', '--path_t', 'x', '--nonsense'], cold=True)


@pytest.mark.parametrize('arguments, words', [
    (['--pair', 'resnet20'], '--pair resnet20: give TEACHER,STUDENT,METHOD'),
    (['--pair', 'resnet20,resnet9,kd'], '--pair resnet9: no such model'),
    (['--pair', 'resnet20,resnet8,kdd'], '--distill kdd: no such method')])
def test_benchmark_refuses(call, capsys, arguments, words):
    with pytest.raises(SystemExit) as caught:
        call(benchmark, 'recipes', *arguments)
    assert caught.value.code == 2 and words in capsys.readouterr().err


def test_benchmark_of_the_cache_refuses(call, capsys):
    with pytest.raises(SystemExit) as caught:
        call(benchmark, 'cache', '--pair', 'resnet20,resnet8,hint')
    assert caught.value.code == 2 and '--pair resnet20,resnet8,hint: hint needs more of the teacher' in \
        capsys.readouterr().err


def test_cores(monkeypatch):
    """Under torchrun, the cores of all machines."""
    one = cores()
    monkeypatch.setenv('WORLD_SIZE', '8')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert one >= 1 and cores() == 2 * one


def test_cores_of_srun(monkeypatch):
    """srun gives each process cores of its own."""
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda process: range(4), raising=False)
    for per_task, tasks, total in (('2', '1', 4), ('2', '8', 16), ('6', '8', 32), ('0', '8', 4)):
        monkeypatch.setenv('SLURM_CPUS_PER_TASK', per_task)
        monkeypatch.setenv('SLURM_STEP_NUM_TASKS', tasks)
        assert cores() == total
