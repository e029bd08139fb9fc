"""Fold the batch norms of a frozen net into the convolutions before them: fewer operations, the same outputs."""
import contextlib
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .base import Net, probe


class _Arguments(TorchFunctionMode):
    """Records the arguments of each function that returns tensors."""

    def __init__(self):
        super().__init__()
        self.arguments = []     # keeps the tensors alive, so that each has an id of its own

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            self.arguments += tree_leaves((args, kwargs))
        return result


@torch.no_grad()
def fold_batchnorm(net: Net, image_size: int) -> int:
    """Fold each batch norm into its convolution, in place, if nothing else reads the convolution's output.

    Returns the number of folded batch norms, and puts the net into eval mode. All its outputs, pre-activations too,
    stay the same up to floating-point rounding. It can no longer be trained, and its state_dict has other keys.
    """
    net.eval()
    pairs_of_pass = []
    for preact in (False, True):
        with contextlib.suppress(NotImplementedError):      # the net has no pre-activations
            pairs_of_pass.append(_find_pairs(net, image_size, preact))
    pairs = set.intersection(*pairs_of_pass) if pairs_of_pass else set()
    parents = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    for conv, norm in pairs:
        remainder = nn.Identity() if type(norm) is nn.BatchNorm2d else nn.Sequential(norm.drop, norm.act)
        for old, new in ((conv, fuse_conv_bn_eval(conv, norm)), (norm, remainder)):
            parent, name = parents[old]
            setattr(parent, name, new)
    return len(pairs)


def _find_pairs(net, image_size, preact):
    """Find each (convolution, batch norm) called once, where only the norm reads the convolution's output."""
    conv_of, inputs, calls = {}, {}, Counter()      # id of an output -> its convolution; norm -> its input

    def after_conv(conv, args, output):
        conv_of[id(output)] = conv
        calls[conv] += 1

    def before_norm(norm, args):
        inputs[norm] = args[0]
        calls[norm] += 1
    # Exact types: a subclass may do more, such as standardise the weights. timm's BatchNormAct2d adds an activation.
    hooks = [m.register_forward_hook(after_conv) for m in net.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(before_norm) for m in net.modules()
              if type(m) is nn.BatchNorm2d or type(m).__name__ == 'BatchNormAct2d']
    try:
        with _Arguments() as mode:
            out = probe(net, image_size, preact)
    finally:
        for hook in hooks:
            hook.remove()
    uses = Counter(map(id, [*mode.arguments, *tree_leaves(out)]))       # the caller uses the outputs
    return {(conv_of[id(x)], norm) for norm, x in inputs.items()
            if id(x) in conv_of and uses[id(x)] == 1 and calls[norm] == calls[conv_of[id(x)]] == 1}
