"""--compile and --fast: what makes a training step faster beyond the defaults."""
import contextlib
import ctypes
import logging
import os
import statistics
import sys
import time
import warnings

import torch
from torch import nn

from cpu_kernels.build import compiler, library
from cpu_kernels.fuse import Rewritten

from .errors import UserError, reason


def keep_memory() -> None:
    """Let the C library keep the memory that a step frees for the next step, instead of returning it to the system.

    Every step needs the same buffers, and the system clears each page that it hands out.
    """
    _c_library('mallopt', -3, 32 << 20)     # M_MMAP_THRESHOLD, its largest value
    _c_library('mallopt', -1, 2**31 - 1)    # M_TRIM_THRESHOLD


def _c_library(function: str, *numbers: int) -> None:
    """Call a function of glibc; do nothing with another C library."""
    if sys.platform == 'linux':
        with contextlib.suppress(AttributeError):
            getattr(ctypes.CDLL(None), function)(*numbers)


def speed_up(module: nn.Module, opt, device: torch.device) -> None:
    """Apply --compile and --fast to `module`, which is on its device already, and what is always faster."""
    if device.type == 'cpu':
        keep_memory()
    if opt.fast and device.type == 'cuda':
        allow_tf32()
    if opt.compile:
        check_compiler(device)
        print(f'--compile: {compile_forward(module, opt.batch_size, device)}')


def check_compiler(device: torch.device) -> None:
    """Raises UserError where torch.compile would fail because there is no compiler for `device`."""
    try:
        if device.type == 'cpu':
            compiler()
    except OSError as error:
        raise UserError(f'--compile: {error}, or leave --compile out') from None


def compile_forward(module: nn.Module, batch_size: int, device: torch.device) -> str:
    """Make `module`'s training step faster for batches of batch_size; another batch, and evaluation, run as before.

    On a CPU the nets are rewritten for kernels of our own, on a GPU torch.compile does it. Returns what was done and
    what it cost, in a line.
    """
    if device.type == 'cpu':
        start = time.perf_counter()
        try:
            built = library().was_built
        except OSError as error:
            print(f'--compile: {error}; torch.compile does without')
        else:
            seconds = time.perf_counter() - start
            rewritten = _rewrite_forward(module, batch_size)
            cost = time.perf_counter() - start
            if hasattr(module, 'student'):
                _say_from_when_it_pays(module, batch_size, rewritten, cost)
            kernels = f'kernels {f"built in {seconds:.1f} s" if built else "found"}'
            return f'{kernels}, nets rewritten in {cost - seconds:.1f} s'
    _torch_compile_forward(module, batch_size, device)
    return 'the first step is compiled, which takes a minute or so'


def _rewrite_forward(module, batch_size):
    plain = module.forward
    rewritten = Rewritten(module, *filter(None, [getattr(module, 'teacher', None)]))    # which modules() does not give

    def forward(images, *rest, **flags):
        if not _full_batch(module, images, batch_size) or torch.is_autocast_enabled('cpu'):
            return plain(images, *rest, **flags)
        with rewritten.in_use():
            return plain(images, *rest, **flags)
    module.forward = forward
    if hasattr(module, 'teacher_outputs'):      # the teacher cache calls it before the step
        module.teacher_outputs = rewritten.in_use()(module.teacher_outputs)
    return rewritten


def _say_from_when_it_pays(module, batch_size, rewritten, cost):
    """Before the first full batch, time its first images through the nets, plainly and rewritten, and print a line.

    cost: seconds. Nothing that training reads is changed.
    """
    forward = module.forward

    def first(images, *rest, **flags):
        if not _full_batch(module, images, batch_size) or torch.is_autocast_enabled('cpu'):
            return forward(images, *rest, **flags)
        module.forward = forward
        nets = [module.student, *([module.teacher] if hasattr(module, 'teacher') and len(rest) < 3 else [])]
        part = (images if images.ndim == 4 else images[0])[:max(2, batch_size // 8)]
        start = time.perf_counter()
        plain, fast = _seconds(nets, part, rewritten)
        whole, saved = cost + time.perf_counter() - start, (plain - fast) / len(part)
        print('--compile: ' + (f'pays from about {whole / saved:,.0f} images on' if saved > 0 else
                               'these nets gain nothing from it'))
        return forward(images, *rest, **flags)
    module.forward = first


def _seconds(nets, images, rewritten):
    """(plain, rewritten) seconds of a forward pass of all nets, and backward of those that learn; medians of three."""
    buffers = [(buffer, buffer.clone()) for net in nets for buffer in net.buffers()]
    found = [], []
    with torch.random.fork_rng(devices=[]):
        for _ in range(4):
            for side, context in zip(found, (contextlib.nullcontext, rewritten.in_use), strict=True):
                start = time.perf_counter()
                with context():
                    for net in nets:
                        logits, learnt = net.outputs(images).logits, [p for p in net.parameters() if p.requires_grad]
                        if learnt:
                            torch.autograd.grad(logits.sum(), learnt, allow_unused=True)
                side.append(time.perf_counter() - start)
    for buffer, before in buffers:
        buffer.copy_(before)
    return tuple(statistics.median(side[1:]) for side in found)


@contextlib.contextmanager
def compiled(net: nn.Module, opt, device: torch.device):
    """Within it, `net`, which only answers, computes as --compile has it."""
    if not opt.compile:
        yield
        return
    check_compiler(device)
    if device.type == 'cuda':
        with _compiler_errors():        # it compiles when it is first called
            net.outputs = torch.compile(net.outputs)
            yield
        return
    try:
        library()
    except OSError as error:
        print(f'--compile: {error}')
        yield
        return
    with Rewritten(net).in_use():
        yield


def _full_batch(module, images, batch_size):
    return module.training and images.shape[-4] == batch_size       # (N, 3, H, W) or (views, N, 3, H, W)


def _torch_compile_forward(module, batch_size, device):
    """On a GPU the compiled step is recorded as a CUDA graph: hundreds of small kernels start as one. A module with
    several backward passes a step is compiled without.
    """
    # Without a GPU the compiler warns of that, torch 2.11 and 2.15 in different ways.
    warnings.filterwarnings('ignore', message='.*CUDA_HOME', category=UserWarning)
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    several_passes = getattr(module, 'own_backward', False)
    if several_passes:      # the compiled backward pass may be run again: it must not reuse the memory of its inputs
        torch._functorch.config.donated_buffer = False
    graph = device.type == 'cuda' and not several_passes
    plain = module.forward
    with _compiler_errors():
        fast = torch.compile(plain, dynamic=False, mode='reduce-overhead' if graph else 'default')

    full_batches = 0

    def forward(images, *rest, **flags):
        nonlocal full_batches
        if not _full_batch(module, images, batch_size):
            return plain(images, *rest, **flags)
        full_batches += 1
        if several_passes and full_batches == 1:    # here a gradient that there is not is None, compiled it is zeros
            return plain(images, *rest, **flags)
        if graph:
            torch.compiler.cudagraph_mark_step_begin()
        start = time.perf_counter()
        with _compiler_errors():
            result = fast(images, *rest, **flags)
        if full_batches == 1 + several_passes:
            print(f'--compile: compiled in {time.perf_counter() - start:.0f} s')
        return result
    module.forward = forward


@contextlib.contextmanager
def _compiler_errors():
    """An error of the compiler, or of its cache folder, as a UserError of one line."""
    try:
        yield
    except Exception as error:
        compilers = ('torch._dynamo', 'torch._inductor')
        if not isinstance(error, OSError) and not type(error).__module__.startswith(compilers):
            raise
        raise UserError(f'--compile: {reason(error)}; leave --compile out, or set CXX to another compiler or '
                        f'TORCHINDUCTOR_CACHE_DIR to a folder that you may write') from error


def cores() -> int:
    """The processor cores that this process may use; under torchrun, those of all machines together."""
    here = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    world, local = (os.environ.get(name, '1') for name in ('WORLD_SIZE', 'LOCAL_WORLD_SIZE'))
    return here * (max(1, int(world) // int(local)) if world.isdecimal() and local.isdecimal() and local != '0' else 1)


def turn_on_fast(opt) -> None:
    """--fast: --compile and --amp, unless --amp is given with a kind of its own."""
    if opt.fast:
        opt.compile = True
        opt.amp = opt.amp or 'auto'


def allow_tf32() -> None:
    """Matrix products in TF32 on GPUs that have it; convolutions use it by default."""
    torch.set_float32_matmul_precision('high')
