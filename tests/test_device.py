"""Every tensor is on the right device: all are on a fake 'cuda', which needs no GPU; a mismatch raises an error.

Forward passes and batches alone: a backward pass needs the driver.
"""
import functools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import CPU, build, data_options, first_view, write_images
from torch._subclasses.fake_tensor import FakeTensorMode

from dataset import get_dataloaders
from dataset.imagenet import open_sources
from dataset.memory import MemoryLoader
from dataset.order import AccompanyingOrder
from dataset.teacher_cache.cache import TeacherCache
from dataset.teacher_cache.encoding import Numbers, Probabilities
from dataset.teacher_cache.layout import Layout
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_head import embeddings
from dataset.unlabelled import WithUnlabelled
from dataset.worker_loader import WorkerLoader, collate
from distiller_zoo import distiller_dict
from helper.cli import AGREE
from helper.device import Precision, select_device
from helper.errors import UserError
from helper.meter import Meter
from options import teacher_options

CUDA = torch.device('cuda', 0)


@pytest.fixture
def fake():
    """A mode in which tensors have a device and a shape but no values."""
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode
    torch.__future__.set_overwrite_module_params_on_conversion(False)


def faked(method, **changes):
    """(distiller with all parameters and buffers on CUDA, a batch there)."""
    with torch._subclasses.fake_tensor.unset_fake_temporarily():
        distiller, loader, _ = build(method, **changes)
        batch = next(iter(loader))
    distiller._apply(on_gpu)
    return distiller, [on_gpu(part) for part in batch]


def on_gpu(tensor):
    mode = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.FAKE)
    return mode.from_tensor(tensor).to(CUDA)


def step(distiller, batch):
    """The forward pass of each stage, the meter, and the deployed network."""
    distiller.begin_epoch(1, 2)
    for _ in range(1 + distiller.in_first_stage):
        losses, logits = distiller(*batch)
        assert all(loss.device == CUDA for loss in losses.values())
        meter = Meter()
        meter.update(losses, logits, batch[1])
        assert meter.sums.device == CUDA
        if distiller.in_first_stage:
            distiller.end_first_stage()
    assert distiller.inference_net()(first_view(batch[0])).device == CUDA


@pytest.mark.parametrize('training', [True, False])
@pytest.mark.parametrize('method', distiller_dict)
def test_methods(fake, method, training):
    distiller, batch = faked(method)
    step(distiller.train(training), batch)


@pytest.mark.parametrize('weights', [[1.0, 2.0], AGREE])
def test_several_teachers(fake, weights):
    distiller, batch = faked('crd', teacher=['resnet14', 'vgg8'], teacher_weights=weights)
    step(distiller, batch)
    assert distiller.teacher(batch[0]).device == CUDA


def test_grad_checkpointing(fake):
    distiller, batch = faked('semckd')
    distiller.student.grad_checkpointing = True
    step(distiller, batch)


@pytest.mark.parametrize('method, move', [
    ('semckd', lambda d: setattr(d, 'attention_sum', torch.zeros(3, 3))),
    ('crd', lambda d: setattr(d.sampler, 'labels', torch.zeros(24, dtype=torch.int64))),
    ('vid', lambda d: setattr(d.criteria[0], 'log_scale', torch.nn.Parameter(torch.zeros(16))))])
def test_one_tensor_on_the_cpu_is_found(fake, method, move):
    """A tensor on the wrong device is detected, so the tests in this file are not vacuous."""
    distiller, batch = faked(method)
    move(distiller)
    with pytest.raises(RuntimeError, match='(?i)device'):
        step(distiller, batch)


@pytest.mark.parametrize('channels_last', [True, False])
def test_batches_from_memory(fake, channels_last):
    images, target = torch.zeros(24, 3, 16, 16, dtype=torch.uint8), torch.zeros(24, dtype=torch.int64)
    for train, views in ((True, ('weak',)), (True, ('weak', 'weak')), (False, ('weak',))):
        loader = MemoryLoader(images, target, 8, CUDA, train=train, views=views, channels_last=channels_last)
        for batch in loader:
            assert all(part.device == CUDA for part in batch)
            assert batch[0].shape == (*([2] if len(views) > 1 else []), 8, 3, 16, 16)


def test_batches_with_unlabelled_images(fake):
    images, target = torch.zeros(24, 3, 16, 16, dtype=torch.uint8), torch.zeros(24, dtype=torch.int64)
    loader = MemoryLoader(images, target, 8, CUDA, train=True)
    beside = MemoryLoader(images, target, 4, CUDA, train=True, drop_last=True,
                          make_order=functools.partial(AccompanyingOrder, main=loader.order))
    distiller, _ = faked('kd')
    for batch in WithUnlabelled(loader, beside):
        assert [len(part) for part in batch] == [12, 8, 12] and all(part.device == CUDA for part in batch)
        step(distiller, batch)


@pytest.mark.parametrize('near, topk', [(True, None), (False, None), (True, 2)])
def test_cached_teacher_outputs(fake, near, topk, tmp_path, monkeypatch):
    """All of a batch cached, none, and some; with and without a copy in the memory of the GPU."""
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (10**9 if near else 0, 0))
    encoding = Probabilities(5, topk) if topk else Numbers(5)
    layout = Layout(tmp_path, 'x', {}, {'logits': encoding}, 40, 40, None)
    layout.open('logits', 0).write(np.arange(20), np.ones((20, encoding.width), encoding.dtype))
    cache = TeacherCache(layout, CUDA, None)
    cache.writable = False
    assert (cache.device_copy is not None) == near
    asked = []

    def ask(images):
        asked.append(len(images))
        return SimpleNamespace(logits=images[:, 0, 0, :5])
    loader = TeacherOutputLoader(SimpleNamespace(batch_size=16), cache, ask)
    images = torch.zeros(16, 3, 8, 8, device=CUDA)
    for slots in (range(16), range(24, 40), range(27, 11, -1)):
        logits = loader.outputs(images, np.array(slots)).logits
        assert logits.device == CUDA and logits.shape == (16, 5) and logits.dtype == torch.float32
    assert asked == [16, 4 if near else 8]      # near: the second batch's outputs are cached for the third


def test_embeddings_of_a_teacher(fake):
    """Its embeddings are computed on the GPU; the fit of --teacher_head gets them on the CPU."""
    distiller, batch = faked('kd')
    x, target = embeddings(distiller.teacher, [batch, batch])
    assert x.device == target.device == CPU and x.shape == (16, 64) and target.shape == (16,)


def test_the_gpu_of_a_mac(fake, monkeypatch):
    """--gpu_id mps selects it; it sums in float32, and unsupported flags are refused."""
    flags = ['--gpu_id', 'mps']
    with pytest.raises(UserError, match='--gpu_id mps: PyTorch finds no GPU of Apple on this machine; give the number'):
        select_device('mps')
    monkeypatch.setattr(torch.backends.mps, 'is_available', lambda: True)
    device = select_device('mps')
    assert device.type == 'mps' and not teacher_options(flags).channels_last
    meter = Meter()
    meter.update({'loss': torch.zeros((), device=device)}, None, torch.zeros(4, dtype=torch.int64, device=device))
    assert meter.sums.device.type == 'mps' and meter.sums.dtype == torch.float32
    assert Precision('auto', device).dtype is None
    for refused, words in ((lambda: select_device('mps,mps'), 'in a single process'),
                           (lambda: teacher_options([*flags, '--fast']), '--fast: not with --gpu_id mps'),
                           (lambda: Precision('float16', device), '--amp float16: not on a GPU of Apple')):
        with pytest.raises(UserError, match=words):
            refused()


def test_batches_from_workers(tmp_path):
    """The loader moves and normalises the batches of its workers; here one that was read in advance."""
    for split in ('train', 'val'):
        write_images(tmp_path / 'imagenet' / split, 3, size=32)
    opt = data_options(dataset='imagenet', data_dir=str(tmp_path), batch_size=4, num_workers=0)
    for views in (('weak',), ('weak', 'strong')):
        real = get_dataloaders(opt, CPU, views=views).train_loader
        ready = collate([real.loader.dataset[i, i] for i in range(4)])
        source = open_sources(opt)[0]['train']
        with FakeTensorMode(allow_non_fake_inputs=True):
            loader = WorkerLoader(source, opt, CUDA, train=True, views=views)
            loader.loader = [ready]
            (images, target, index), = loader
            assert images.device == target.device == index.device == CUDA
            assert images.shape == (*([2] if len(views) > 1 else []), 4, 3, 224, 224)
