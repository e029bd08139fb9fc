"""--sync_bn: batch norms with statistics of the whole batch, which several processes share."""
import torch
import torch.distributed as dist
from torch import nn

from helper import distributed
from helper.errors import UserError


class _SumOverRanks(torch.autograd.Function):
    """The sum over all processes, as its gradient is."""

    @staticmethod
    def forward(ctx, x):
        x = x.clone()
        dist.all_reduce(x)
        return x

    @staticmethod
    def backward(ctx, grad):
        return _SumOverRanks.forward(ctx, grad)


class CpuSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """torch's SyncBatchNorm for the CPU: (N, C, ...), N equal in every process."""

    def _check_input_dim(self, x):
        pass

    def forward(self, x):
        if not self.training:
            return super().forward(x)
        dims = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        world, dtype, x = dist.get_world_size(), x.dtype, x.float()
        mean = _SumOverRanks.apply(x.mean(dims)) / world
        var = _SumOverRanks.apply((x - mean.view(shape)).pow(2).mean(dims)) / world
        with torch.no_grad():
            n = world * x.numel() // x.shape[1]
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var * n / (n - 1), self.momentum)
        x = (x - mean.view(shape)) * (var + self.eps).rsqrt().view(shape)
        return (x * self.weight.view(shape) + self.bias.view(shape)).to(dtype)


def synchronise_batchnorm(module: nn.Module) -> None:
    """--sync_bn: let batch norms compute their statistics over all processes; parameters and their names stay.

    Raises UserError for norms that do more and have no synchronised version.
    """
    if distributed.world_size() == 1:
        return
    norms = [part for part in module.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)]
    odd = {type(norm).__name__ for norm in norms} - {'BatchNorm1d', 'BatchNorm2d', 'BatchNorm3d'}
    on_cpu = next(module.parameters()).device.type == 'cpu'
    if odd - (set() if on_cpu else {'BatchNormAct2d'}):
        raise UserError(f'--sync_bn: not for nets with {", ".join(sorted(odd))}, batch norms that do more'
                        f'{" (BatchNormAct2d goes on GPUs)" if on_cpu else ""}; leave it out')
    if on_cpu:
        for norm in norms:
            norm.__class__ = CpuSyncBatchNorm
    elif odd:
        from timm.layers import convert_sync_batchnorm
        convert_sync_batchnorm(module)
    else:
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
