"""Winograd's 3x3 convolutions: a quarter of the multiplications. For the CPU, as operators that torch.compile knows.

--compile uses them on processors with AVX2 and without AVX-512, where torch's oneDNN has no such algorithm;
in float32, and where a convolution has enough pixels to gain (Conv3x3.gains). winograd.cpp has the algorithm; it is
built here, in seconds, when it is first needed. Without a C++ compiler the usual convolutions are used.
"""
import ctypes
import functools
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

SOURCE = Path(__file__).with_suffix('.cpp')
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fopenmp', '-shared', '-fPIC')


def compiler() -> str:
    """The C++ compiler that torch.compile takes for the CPU. Raises OSError where it is not installed."""
    name = os.environ.get('CXX', {'darwin': 'clang++', 'win32': 'cl'}.get(sys.platform, 'g++'))
    if not shutil.which(name):
        raise OSError(f"there is no C++ compiler '{name}'; install it, or set CXX to one")
    if name != 'cl' and subprocess.run([name, '-x', 'c++', '-c', '-o', os.devnull, '-'], input=b'int number;',
                                       capture_output=True).returncode:
        raise OSError(f"'{name}' does not compile C++; set CXX to a compiler that does")
    return name


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions, built in a few seconds for this very processor. Raises OSError where that fails."""
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / 'winograd.so'
        run = subprocess.run([compiler(), *FLAGS, SOURCE, '-o', built], capture_output=True, text=True,
                             errors='replace')
        if run.returncode:
            said = ' '.join(run.stderr.split())[:200]
            raise OSError(f'{compiler()} could not build {SOURCE.name}: {said}')
        return ctypes.CDLL(str(built))


def _call(function: str, tensors: list[Tensor], *numbers: int) -> None:
    getattr(library(), function)(*(ctypes.c_void_p(t.data_ptr()) for t in tensors), *map(ctypes.c_int64, numbers))


def _channels_last(one: Tensor, other: Tensor, agree: bool, filters: int) -> list[Tensor]:
    """Both tensors in the layout that the C++ functions read. Raises ValueError where these would read beyond them."""
    right = agree and one.shape[1] % 16 == filters % 16 == 0
    if not right or any(t.dtype != torch.float32 or t.device.type != 'cpu' for t in (one, other)):
        kinds = ' and '.join(f'{tuple(t.shape)} of {t.dtype} on {t.device}' for t in (one, other))
        raise ValueError(f'winograd: {kinds}; it takes shapes that agree, float32 on the CPU, channels in '
                         'multiples of 16')
    return [t.contiguous(memory_format=torch.channels_last) for t in (one, other)]


def _convolve(images: Tensor, weight: Tensor, turned: bool) -> Tensor:
    filters, channels = weight.shape[:2][::-1 if turned else 1]
    agree = images.ndim == 4 and weight.shape[2:] == (3, 3) and images.shape[1] == channels
    images, weight = _channels_last(images, weight, agree, filters)
    n, _, height, width = images.shape
    output = _empty(images, (n, filters, height, width))
    _call('convolve', [images, weight, output], n, height, width, channels, filters, turned)
    return output


def _empty(like: Tensor, shape) -> Tensor:
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


@torch.library.custom_op('winograd::conv3x3', mutates_args=())
def conv3x3(images: Tensor, weight: Tensor) -> Tensor:
    """images (N, C, H, W), weight (K, C, 3, 3) -> (N, K, H, W): F.conv2d(images, weight, padding=1), to rounding.

    float32 on the CPU; C and K are multiples of 16. Lavin and Gray, CVPR 2016, arXiv 1509.09308.
    """
    return _convolve(images, weight, turned=False)


@torch.library.custom_op('winograd::input_gradient', mutates_args=())
def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the images (N, C, H, W), from that of the output (N, K, H, W)."""
    return _convolve(grad, weight, turned=True)


@torch.library.custom_op('winograd::weight_gradient', mutates_args=())
def weight_gradient(images: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the weights (K, C, 3, 3)."""
    agree = images.ndim == grad.ndim == 4 and len(images) == len(grad) and images.shape[2:] == grad.shape[2:]
    n, channels, height, width = images.shape
    filters = grad.shape[1]
    images, grad = _channels_last(images, grad, agree, filters)
    gradient = _empty(images, (filters, channels, 3, 3))
    _call('weight_gradient', [images, grad, gradient], n, height, width, channels, filters)
    return gradient


conv3x3.register_fake(lambda images, weight: _empty(images, (len(images), len(weight), *images.shape[2:])))
input_gradient.register_fake(lambda grad, weight: _empty(grad, (len(grad), weight.shape[1], *grad.shape[2:])))
weight_gradient.register_fake(lambda images, grad: _empty(images, (grad.shape[1], images.shape[1], 3, 3)))


def _backward(ctx, grad):
    images, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad
    return input_gradient(grad, weight) if wanted[0] else None, weight_gradient(images, grad) if wanted[1] else None


conv3x3.register_autograd(_backward, setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs))


class Conv3x3(nn.Conv2d):
    """A convolution that is Winograd's within a compiled step, and the usual one elsewhere and when exported."""

    def _conv_forward(self, images, weight, bias):
        # torch 2.11 answers is_exporting() with True in any compiled function: hence what that reads.
        compiled = torch.compiler.is_compiling() and not torch.compiler._is_exporting_flag
        if not compiled or torch.is_autocast_enabled('cpu') or not self.gains(images):
            return super()._conv_forward(images, weight, bias)
        output = conv3x3(images, weight)
        return output if bias is None else output + bias.view(-1, 1, 1)

    def gains(self, images: Tensor) -> bool:
        """Whether it is faster: with few pixels, transforming the weights takes longer than all the rest.

        The bound, four pixels for each channel, is measured by `python -m benchmarks convolutions`. Where tiles reach
        over the edge it is higher, by the ratio of their area to that of the images.
        """
        if images.ndim != 4 or not images.dtype == self.weight.dtype == torch.float32:
            return False
        n, channels, height, width = images.shape
        pixels, tiles = n * height * width, n * -(-height // 4) * -(-width // 4)
        filled = pixels / (16 * max(tiles, 1))
        return channels == self.in_channels and pixels * filled >= 4 * max(self.in_channels, self.out_channels)


def suits(conv: nn.Module) -> bool:
    """Whether a module is a convolution that this algorithm can do."""
    return type(conv) is nn.Conv2d and (
        conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.padding in (1, (1, 1), 'same')
        and conv.padding_mode == 'zeros' and conv.groups == 1 and conv.in_channels % 16 == conv.out_channels % 16 == 0)


def use_winograd(*nets: nn.Module) -> int:
    """Let the compiled step of `nets` convolve by Winograd's algorithm where it can. Returns in how many convolutions.

    None on processors with AVX-512, whose own convolutions are twice as fast, nor on others than x86: not measured.
    """
    if torch.backends.cpu.get_cpu_capability() != 'AVX2':
        return 0
    found = [m for net in nets for m in net.modules() if suits(m)]
    try:
        if found:
            library()
    except OSError as error:
        print(f'--compile: the 3x3 convolutions stay as they are, for {error}')
        return 0
    for conv in found:
        conv.__class__ = Conv3x3        # parameters, names and state_dict stay as they are
    return len(found)
