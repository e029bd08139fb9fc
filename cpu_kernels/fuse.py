"""Rewrite nets for the kernels: batch norm, sum and ReLU in one step; 3x3 convolutions by Winograd.

The net itself stays as it is. Within `Rewritten.in_use`, a traced function that calls the same modules replaces its
`outputs`, or the `forward` of a Sequential.
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
        self.conv, self.relu, self.is_supported = conv, relu, winograd.supports(conv)

    def forward(self, x, residual=None):
        conv = self.conv
        if self.is_supported and winograd.is_faster(conv, x):
            return winograd.conv3x3(x, conv.weight, conv.bias, residual, self.relu)
        y = conv(x)     # nothing else reads y, so the sum and the ReLU may overwrite it
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


class Rewritten:
    """The nets and Sequentials within some modules, rewritten."""

    def __init__(self, *modules: nn.Module):
        self.methods = []       # (module, name of its method, function that replaces the method)
        self.is_in_use = False
        for module in modules:
            self._rewrite(module)

    def _rewrite(self, module):
        name, default_flags = None, ()
        if hasattr(module, 'new_pass'):     # models.quantisation.Quantised, whose rounding is not in a trace
            return
        if hasattr(module, 'outputs'):
            name, default_flags = 'outputs', (False,)
        elif type(module).forward is nn.Sequential.forward:
            name = 'forward'
        if name:
            function = _RewrittenMethod(module, getattr(type(module), name), default_flags)
            if function.variant(*default_flags):
                self.methods.append((module, name, function))
                return
        for child in module.children():
            self._rewrite(child)

    @contextlib.contextmanager
    def in_use(self):
        """Return a context in which the modules call the rewritten functions."""
        if self.is_in_use:
            yield
            return
        self.is_in_use = True
        for module, name, function in self.methods:
            module.__dict__[name] = function
        try:
            yield
        finally:
            self.is_in_use = False
            for module, name, _ in self.methods:
                del module.__dict__[name]


class _RewrittenMethod:
    """function(module, images, *flags), rewritten once for each value of its flags, in training and in evaluation."""

    def __init__(self, module, function, default_flags):
        self.module, self.function, self.default_flags, self.variants = module, function, default_flags, {}

    def variant(self, *flags):
        key = *flags, self.module.training
        if key not in self.variants:
            self.variants[key] = rewrite(self.module, self.function, *flags)
        return self.variants[key]

    def __call__(self, x, *flags, **named_flags):
        flags = *flags, *named_flags.values()
        rewritten = self.variant(*(flags or self.default_flags))
        return self.function(self.module, x, *flags) if rewritten is None else rewritten(x)


class _Call(nn.Module):
    """function(module, images, *flags) as a module that can be traced."""

    def __init__(self, module, function, *flags):
        super().__init__()
        self.module, self.function, self.flags = module, function, flags

    def forward(self, x):
        return self.function(self.module, x, *self.flags)


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module, name):
        # Batch norms defined in this project too, as --sync_bn's: tracing must not update their statistics.
        return isinstance(module, nn.modules.batchnorm._NormBase) or super().is_leaf_module(module, name)


def rewrite(module: nn.Module, function, *flags) -> fx.GraphModule | None:
    """function(module, images, *flags) as a function of the images that uses the kernels and the same modules.

    None if it cannot be traced, as when it depends on the shape of the images, or if nothing can be rewritten.
    """
    if any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks or m._backward_pre_hooks
           for m in module.modules()):
        return None
    root = _Call(module, function, *flags)
    try:
        graph = _Tracer().trace(root)
    except Exception:       # the net's code may raise anything when it gets a placeholder instead of images
        return None
    rewritten = fx.GraphModule(root, graph)
    modules = dict(rewritten.named_modules())
    for node in [*graph.nodes]:
        if node.op == 'call_module' and type(modules[node.target]) is nn.Identity:      # a folded batch norm
            node.replace_all_uses_with(node.args[0])
            graph.erase_node(node)
    heads = [node for node in graph.nodes if node.op == 'call_module' and len(node.args) == 1 and not node.kwargs
             and (batchnorm.supports(modules[node.target]) or type(modules[node.target]) is nn.Conv2d)]
    # Either operand of a sum can absorb it; Winograd's convolution does it at no cost, so it comes first.
    heads.sort(key=lambda node: not winograd.supports(modules[node.target]))
    count = 0
    for node in heads:
        head = modules[node.target]
        chain, residual, relu = _fusible_chain(node, modules)
        if type(head) is nn.Conv2d and not winograd.supports(head) and len(chain) == 1:
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


def _fusible_chain(head, modules):
    """([head, sum, ReLU], the sum's other operand or None, whether the chain has a ReLU).

    The sum and the ReLU are missing where something else reads the value before them.
    """
    chain, residual = [head], None
    reader = _only_reader(head)
    if reader is not None and reader.target in ADDS and len(reader.args) == 2 and not reader.kwargs:
        others = [node for node in reader.args if node is not head]
        if len(others) == 1 and isinstance(others[0], fx.Node):
            residual = others[0]
            chain.append(reader)
            reader = _only_reader(reader)
    relu = reader is not None and _is_relu(reader, modules)
    if relu:
        chain.append(reader)
    # The fused step reads its images where the chain ends, so nothing may overwrite them before.
    if len(chain) > 1 and any(_overwrites(user, modules) for user in head.args[0].users if user not in chain):
        return [head], None, False
    return chain, residual, relu


def _only_reader(node):
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(node, modules):
    return node.target in RELUS or node.op == 'call_module' and type(modules[node.target]) is nn.ReLU


def _overwrites(node, modules):
    """Whether a node overwrites its input."""
    if node.op == 'call_module':
        return getattr(modules[node.target], 'inplace', False)
    name = node.target if isinstance(node.target, str) else node.target.__name__
    return name.endswith('_') or name in ('iadd', 'isub', 'imul', 'setitem') or bool(node.kwargs.get('inplace'))
