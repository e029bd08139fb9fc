"""--grad_checkpointing: blocks of the net that learns keep only their input and run again in the backward pass."""
import torch
from torch import nn

from helper.errors import UserError

from .base import Net, noise_images, probe


def turn_on_grad_checkpointing(net: Net, image_size: int, label: str) -> None:
    """Let the blocks of `net` run again in the backward pass; outputs, gradients and running statistics stay the same.

    Call it after --sync_bn, which replaces batch norms. Raises UserError that names `label` if it has no effect.
    """
    before = _count_saved_tensors(net, image_size)
    net.set_grad_checkpointing()
    if _count_saved_tensors(net, image_size) >= before:
        raise UserError(f'--grad_checkpointing: {label} has no blocks that can run again in the backward pass; it goes '
                        f'with the nets of models.model_dict, with most of timm, and with a models.base.Net whose '
                        f'stages call run_block')
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.register_forward_pre_hook(_use_copies)
            module.register_forward_hook(_restore, always_call=True)    # torch ends the second run by an exception


def _count_saved_tensors(net, image_size):
    """How many tensors autograd keeps for the backward pass, without those that it gets from run_block."""
    count = 0

    def pack(tensor):
        nonlocal count
        count += 1
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        probe(net, noise_images(image_size), gradient=True)
    return count


def _use_copies(norm, inputs):
    """In the backward pass, let a batch norm update copies of its running statistics."""
    # torch has no public test for a backward pass. context_fn of torch.utils.checkpoint would do for run_block, but not
    # for the nets of timm, which call checkpoint themselves without it. -1: no backward pass.
    if not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1:
        norm.kept = norm._buffers
        norm._buffers = {name: buffer if buffer is None else buffer.clone() for name, buffer in norm.kept.items()}


def _restore(norm, inputs, output):
    if not torch.compiler.is_compiling() and hasattr(norm, 'kept'):
        norm._buffers = norm.kept
        del norm.kept
