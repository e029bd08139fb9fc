"""Fold the batch norms of a frozen net into the convolutions before them, so that it computes less."""
from collections import Counter

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from .base import Net, probe


class _Uses(TorchFunctionMode):
    """Counts how often each tensor is an argument of a function that returns tensors."""

    def __init__(self):
        super().__init__()
        self.count, self.kept = Counter(), []       # kept alive, so that no other tensor gets the same id

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if any(isinstance(leaf, torch.Tensor) for leaf in tree_leaves(result)):
            for leaf in tree_leaves((args, kwargs)):
                if isinstance(leaf, torch.Tensor):
                    self.add(leaf)
        return result

    def add(self, tensor):
        self.kept.append(tensor)
        self.count[id(tensor)] += 1


@torch.no_grad()
def fold_batchnorm(net: Net, image_size: int) -> int:
    """Fold, in place, each batch norm that is the only reader of a convolution's output. Returns how many were folded.

    It is put into eval mode. All its outputs stay the same up to rounding, pre-activations too. It
    can no longer be trained, and its state_dict has other keys.
    """
    net.eval()
    pairs = None
    for preact in (False, True):
        try:
            found = _pairs(net, image_size, preact)
        except NotImplementedError:     # a net without pre-activations
            continue
        pairs = found if pairs is None else pairs & found
    parents = {child: (parent, name) for parent in net.modules() for name, child in parent.named_children()}
    for conv, norm in pairs or ():
        for old, new in ((conv, fuse_conv_bn_eval(conv, norm)), (norm, nn.Identity())):
            parent, name = parents[old]
            setattr(parent, name, new)
    return len(pairs or ())


def _pairs(net, image_size, preact):
    """{(convolution, batch norm)} where the norm is called once, and alone reads the output of a convolution that is
    called once."""
    made, read, calls = {}, {}, Counter()

    def after_conv(conv, args, output):
        made[id(output)] = conv
        calls[conv] += 1

    def before_norm(norm, args):
        read[norm] = args[0]
        calls[norm] += 1
    # Their subclasses do more: standardise the weights, say, or apply an activation.
    hooks = [m.register_forward_hook(after_conv) for m in net.modules() if type(m) is nn.Conv2d]
    hooks += [m.register_forward_pre_hook(before_norm) for m in net.modules() if type(m) is nn.BatchNorm2d]
    try:
        with _Uses() as uses:
            for leaf in tree_leaves(probe(net, image_size, preact)):       # what the net returns is used by the caller
                uses.add(leaf)
    finally:
        for hook in hooks:
            hook.remove()
    return {(made[id(x)], norm) for norm, x in read.items()
            if id(x) in made and uses.count[id(x)] == 1 and calls[norm] == calls[made[id(x)]] == 1}
