"""A plain module behind the contract of base.py: its stages are found in a torch.fx trace of its forward pass.

torchvision's create_feature_extractor returns the outputs of nodes by their names. It does not know which nodes are
stages, which map pooling reads, and what a trace would freeze: this file finds these.
"""
import math
import random
import re
from collections import Counter
from itertools import groupby
from typing import NamedTuple

import numpy as np
import torch
from torch import fx, nn
from torchvision import ops
from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor
from torchvision.models.vision_transformer import Encoder

from helper.errors import UserError, reason

from .adapter import Adapter, evenly_spaced, is_stem, tokens_to_map

LARGE_IMAGE = 256       # of the trace, so that the pooled map is smaller than the last one
OTHER_STEPS = 'its forward pass takes other steps in training than in evaluation'


APPENDED = 'appended_classifier'        # the name of the linear layer that follows a net which returns features


class Traced(Adapter):
    """A module that torch.fx can trace, from images to logits. Its stages are the last map of each size; of blocks that
    return tokens of one size, as in a ViT, four. Its classifier is the last linear layer with an output for each class,
    or for a net that returns features one that is appended (appends_classifier).
    """

    def __init__(self, name: str, net: nn.Module, num_classes: int, image_size: int, flag: str,
                 trace_size: int = LARGE_IMAGE, trains: bool = False, appends_classifier: bool = False):
        super().__init__(name, net, image_size)
        self.num_classes = num_classes
        first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
        self.channels = 1 if first is not None and first.in_channels == 1 else 3
        state, fault = _python_state(net), None
        tracer, training_tracer = _Tracer(), _Tracer()
        try:
            features = self._trace(tracer, training_tracer if trains else None, num_classes, trace_size)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, KeyError,
                fx.proxy.TraceError) as error:
            fault = error
        if trains and (tracer.drops_gradients or training_tracer.drops_gradients):
            raise UserError(f'{flag} {name}: its forward pass switches gradients off, which the trace of its stages '
                            f'would leave out; use detach() or requires_grad_(False) instead, or return a '
                            f'models.base.Net, which is not traced')
        if _python_state(net) != state:
            raise UserError(f'{flag} {name}: its forward pass draws random numbers, or keeps a count, in Python, which '
                            f'the trace of its stages would freeze; use a module for it, as nn.Dropout or '
                            f'torchvision.ops.StochasticDepth, or return a models.base.Net, which is not traced')
        if fault:
            raise UserError(f'{flag} {name}: its stages cannot be found ({reason(fault)}); '
                            f'make it a models.base.Net, which names them') from fault
        if appends_classifier and len(features) == 2 and features[1] != num_classes:
            self.net.add_module(APPENDED, nn.Linear(features[1], num_classes))
            self.classifier = [APPENDED]

    def _trace(self, tracer, training_tracer, num_classes, size):
        """Replace self.net by one that returns the stages. Returns the shape of the output of the forward pass."""
        with torch.enable_grad():
            graph = tracer.trace(self.net.eval())
        shapes = _shapes(self.net, graph, torch.zeros(2, self.channels, size, size))
        names = tracer.node_to_qualname
        layers = {node.target: node for node in graph.nodes if node.op == 'call_module'}
        self.classifier = [path for path, m in self.net.named_modules() if path in layers
                           and isinstance(m, nn.Linear) and m.out_features == num_classes][-1:]
        output = next(node for node in graph.nodes if node.op == 'output').args[0]
        if not isinstance(output, fx.Node):
            raise ValueError(f'its forward pass returns a {type(output).__name__} instead of the logits alone')
        embedding = layers[self.classifier[0]].args[0] if self.classifier else output
        last = _find_last_map(embedding, shapes, self.net)
        stem, stages, self.selected_stages = _find_stages(_blocks(self.net, graph, names, shapes))
        nodes = [stem, *stages, last, embedding, output]
        self.stem, *self.stage_names, self.last, self.embedding, self.logits = (names[node] for node in nodes)
        self.tokens = {names[node] for node in nodes if len(shapes[node]) == 3}
        self.nhwc = {names[node] for node in nodes if _is_nhwc(shapes[node])}
        if training_tracer:     # functions are named by their order: add, add_1, ...
            training_tracer.trace(self.net.train())
            counts, counts_in_training = (Counter(map(_function, t.node_to_qualname.values()))
                                          for t in (tracer, training_tracer))
            functions = {_function(names[node]) for node in nodes if node.op != 'call_module'}
            if any(counts[function] != counts_in_training[function] for function in functions):
                raise ValueError(OTHER_STEPS)
        keys = {*self.net.state_dict()}
        try:
            self.net = create_feature_extractor(self.net, {names[node]: names[node] for node in nodes},
                                                suppress_diff_warning=True)
        except ValueError as error:
            raise ValueError(OTHER_STEPS) from error
        if lost := keys ^ {*self.net.state_dict()}:
            raise ValueError(f'the trace changes {", ".join(sorted(lost)[:3])}')
        return shapes[output]

    def run(self, x):
        out = self.net(x)
        height, width = out[self.stem].shape[2:]

        def as_map(name):
            if name in self.tokens:
                return tokens_to_map(out[name], height, width)
            return out[name].permute(0, 3, 1, 2) if name in self.nhwc else out[name]
        embedding = out[self.embedding]
        embedding = embedding.mean((2, 3)) if embedding.dim() == 4 else embedding
        maps = [as_map(name) for name in (self.stem, *(self.stage_names[i] for i in self.selected_stages))]
        logits = self.get_classifier()(embedding) if self.classifier == [APPENDED] else out[self.logits]
        return maps, as_map(self.last), embedding, logits

    def classifier_layers(self):
        """The classifier, or without one the last convolution that has an output for each class."""
        if self.classifier:
            return super().classifier_layers()
        return [m for m in self.net.modules() if isinstance(m, nn.Conv2d) and m.out_channels == self.num_classes][-1:]

    def get_classifier(self):
        if not self.classifier:
            raise NotImplementedError(f'{self.name} has another classifier than one linear layer')
        return self.net.get_submodule(self.classifier[0])


class _Tracer(NodePathTracer):
    """Traces as create_feature_extractor does, and notes whether the forward pass switches gradients off."""

    drops_gradients = False

    def __init__(self):
        layers = [kind for kind in vars(ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]
        super().__init__(autowrap_modules=(math, ops), leaf_modules=layers)

    def create_node(self, *args, **kwargs):
        self.drops_gradients |= not torch.is_grad_enabled()
        return super().create_node(*args, **kwargs)


def _function(name):
    """A node's name without its number, for example add of add_2."""
    return re.sub(r'_\d+$', '', name)


def _python_state(net):
    """The state that a traced forward pass of `net` must not change: random numbers and plain attributes."""
    states = [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]
    of_every_module = vars(nn.Module())
    for path, module in net.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, random.Random):
                value = value.getstate()
            elif isinstance(value, np.random.Generator):
                value = value.bit_generator.state
            elif isinstance(value, torch.Generator):
                value = value.get_state().tolist()
            elif not isinstance(value, (int, float, str, list, tuple)):
                continue
            if name not in of_every_module:
                states.append((path, name, repr(value)))
    return states


def _shapes(net, graph, images):
    """node -> shape of its result, for the results that are batches of maps, tokens or vectors."""
    shapes = {}

    class Interpreter(fx.Interpreter):
        def run_node(self, node):
            result = super().run_node(node)
            if isinstance(result, torch.Tensor) and 2 <= result.dim() <= 4 and len(result) == len(images):
                shapes[node] = tuple(result.shape)
            return result

    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        Interpreter(fx.GraphModule(net, graph)).run(images)
    return shapes


def _is_nhwc(shape):
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def _is_map(shape):
    """Whether it is a map of more than one position, or tokens."""
    return len(shape) == 3 or (len(shape) == 4 and min(sorted(shape[1:])[:2]) > 1)


class _Block(NamedTuple):
    """A part of the net that returns a map or tokens."""

    path: str
    module: nn.Module
    node: fx.Node
    height: int | None      # of its map; None: tokens
    learns: bool            # weights, not only a norm's


def _blocks(net, graph, names, shapes):
    """The blocks that run one after the other."""
    blocks = []
    for path, module in _parts(net):
        inside = [node for node in graph.nodes if f'{names.get(node, "")}.'.startswith(f'{path}.')]
        shape = shapes.get(inside[-1], ()) if inside else ()
        if _is_map(shape):
            height = None if len(shape) == 3 else shape[1] if _is_nhwc(shape) else shape[2]
            learns = any(p.dim() > 1 for p in module.parameters())
            blocks.append(_Block(path, module, inside[-1], height, learns))
    return blocks


def _parts(module, path=''):
    """(path, module) of the net's children; plain containers are replaced by their children."""
    for name, child in module.named_children():
        inner = f'{path}.{name}' if path else name
        if type(child) in (nn.Sequential, nn.ModuleList, Encoder):
            yield from _parts(child, inner)
        else:
            yield inner, child


def _find_last_map(node, shapes, net):
    """The node of the map that is pooled into the result of `node`."""
    pools = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Dropout)
    while not _is_map(shapes.get(node, ())) or (
            node.op == 'call_module' and isinstance(net.get_submodule(node.target), pools)):
        node = next((arg for arg in node.all_input_nodes if arg in shapes), None)
        if node is None:
            raise ValueError('no map (N, C, H, W) comes before its logits')
    return node


def _find_stages(blocks):
    """(the node of the stem's output, the nodes of the stages, indices of the stages that are selected by default)."""
    groups = [[*group] for _, group in groupby(blocks, key=lambda block: block.height)]
    groups = [group for group in groups if any(block.learns for block in group)]
    if not groups:
        raise ValueError('none of its modules gives a map (N, C, H, W)')
    first = groups[0]
    learning = [block for block in first if block.learns]
    is_one_conv = len(learning) == 1 and sum(isinstance(m, nn.Conv2d) for m in learning[0].module.modules()) == 1
    if is_one_conv or all(is_stem(block.path) for block in first):
        stem, groups = _last_block(first), groups[1:]
    else:
        stem = learning[0]
    if all(group[0].height is None for group in groups):
        stages = [block for group in groups for block in group if block.learns]
        selected = evenly_spaced(len(stages))
    else:
        stages = [_last_block(group) for group in groups]
        selected = [*range(len(stages))]
    return stem.node, [block.node for block in stages], selected


def _last_block(group):
    """The last block with weights; after a plain convolution the last block, for example its norm or ReLU."""
    last = max(i for i, block in enumerate(group) if block.learns)
    return group[-1 if isinstance(group[last].module, nn.Conv2d) else last]
