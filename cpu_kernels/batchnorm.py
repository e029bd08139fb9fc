"""Batch norm with the sum and the ReLU after it, in few passes over memory (batchnorm.cpp)."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .build import call


def batch_norm(norm: nn.BatchNorm2d, x: Tensor, residual: Tensor | None = None, relu: bool = False) -> Tensor:
    """norm(x), plus residual if given, then a ReLU if asked; x (N, C, H, W). torch computes what the kernels cannot.

    In training the running statistics are updated.
    """
    tensors = [t for t in (x, residual, norm.weight, norm.bias) if t is not None]
    is_supported = (supports(norm) and x.ndim == 4 and x.shape[1] == norm.num_features and x.numel() > x.shape[1]
                    and (residual is None or residual.shape == x.shape)
                    and all(t.dtype == torch.float32 and t.device.type == 'cpu' for t in tensors))
    if is_supported and norm.training:
        norm.num_batches_tracked.add_(1)
        return _BatchNorm.apply(x, norm.weight, norm.bias, residual, norm, relu)
    if is_supported and not (torch.is_grad_enabled() and any(t.requires_grad for t in tensors)):
        inverse_std = (norm.running_var + norm.eps).rsqrt()
        return _normalise(_channels_last(x), _channels_last(residual), norm.running_mean, inverse_std, norm.weight,
                          norm.bias, relu)
    y = norm(x)
    if residual is not None:
        y = y + residual
    return F.relu(y) if relu else y


def supports(norm: nn.Module) -> bool:
    """Whether a module is a batch norm that the kernels can compute."""
    return (type(norm) is nn.BatchNorm2d and norm.num_features % 16 == 0 and norm.affine and norm.track_running_stats
            and norm.momentum is not None)


def _channels_last(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous(memory_format=torch.channels_last)


def _normalise(x, residual, mean, inverse_std, weight, bias, relu):
    y = torch.empty_like(x)
    call('normalise', x, residual, mean, inverse_std, weight, bias, y, x.numel() // x.shape[1], x.shape[1], relu)
    return y


class _BatchNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, weight, bias, residual, norm, relu):
        x, residual = _channels_last(x), _channels_last(residual)
        channels = x.shape[1]
        mean, inverse_std = x.new_empty(2, channels)
        call('statistics', x, mean, inverse_std, norm.running_mean, norm.running_var, x.numel() // channels, channels,
             float(norm.momentum), float(norm.eps))
        y = _normalise(x, residual, mean, inverse_std, weight, bias, relu)
        ctx.relu, ctx.has_residual = relu, residual is not None
        ctx.save_for_backward(x, weight, bias, mean, inverse_std, y if relu and ctx.has_residual else None)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad):
        x, weight, bias, mean, inverse_std, y = ctx.saved_tensors
        grad = _channels_last(grad)
        grad_x, grad_weight, grad_bias = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(bias)
        # Without a ReLU, the residual's gradient equals the output's.
        grad_residual = torch.empty_like(x) if ctx.has_residual and ctx.relu else None
        call('batchnorm_gradient', grad, x, y, mean, inverse_std, weight, bias, grad_x, grad_residual, grad_weight,
             grad_bias, x.numel() // x.shape[1], x.shape[1], ctx.relu)
        grads = (grad_x, grad_weight, grad_bias, grad_residual if ctx.relu else grad)
        return *(g if is_needed else None
                 for g, is_needed in zip(grads, ctx.needs_input_grad[:4], strict=True)), None, None
