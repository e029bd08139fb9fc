"""Nets rewritten for the kernels: batch norm, sum and ReLU as one, convolutions by Winograd with what follows them.

A net itself stays as it is: within `in_use`, a function made of the same modules stands before its `outputs`, or before
a Sequential's `forward`.
"""
import contextlib
import operator

import torch
import torch.nn.functional as F
from torch import fx, nn

from . import batchnorm, winograd

ADDS = (operator.add, operator.iadd, torch.add, 'add', 'add_')
RELUS = (F.relu, torch.relu, torch.relu_, 'relu', 'relu_')


class Convolution(nn.Module):
    """A convolution, with the sum and the ReLU after it."""

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.conv, self.relu, self.winograd = conv, relu, winograd.suits(conv)

    def forward(self, x, residual=None):
        conv = self.conv
        if self.winograd and winograd.gains(conv, x):
            return winograd.conv3x3(x, conv.weight, conv.bias, residual, self.relu)
        y = conv(x)     # read by nothing else, so what follows may write over it
        if residual is not None:
            y = y.add_(residual) if y.shape == residual.shape else y + residual
        return y.relu_() if self.relu else y


class Norm(nn.Module):
    """A batch norm, with the sum and the ReLU after it."""

    def __init__(self, norm: nn.BatchNorm2d, relu: bool):
        super().__init__()
        self.norm, self.relu = norm, relu

    def forward(self, x, residual=None):
        return batchnorm.batch_norm(self.norm, x, residual, self.relu)


class _Function(nn.Module):
    """What is traced: a function of a module and of images."""

    def __init__(self, module, function, *flags):
        super().__init__()
        self.module, self.function, self.flags = module, function, flags

    def forward(self, x):
        return self.function(self.module, x, *self.flags)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        # A batch norm of our own too, as that of --sync_bn: its statistics are not to change while it is traced.
        return isinstance(module, nn.modules.batchnorm._NormBase) or super().is_leaf_module(module, name)


def rewrite(module: nn.Module, function, *flags) -> fx.GraphModule | None:
    """function(module, images, *flags) as a function of the images alone, of the same modules and with the kernels.

    None where it cannot be traced, as with a choice by the shape of the images, and where there is nothing to rewrite.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
           for m in module.modules()):
        return None
    root = _Function(module, function, *flags)
    try:
        graph = _Tracer().trace(root)
    except Exception:       # any that the net's code raises when it meets what stands for the images
        return None
    rewritten = fx.GraphModule(root, graph)
    modules = dict(rewritten.named_modules())
    for node in [*graph.nodes]:
        if node.op == 'call_module' and type(modules[node.target]) is nn.Identity:      # a batch norm that was folded
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    heads = [node for node in graph.nodes if node.op == 'call_module' and len(node.args) == 1 and not node.kwargs
             and (batchnorm.suits(modules[node.target]) or type(modules[node.target]) is nn.Conv2d)]
    # Of the two sides of a sum, a convolution by Winograd takes it in at no cost.
    heads.sort(key=lambda node: not winograd.suits(modules[node.target]))
    count = 0
    for node in heads:
        head = modules[node.target]
        chain, residual, relu = _followers(node, modules)
        if type(head) is nn.Conv2d and not winograd.suits(head) and len(chain) == 1:
            continue
        name = f'fused{count}'
        modules[name] = (Convolution if type(head) is nn.Conv2d else Norm)(head, relu)
        rewritten.add_submodule(name, modules[name])
        with graph.inserting_after(chain[-1]):
            fused = graph.call_module(name, (node.args[0], *([] if residual is None else [residual])))
        chain[-1].replace_all_uses_with(fused)
        for old in reversed(chain):
            graph.erase_node(old)
        count += 1
    rewritten.recompile()
    return rewritten if count else None


def _followers(head, modules):
    """([head, the sum, the ReLU], as far as each alone reads the one before; what is added or None; whether ReLU)."""
    chain, residual = [head], None
    following = _only_reader(head)
    if following is not None and following.target in ADDS and len(following.args) == 2 and not following.kwargs:
        others = [node for node in following.args if node is not head]
        if len(others) == 1 and isinstance(others[0], fx.Node):
            residual = others[0]
            chain.append(following)
            following = _only_reader(following)
    relu = following is not None and _is_relu(following, modules)
    if relu:
        chain.append(following)
    # The head now reads its images where the chain ends: nothing may have written over them in between.
    if len(chain) > 1 and any(_writes(reader, modules) for reader in head.args[0].users if reader not in chain):
        return [head], None, False
    return chain, residual, relu


def _only_reader(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(node, modules):
    return node.target in RELUS or node.op == 'call_module' and type(modules[node.target]) is nn.ReLU


def _writes(node, modules):
    """Whether it writes over what it reads."""
    if node.op == 'call_module':
        return getattr(modules[node.target], 'inplace', False)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name.endswith('_') or name in ('iadd', 'isub', 'imul', 'setitem') or bool(node.kwargs.get('inplace'))


class Rewritten:
    """The nets and Sequentials within some modules, rewritten."""

    def __init__(self, *modules: nn.Module):
        self.places = []        # (module, the name of the method, what stands before it)
        self.used = False
        for module in modules:
            self._find(module)

    def _find(self, module):
        if hasattr(module, 'outputs'):
            name, flags = 'outputs', [False]
        elif type(module).forward is nn.Sequential.forward:
            name, flags = 'forward', []
        else:
            name = None
        if name:
            function = _Choice(module, getattr(type(module), name), flags)
            if function.rewritten(*flags):
                self.places.append((module, name, function))
                return
        for child in module.children():
            self._find(child)

    @contextlib.contextmanager
    def in_use(self):
        """Within, the rewritten functions are called."""
        if self.used:
            yield
            return
        self.used = True
        for module, name, function in self.places:
            module.__dict__[name] = function
        try:
            yield
        finally:
            self.used = False
            for module, name, _ in self.places:
                del module.__dict__[name]


class _Choice:
    """function(module, images, *flags), rewritten once for each of its flags, for training and for evaluation."""

    def __init__(self, module, function, defaults):
        self.module, self.function, self.defaults, self.made = module, function, defaults, {}

    def rewritten(self, *flags):
        key = *flags, self.module.training
        if key not in self.made:
            self.made[key] = rewrite(self.module, self.function, *flags)
        return self.made[key]

    def __call__(self, x, *flags, **named):
        flags = *flags, *named.values()
        fast = self.rewritten(*(flags or self.defaults))
        return self.function(self.module, x, *flags) if fast is None else fast(x)
