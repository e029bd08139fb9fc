"""Batch normalisation over the batch of all processes (--sync_bn): torch's on GPUs, and one for the CPU."""
import torch
import torch.distributed as dist
from torch import nn


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.forward(ctx, grad)


class SyncBatchNorm(nn.SyncBatchNorm):
    """torch's, which is for GPUs alone, made to work on the CPU too: (N, C, ...) of one N in every process."""

    def forward(self, x):
        if x.device.type != 'cpu' or not self.training or not dist.is_initialized():
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        world = dist.get_world_size()
        mean = _SumOverRanks.apply(x.mean(dims)) / world
        var = _SumOverRanks.apply((x - mean.view(shape)).pow(2).mean(dims)) / world
        with torch.no_grad():
            n = world * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            rate = self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            self.running_mean.lerp_(mean, rate)
            self.running_var.lerp_(var * n / (n - 1), rate)
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape)


def synchronise_batchnorm(module: nn.Module) -> nn.Module:
    """`module` with its batch norms' statistics taken over all processes. Parameters and their names stay."""
    nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for part in module.modules():
        if type(part) is nn.SyncBatchNorm:
            part.__class__ = SyncBatchNorm
    return module
