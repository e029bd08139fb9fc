"""On a GPU: the same losses as on the CPU, no waiting within an epoch, the compiled step, --fast, the cache, NCCL."""
import json
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, build

import train_student
import train_teacher
from dataset.teacher_cache.layout import CACHED_OUTPUTS
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import distiller_dict
from helper.compile import compile_forward, speed_up
from helper.device import Precision
from helper.loops import train_epoch
from helper.optim import sgd
from scripts import fill_teacher_cache

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
GPU = torch.device('cuda', 0)
# kdsvd computes eigenvectors partly on the CPU, and a strong view is made image by image.
DRAWS = ('crd', 'tekap')      # random numbers on the device: negatives, noise
WAITS = ['kdsvd', *(name for name, method in distiller_dict.items() if len(method.spec.views) > 1)]


class NoWaiting:
    """A loader; after the first step of an epoch, any wait for the GPU raises an error."""

    def __init__(self, loader):
        self.loader = loader

    def __getattr__(self, name):
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            for step, batch in enumerate(self.loader):
                torch.cuda.set_sync_debug_mode('error' if step else 'default')
                yield batch
        finally:
            torch.cuda.set_sync_debug_mode('default')


def losses(method, device, epochs=2, compiled=False, amp=None, wrap=lambda loader: loader, cache=None):
    """The average loss of each epoch of three steps; of methods with a first stage, only of that stage.

    cache: a folder for the teacher's outputs.
    """
    distiller, loader, opt = build(method, size=32, device=device)
    distiller.to(device, memory_format=torch.channels_last)
    if compiled:
        compile_forward(distiller, opt.batch_size, device)
    optimizer = sgd(distiller.parameters(), 1e-5, opt)
    plain, loader = loader, wrap(loader)
    if cache:
        data = SimpleNamespace(train_loader=plain, selection_loader=plain, selection_split='test', image_size=32,
                               n_train=plain.n_samples)
        opt.teacher_cache = str(cache)
        loader = TeacherOutputLoader(loader, open_cache(opt, distiller.spec.needs, distiller.teacher, data, device),
                              distiller.teacher_outputs)
        plain.gives_slots = True
    return [train_epoch(epoch, loader, distiller, optimizer, opt, precision=Precision(amp, device))['loss']
            for epoch in range(1, epochs + 1)]


@pytest.mark.parametrize('method', distiller_dict)
def test_the_losses_of_the_cpu(method):
    """Nets and batches are the same on both devices."""
    tolerance = 0.1 if method in DRAWS else 5e-3        # convolutions in TF32
    assert losses(method, GPU) == pytest.approx(losses(method, CPU), rel=tolerance)


@pytest.mark.parametrize('method', [method for method in distiller_dict if method not in WAITS])
def test_no_step_waits(method):
    assert len(losses(method, GPU, wrap=NoWaiting)) == 2


@pytest.mark.parametrize('amp', [None, 'bfloat16', 'float16'])
@pytest.mark.parametrize('method', ['kd', 'crd', 'semckd', 'ctkd', 'simkd', 'wkdl', 'reviewkd', 'ldrld', 'tekap'])
def test_the_compiled_step(method, amp):
    """As a CUDA graph, recorded in the first epoch and replayed in the others."""
    torch.compiler.reset()
    tolerance = 0.1 if method in DRAWS else 0.05 if amp else 5e-3
    assert losses(method, GPU, 4, True, amp) == pytest.approx(losses(method, GPU, 4), rel=tolerance)


@pytest.mark.parametrize('compiled', [False, True])
@pytest.mark.parametrize('near', [True, False])
@pytest.mark.parametrize('method', ['kd', 'srrl', 'rkd'])
def test_the_cache(method, near, compiled, tmp_path, monkeypatch):
    """In GPU memory or, if it does not fit, in the file: the losses are equal and no step waits. A second run reads
    what the first saved."""
    if not near:
        monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (0, 0))
    expected = losses(method, GPU, 4)
    for _ in range(2):
        torch.compiler.reset()
        found = losses(method, GPU, 4, compiled, wrap=lambda loader: loader if compiled else NoWaiting(loader),
                       cache=tmp_path)
        assert found == pytest.approx(expected, rel=5e-3)
    files = 1 + ('embedding' in distiller_dict[method].spec.needs)
    assert len(list(tmp_path.glob('*.cache'))) == files <= len(CACHED_OUTPUTS)


def run(call, small, teacher, tmp_path, *flags):
    """The history of train_student.py on the tree of images: two epochs, and a third after --resume."""
    torch.compiler.reset()
    flags = ['--path-t', teacher, '--distill', 'semckd', '--model_s', 'resnet8', '-b', 1, '--save_dir', tmp_path,
             '--learning_rate', 0.001, *small, *flags]
    call(train_student.main, *flags, '--epochs', 2)
    call(train_student.main, *flags, '--epochs', 3, '--resume', 'auto')
    return json.loads(next(tmp_path.glob('student_model/*/history.json')).read_text())


@pytest.mark.parametrize('flags', [[], ['--fast']])
def test_a_full_cache_leaves_the_teacher_on_the_cpu(call, small, teacher, tmp_path, flags):
    flags = ['--path-t', teacher, '--model_s', 'resnet8', '--save_dir', tmp_path, *small, '--gpu_id', 0, *flags,
             '--teacher_cache']
    call(fill_teacher_cache.main, *flags)
    torch.compiler.reset()
    distillers = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_student, 'speed_up', lambda distiller, *rest: (distillers.append(distiller),
                                                                           speed_up(distiller, *rest)))
        call(train_student.main, *flags)
    assert {p.device.type for p in distillers[0].teacher.parameters()} == {'cpu'}
    assert {p.device.type for p in distillers[0].parameters()} == {'cuda'}


@pytest.mark.parametrize('flags', [[], ['--fast'], ['--amp', 'float16']])
def test_command_line(call, small, teacher, tmp_path, flags):
    assert len(run(call, small, teacher, tmp_path, '--gpu_id', 0, *flags)) == 3


def test_a_teacher(call, small, tmp_path):
    torch.compiler.reset()
    call(train_teacher.main, '--model', 'resnet8', '--save_dir', tmp_path, *small, '--gpu_id', 0, '--fast')
    assert list(tmp_path.glob('models/*/resnet8_best.pth'))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason='needs two GPUs')
@pytest.mark.parametrize('flags', [[], ['--fast'], ['--sync_bn']])
def test_two_gpus(call, small, teacher, tmp_path, flags):
    flags = ['--gpu_id', '0,1', '--multiprocessing-distributed', *flags]
    assert len(run(call, small, teacher, tmp_path, *flags)) == 3
