"""Batch norm with the sum and the ReLU after it, in few passes over memory; batchnorm.cpp does it."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .build import call


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, norm, relu):
        x = x.contiguous(memory_format=torch.channels_last)
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        rows, channels = x.numel() // x.shape[1], x.shape[1]
        mean, inverse = x.new_empty(2, channels)
        y = torch.empty_like(x)
        call('statistics', x, mean, inverse, norm.running_mean, norm.running_var, rows, channels,
             float(norm.momentum), float(norm.eps))
        call('normalise', x, residual, mean, inverse, weight, bias, y, rows, channels, relu)
        ctx.relu, ctx.has_residual = relu, residual is not None
        ctx.save_for_backward(x, weight, bias, mean, inverse, y if relu and ctx.has_residual else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, bias, mean, inverse, y = ctx.saved_tensors
        grad = grad.contiguous(memory_format=torch.channels_last)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        # Without a ReLU the residual's gradient is the output's.
        masked = torch.empty_like(x) if ctx.has_residual and ctx.relu else None
        call('batchnorm_gradient', grad, x, y, mean, inverse, weight, bias, grad_x, masked, grad_weight, grad_bias,
             x.numel() // x.shape[1], x.shape[1], ctx.relu)
        wanted = ctx.needs_input_grad
        found = (grad_x, grad_weight, grad_bias, masked if ctx.relu else grad)
        return *(g if asked else None for g, asked in zip(found, wanted[:4], strict=True)), None, None


def suits(norm: nn.Module) -> bool:
    """Whether a module is a batch norm that these kernels can do."""
    return (type(norm) is nn.BatchNorm2d and norm.num_features % 16 == 0 and norm.affine and norm.track_running_stats
            and norm.momentum is not None)


def batch_norm(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """norm(x), + residual, then the ReLU if asked; x (N, C, H, W). By torch where the kernels do not suit.

    In training the running statistics are updated.
    """
    tensors = [t for t in (x, residual, norm.weight, norm.bias) if t is not None]
    fits = (suits(norm) and x.ndim == 4 and x.shape[1] == norm.num_features and x.numel() > x.shape[1]
            and (residual is None or residual.shape == x.shape)
            and all(t.dtype == torch.float32 and t.device.type == 'cpu' for t in tensors))
    if fits and norm.training:
        norm.num_batches_tracked.add_(1)
        return _BatchNorm.apply(x, norm.weight, norm.bias, residual, norm, relu)
    if fits and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        x = x.contiguous(memory_format=torch.channels_last)
        y, inverse = torch.empty_like(x), (norm.running_var + norm.eps).rsqrt()
        if residual is not None:
            residual = residual.contiguous(memory_format=torch.channels_last)
        call('normalise', x, residual, norm.running_mean, inverse, norm.weight, norm.bias, y,
             x.numel() // x.shape[1], x.shape[1], relu)
        return y
    y = norm(x)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y
