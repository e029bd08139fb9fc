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


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What torch's SyncBatchNorm, which is for GPUs alone, does: (N, C, ...) of one N in every process."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        world = dist.get_world_size()
        mean = _SumOverRanks.apply(x.mean(dims)) / world
        var = _SumOverRanks.apply((x - mean.view(shape)).pow(2).mean(dims)) / world
        with torch.no_grad():
            n = world * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return x * self.weight.view(shape) + self.bias.view(shape)


def synchronise_batchnorm(module: nn.Module) -> None:
    """Take the statistics of `module`'s batch norms over all processes. Parameters and their names stay."""
    if next(module.parameters()).device.type != 'cpu':
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    for part in module.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm):
            part.__class__ = CpuSyncBatchNorm
