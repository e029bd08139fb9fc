"""--compile and --fast: what makes a training step faster beyond the defaults."""
import contextlib
import ctypes
import logging
import sys
import time
import warnings

import torch
from torch import nn

from cpu_kernels.build import compiler, library
from cpu_kernels.fuse import Rewritten

from .device import KINDS
from .errors import UserError, reason


def keep_memory() -> None:
    """Let glibc keep the memory that a step frees for the next step: the system clears each page that it hands out."""
    if sys.platform == 'linux':
        with contextlib.suppress(AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(-3, 32 << 20)       # M_MMAP_THRESHOLD, its largest value
            mallopt(-1, 2**31 - 1)      # M_TRIM_THRESHOLD


def turn_on_fast(opt) -> None:
    """--fast: --compile and --amp, unless --amp is given with its own type."""
    if opt.fast:
        opt.compile = True
        opt.amp = opt.amp or 'auto'


def speed_up(module: nn.Module, opt, device: torch.device) -> None:
    """Apply --compile and --fast to `module`, which is already on its device, and what is always faster."""
    if device.type == 'cpu':
        keep_memory()
    if opt.fast and device.type == 'cuda':
        torch.set_float32_matmul_precision('high')      # TF32, which convolutions use by default
    if opt.compile:
        if opt.grad_checkpointing and device.type == 'cpu':
            raise UserError('--compile: on a CPU it rewrites whole nets, which then keep all activations; leave '
                            '--compile and --fast out, or --grad_checkpointing')
        check_compiler(device)
        print(f'--compile: {compile_forward(module, opt.batch_size, device, opt.amp)}')


def check_compiler(device: torch.device) -> None:
    """Raise UserError where torch.compile would fail because `device` has no compiler."""
    try:
        if device.type == 'cpu':
            compiler()
    except OSError as error:
        raise UserError(f'--compile: {error}, or leave --compile out') from None


def compile_forward(module: nn.Module, batch_size: int, device: torch.device, amp: str | None = None) -> str:
    """Make training steps of batch_size images faster, and return a line that says how. Other batches run as before.

    amp: the value of --amp.

    On a CPU the nets are rewritten for our own kernels; on a GPU, and without these kernels, torch.compile is used.
    """
    if device.type == 'cpu':
        start = time.perf_counter()
        try:
            was_built = library().was_built
        except OSError as error:
            print(f'--compile: {error}; torch.compile does without')
        else:
            library_seconds = time.perf_counter() - start
            rewrite_forward(module, batch_size)
            seconds = time.perf_counter() - start - library_seconds
            limit = f'; with --amp {amp} only the outputs for --teacher_cache use the kernels' if amp in KINDS else ''
            return f'kernels {f"built in {library_seconds:.1f} s" if was_built else "found"}, nets rewritten in ' \
                   f'{seconds:.1f} s{limit}'
    # Without a GPU the compiler warns about it, torch 2.11 and 2.15 in different ways.
    warnings.filterwarnings('ignore', message='.*CUDA_HOME', category=UserWarning)
    logging.getLogger('torch.utils.cpp_extension').setLevel(logging.ERROR)
    replace_forward(module, batch_size, TorchCompiled(module, device))
    return 'the first step is compiled, which takes a minute or so'


def rewrite_forward(module: nn.Module, batch_size: int) -> None:
    """Run the forward pass of full batches, and the teacher for --teacher_cache, with the kernels for the CPU."""
    teacher = getattr(module, 'teacher', None)      # module.modules() does not contain it
    use_kernels = Rewritten(module, *([teacher] if teacher else [])).in_use()
    plain = module.forward
    with_kernels = use_kernels(plain)

    def fast(*batch, **flags):
        return (plain if torch.is_autocast_enabled('cpu') else with_kernels)(*batch, **flags)
    replace_forward(module, batch_size, fast)
    if hasattr(module, 'teacher_outputs'):
        module.teacher_outputs = use_kernels(module.teacher_outputs)


def replace_forward(module: nn.Module, batch_size: int, fast) -> None:
    """Let module.forward call `fast` for training batches of batch_size images.

    Others, and those with which the module measures weights, run as before.
    """
    plain = module.forward

    def forward(images, *rest, **flags):
        is_full_batch = module.training and images.shape[-4] == batch_size  # (N, 3, H, W) or (views, N, 3, H, W)
        is_measuring = getattr(module, 'is_measuring', False)
        return (fast if is_full_batch and not is_measuring else plain)(images, *rest, **flags)
    module.forward = forward


class TorchCompiled:
    """The forward of a module, compiled by torch; on a GPU as a CUDA graph, unless it has several backward passes."""

    def __init__(self, module: nn.Module, device: torch.device):
        self.plain, self.calls = module.forward, 0
        self.has_several_passes = getattr(module, 'own_backward', False)
        self.uses_graph = device.type == 'cuda' and not self.has_several_passes
        if self.has_several_passes:     # each pass needs the same inputs: the first must not reuse their memory
            torch._functorch.config.donated_buffer = False
        with compiler_errors():
            self.compiled = torch.compile(self.plain, dynamic=False,
                                          mode='reduce-overhead' if self.uses_graph else 'default')

    def __call__(self, *batch, **flags):
        self.calls += 1
        # Several passes need to know which gradients are None; the compiled step returns zeros for them.
        if self.has_several_passes and self.calls == 1:
            return self.plain(*batch, **flags)
        if self.uses_graph:
            torch.compiler.cudagraph_mark_step_begin()
        start = time.perf_counter()
        with compiler_errors():
            result = self.compiled(*batch, **flags)
        if self.calls == 1 + self.has_several_passes:
            print(f'--compile: compiled in {time.perf_counter() - start:.0f} s')
        return result


@contextlib.contextmanager
def compiled(net: nn.Module, opt, device: torch.device):
    """Return a context in which --compile applies to the forward passes of `net`, which does not learn."""
    context = contextlib.nullcontext()
    if opt.compile:
        check_compiler(device)
        if device.type == 'cuda':
            net.outputs = torch.compile(net.outputs)        # compiles when it is first called
            context = compiler_errors()
        else:
            try:
                library()
                context = Rewritten(net).in_use()
            except OSError as error:
                print(f'--compile: {error}')
    with context:
        yield
    net.__dict__.pop('outputs', None)       # remove the compiled method


@contextlib.contextmanager
def compiler_errors():
    """Turn an error of the compiler, or of its cache folder, into a UserError of one line."""
    try:
        yield
    except Exception as error:
        compilers = ('torch._dynamo', 'torch._inductor')
        if not isinstance(error, OSError) and not type(error).__module__.startswith(compilers):
            raise
        raise UserError(f'--compile: {reason(error)}; leave --compile out, or set CXX to another compiler or '
                        f'TORCHINDUCTOR_CACHE_DIR to a folder that you may write') from error
