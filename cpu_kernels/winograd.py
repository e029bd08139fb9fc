"""3x3 convolutions with a quarter of the multiplications (Winograd), for float32 on the CPU (winograd.cpp).

oneDNN, torch's library, has no such algorithm for processors with AVX2, and is slower on one with AVX-512. A fixed rule
(`is_faster`) decides which convolutions use our kernels: if it were measured, a resumed run could add in another order.
"""
import torch
from torch import Tensor, nn

from .build import call


def conv3x3(images: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None,
            relu: bool = False) -> Tensor:
    """F.conv2d(images, weight, bias, padding=1), plus residual, then a ReLU if asked, up to floating-point rounding.

    images (N, C, H, W), weight (K, C, 3, 3), bias (K,), residual and result (N, K, H, W); float32 on the CPU; C and K
    are multiples of 16. Lavin and Gray, CVPR 2016, arXiv 1509.09308.
    """
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (images, weight, bias, residual)):
        output = _Convolution.apply(images, weight, bias, residual)
        return output.relu_() if relu else output
    return _convolve(images, weight, bias, residual, relu)


def input_gradient(grad: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the images (N, C, H, W). grad: of the output (N, K, H, W)."""
    return _convolve(grad, weight, is_rotated=True)


def weight_gradient(images: Tensor, grad: Tensor) -> Tensor:
    """The gradient of the weights (K, C, 3, 3)."""
    shapes_agree = images.ndim == grad.ndim == 4 and len(images) == len(grad) and images.shape[2:] == grad.shape[2:]
    n, channels, height, width = images.shape
    filters = grad.shape[1]
    images, grad = _channels_last(images, grad, shapes_agree, filters)
    gradient = _empty((filters, channels, 3, 3))
    call('weight_gradient', images, grad, gradient, n, height, width, channels, filters)
    return gradient


def supports(conv: nn.Module) -> bool:
    """Whether a module is a convolution that this algorithm can compute."""
    return type(conv) is nn.Conv2d and (
        conv.kernel_size == (3, 3) and conv.stride == conv.dilation == (1, 1) and conv.padding in (1, (1, 1), 'same')
        and conv.padding_mode == 'zeros' and conv.groups == 1 and conv.in_channels % 16 == conv.out_channels % 16 == 0)


def is_faster(conv: nn.Conv2d, images: Tensor) -> bool:
    """Whether our kernel is used: for few pixels, the transform of the weights would take longer than the rest.

    The bound, four pixels for each channel, comes from `python -m benchmarks convolutions`. It is higher where tiles
    extend beyond the image, by the ratio of the two areas.
    """
    if images.ndim != 4 or not images.dtype == conv.weight.dtype == torch.float32:
        return False
    n, channels, height, width = images.shape
    pixels, tiles = n * height * width, n * -(-height // 4) * -(-width // 4)
    filled_share = pixels / (16 * max(tiles, 1))
    return channels == conv.in_channels and pixels * filled_share >= 4 * max(conv.in_channels, conv.out_channels)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx, images, weight, bias, residual):
        ctx.save_for_backward(images, weight)
        return _convolve(images, weight, bias, residual)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        images, weight = ctx.saved_tensors
        needs = ctx.needs_input_grad
        return (input_gradient(grad, weight) if needs[0] else None, weight_gradient(images, grad) if needs[1] else None,
                grad.sum((0, 2, 3)) if needs[2] else None, grad if needs[3] else None)


def _convolve(images: Tensor, weight: Tensor, bias: Tensor | None = None, residual: Tensor | None = None,
              relu: bool = False, is_rotated: bool = False) -> Tensor:
    filters, channels = weight.shape[:2][::-1 if is_rotated else 1]
    shapes_agree = images.ndim == 4 and weight.shape[2:] == (3, 3) and images.shape[1] == channels
    images, weight = _channels_last(images, weight, shapes_agree, filters)
    n, _, height, width = images.shape
    output = _empty((n, filters, height, width))
    if residual is not None:
        if residual.shape != output.shape or residual.dtype != torch.float32:
            raise ValueError(f'winograd: a residual {tuple(residual.shape)} of {residual.dtype} for an output '
                             f'{tuple(output.shape)}')
        residual = residual.contiguous(memory_format=torch.channels_last)
    call('convolve', images, weight, bias, residual, output, n, height, width, channels, filters, is_rotated, relu)
    return output


def _channels_last(one: Tensor, other: Tensor, shapes_agree: bool, filters: int) -> list[Tensor]:
    """Both tensors in the layout that the C++ functions read. Raises ValueError if these would read beyond them."""
    is_valid = shapes_agree and one.shape[1] % 16 == filters % 16 == 0
    if not is_valid or any(t.dtype != torch.float32 or t.device.type != 'cpu' for t in (one, other)):
        tensors = ' and '.join(f'{tuple(t.shape)} of {t.dtype} on {t.device}' for t in (one, other))
        raise ValueError(f'winograd: {tensors}; it takes shapes that agree, float32 on the CPU, channels in '
                         'multiples of 16')
    return [t.contiguous(memory_format=torch.channels_last) for t in (one, other)]


def _empty(shape) -> Tensor:
    return torch.empty(shape, dtype=torch.float32, device='cpu', memory_format=torch.channels_last)
