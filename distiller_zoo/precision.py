"""Losses that need more than the 16 bits of --amp."""
import functools
from collections.abc import Callable

import torch

from models.base import Outputs

from .checks import map_outputs


def in_float32(method_loss: Callable) -> Callable:
    """Decorate a method_loss: under --amp it runs without autocast, on float32 copies of the outputs."""
    @functools.wraps(method_loss)
    def run(self, out_s, out_t, target, index):
        if not torch.is_autocast_enabled(target.device.type):
            return method_loss(self, out_s, out_t, target, index)
        with torch.autocast(target.device.type, enabled=False):
            return method_loss(self, to_float32(out_s), to_float32(out_t), target, index)
    return run


def to_float32(out: Outputs | list[Outputs]):
    """Return Outputs, or a list of them for several views, with float32 tensors."""
    if not isinstance(out, Outputs):
        return [to_float32(view) for view in out]
    return map_outputs(out, torch.Tensor.float)
