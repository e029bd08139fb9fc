"""Networks of torchvision, and plain modules, whose stages are found in a trace of their forward pass."""
import contextlib
import http.client
import math
import pickle
import random
import re
import sys
import warnings
from collections import Counter
from itertools import groupby

import numpy as np
import torch
from torch import fx, nn

from helper.errors import UserError, nearest, reason

from .adapter import Adapter, cannot_build, checked_size, evenly_spaced, is_stem, tokens_to_map

LARGE_IMAGE = 256       # of the trace, so that the pooled map is smaller than the last one


def check(name: str, flag: str) -> None:
    """Raises UserError where torchvision has no classification net `name`, which may end in .WEIGHTS."""
    from torchvision import models
    names = models.list_models(module=models)
    if name.partition('.')[0] not in names:
        raise UserError(f'{flag} torchvision:{name}: torchvision has no such net; {nearest(name, names)}')


def build(full: str, name: str, settings: dict, num_classes: int, image_size: int, flag: str) -> Adapter:
    """The net `name` of torchvision with new weights for images of image_size pixels. settings: what its builder takes.

    full: the name with them. Raises UserError for what torchvision cannot build.
    """
    name = name.partition('.')[0]
    from torchvision import models
    if name in ('inception_v3', 'googlenet'):       # without the classifiers in their middle
        settings = {'aux_logits': False, 'init_weights': True, **settings}
    if name.startswith('maxvit'):
        raise UserError(f'{flag} {full}: not supported, its trace changes the names of its weights; timm has such '
                        f'nets, as timm:maxvit_tiny_tf_224')
    fixed = None
    if name.startswith('vit_'):
        fixed = checked_size(settings.get('image_size', image_size), f'{flag} {full}: image_size')
        settings = {**settings, 'image_size': fixed}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            net = models.get_model(name, weights=None, num_classes=num_classes, **settings)
    except Exception as error:      # a builder can stumble over a setting in any way
        raise cannot_build('torchvision', full, num_classes, settings, flag, error) from error
    made = Traced(full, net, num_classes, fixed or image_size, flag, trace_size=fixed or LARGE_IMAGE)
    made.settings = settings
    return made.for_images_of(image_size) if fixed else made


def published_inputs(name: str, flag: str) -> dict:
    """How torchvision's net `name` sees images by its published weights: mean, std, size, interpolation."""
    preset = _weights(name, flag).transforms()
    return {'mean': [*preset.mean], 'std': [*preset.std], 'size': preset.crop_size[0],
            'interpolation': preset.interpolation.value}


def published(name: str, flag: str) -> tuple[str, dict]:
    """('torchvision:NAME', the checkpoint of its published weights, the newest or those of NAME.WEIGHTS).

    torchvision downloads them, or has them in its cache. Raises UserError.
    """
    check(name, flag)
    state = download(_weights(name, flag), f'{flag} torchvision:{name}', f'--path-t, with --model_t torchvision:{name}')
    state = {key: value for key, value in state.items() if not re.match('aux|Aux', key)}
    more = ',transform_input=True' if name.startswith(('inception_v3', 'googlenet')) else ''    # as its builder does
    return f'torchvision:{name}{more}', {'model': state, 'num_classes': 1000,
                                         'inputs': published_inputs(name, flag)}


def download(weights, what: str, taker: str) -> dict:
    """The state_dict of torchvision's `weights`. Raises UserError that says what takes a file brought by hand."""
    try:
        with contextlib.redirect_stderr(sys.stdout):    # where the progress belongs
            return weights.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError) as error:
        raise UserError(f'{what}: {weights.url} could not be downloaded ({reason(error)}); bring that file here and '
                        f'give its path as {taker}') from error


def _weights(name, flag):
    from torchvision import models
    plain, _, which = name.partition('.')
    known = models.get_model_weights(plain)
    if which and which not in known.__members__:
        raise UserError(f'{flag} torchvision:{name}: no such weights; there are: {", ".join(known.__members__)}')
    return known[which] if which else known.DEFAULT


class Traced(Adapter):
    """A module whose forward pass torch.fx can trace: images -> logits.

    Its stages are the last map of each size. Where blocks give tokens of one size, as a ViT's, they are four of these
    blocks. The classifier is the last linear layer with as many outputs as there are classes.
    """

    def __init__(self, name: str, net: nn.Module, num_classes: int, image_size: int, flag: str,
                 trace_size: int = LARGE_IMAGE, trains: bool = False):
        super().__init__(name, net, image_size)
        self.drops_gradients = False
        first = next((m for m in net.modules() if isinstance(m, nn.Conv2d)), None)
        self.channels = 1 if first is not None and first.in_channels == 1 else 3
        before, fault = _python_state(net), None
        try:
            self._trace(num_classes, trace_size, trains)
        except (RuntimeError, ValueError, TypeError, AssertionError, IndexError, AttributeError, KeyError,
                fx.proxy.TraceError) as error:
            fault = error
        if trains and self.drops_gradients:
            raise UserError(f'{flag} {name}: its forward pass switches gradients off, which the trace of its stages '
                            f'would leave out; use detach() or requires_grad_(False) instead, or return a '
                            f'models.base.Net, which is not traced')
        if _python_state(net) != before:
            raise UserError(f'{flag} {name}: its forward pass draws random numbers, or keeps a count, in Python, which '
                            f'the trace of its stages would freeze; use a module for it, as nn.Dropout or '
                            f'torchvision.ops.StochasticDepth, or return a models.base.Net, which is not traced')
        if fault:
            raise UserError(f'{flag} {name}: its stages cannot be found ({reason(fault)}); '
                            f'make it a models.base.Net, which names them') from fault

    def _trace(self, num_classes, size, trains):
        from torchvision import ops
        from torchvision.models.feature_extraction import NodePathTracer, create_feature_extractor
        # As create_feature_extractor traces.
        parts = [kind for kind in vars(ops).values() if isinstance(kind, type) and issubclass(kind, nn.Module)]

        class Tracer(NodePathTracer):
            def create_node(tracer, *args, **kwargs):
                self.drops_gradients |= not torch.is_grad_enabled()
                return super().create_node(*args, **kwargs)

        tracer = Tracer(autowrap_modules=(math, ops), leaf_modules=parts)
        with torch.enable_grad():
            graph = tracer.trace(self.net.eval())
        with torch.random.fork_rng(devices=[]):
            shapes = _Shapes(fx.GraphModule(self.net, graph)).of(torch.zeros(2, self.channels, size, size))
        names = tracer.node_to_qualname
        called = {node.target: node for node in graph.nodes if node.op == 'call_module'}
        self.classifier = [path for path, m in self.net.named_modules() if path in called
                           and isinstance(m, nn.Linear) and m.out_features == num_classes][-1:]
        output = next(node for node in graph.nodes if node.op == 'output').args[0]
        if not isinstance(output, fx.Node):
            raise ValueError(f'its forward pass returns a {type(output).__name__} instead of the logits alone')
        reads = called[self.classifier[0]].args[0] if self.classifier else output
        last = _before_pooling(reads, shapes, self.net)
        blocks = [_Block(path, m, node, shapes[node]) for path, m in _blocks(self.net)
                  if _is_map(shapes.get(node := _last_node(path, graph, names), ()))]
        stem, stages, self.selected_stages = _stages(blocks)
        nodes = [stem, *stages, last, reads, output]
        self.stem, *self.available, self.last, self.embedding, self.logits = (names[node] for node in nodes)
        self.tokens = {names[node] for node in nodes if len(shapes[node]) == 3}
        self.nhwc = {names[node] for node in nodes if _channels_last(shapes[node])}
        if trains:      # the nodes are chosen by names, which functions have by their order
            in_training = Tracer(autowrap_modules=(math, ops), leaf_modules=parts)
            in_training.trace(self.net.train())
            counts, others = _counts(names), _counts(in_training.node_to_qualname)
            if any(counts[_function(names[node])] != others[_function(names[node])] for node in nodes
                   if node.op != 'call_module'):
                raise ValueError(OTHER_STEPS)
        before = {*self.net.state_dict()}
        try:
            self.net = create_feature_extractor(self.net, {names[node]: names[node] for node in nodes},
                                                suppress_diff_warning=True)
        except ValueError as error:
            raise ValueError(OTHER_STEPS) from error
        if lost := before ^ {*self.net.state_dict()}:
            raise ValueError(f'the trace changes {", ".join(sorted(lost)[:3])}')

    def run(self, x):
        out = self.net(x)
        stem = out[self.stem]
        grid = stem.shape[2:]

        def as_map(name):
            if name in self.tokens:
                return tokens_to_map(out[name], *grid)
            return out[name].permute(0, 3, 1, 2) if name in self.nhwc else out[name]
        embedding = out[self.embedding]
        embedding = embedding.mean((2, 3)) if embedding.dim() == 4 else embedding
        maps = [as_map(name) for name in (self.stem, *(self.available[i] for i in self.selected_stages))]
        return maps, as_map(self.last), embedding, out[self.logits]

    def get_classifier(self):
        if not self.classifier:
            raise NotImplementedError(f'{self.name} has another classifier than one linear layer')
        return self.net.get_submodule(self.classifier[0])


OTHER_STEPS = 'its forward pass takes other steps in training than in evaluation'


def _function(name):
    """A node's name without the number that tells it from others of its function, as add of add_2."""
    return re.sub(r'_\d+$', '', name)


def _counts(names):
    """How many nodes each function has, from the names of all nodes."""
    return Counter(map(_function, names.values()))


def _python_state(net):
    """The state that a traced forward pass of `net` must not change: random numbers and plain attributes."""
    states = [random.getstate(), repr(np.random.get_state()), torch.get_rng_state().tolist()]
    usual = vars(nn.Module())
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
            if name not in usual:
                states.append((path, name, repr(value)))
    return states


class _Block:
    """A part of the net that runs between two others, and the shape of what it gives."""

    def __init__(self, path, module, node, shape):
        self.path, self.module, self.node, self.shape = path, module, node, shape
        self.size = () if len(shape) == 3 else shape[1] if _channels_last(shape) else shape[2]
        self.learns = any(p.dim() > 1 for p in module.parameters())
        self.convolutions = sum(isinstance(m, nn.Conv2d) for m in module.modules())


class _Shapes(fx.Interpreter):
    """Runs a traced net once and keeps the shape of each result that is a batch of maps, tokens or vectors."""

    def of(self, images):
        self.found, self.batch = {}, len(images)
        with torch.no_grad():
            self.run(images)
        return self.found

    def run_node(self, node):
        result = super().run_node(node)
        if isinstance(result, torch.Tensor) and 2 <= result.dim() <= 4 and len(result) == self.batch:
            self.found[node] = tuple(result.shape)
        return result


def _channels_last(shape):
    return len(shape) == 4 and shape[1] == shape[2] != shape[3]


def _is_map(shape):
    return len(shape) == 3 or (len(shape) == 4 and min(sorted(shape[1:])[:2]) > 1)


def _blocks(module, path=''):
    """(path, module) of the parts that run one after the other; plain containers are opened."""
    from torchvision.models.vision_transformer import Encoder
    for name, child in module.named_children():
        inner = f'{path}.{name}' if path else name
        if type(child) in (nn.Sequential, nn.ModuleList, Encoder):
            yield from _blocks(child, inner)
        else:
            yield inner, child


def _last_node(path, graph, names):
    inside = [node for node in graph.nodes if names.get(node) == path or names.get(node, '').startswith(f'{path}.')]
    return inside[-1] if inside else None


def _before_pooling(node, shapes, net):
    """The map that becomes, pooled, what `node` gives."""
    pools = (nn.AdaptiveAvgPool2d, nn.AvgPool2d, nn.Dropout)
    while not _is_map(shapes.get(node, ())) or (
            node.op == 'call_module' and isinstance(net.get_submodule(node.target), pools)):
        node = next((arg for arg in node.all_input_nodes if arg in shapes), None)
        if node is None:
            raise ValueError('no map (N, C, H, W) comes before its logits')
    return node


def _stages(blocks):
    """(the node of the stem's output, those of the stages, which of these are taken unless the user says so)."""
    groups = [[*group] for _, group in groupby(blocks, key=lambda block: block.size)]
    groups = [group for group in groups if any(block.learns for block in group)]
    if not groups:
        raise ValueError('none of its modules gives a map (N, C, H, W)')
    first = groups[0]
    learning = [block for block in first if block.learns]
    if (len(learning) == 1 and learning[0].convolutions == 1) or all(is_stem(block.path) for block in first):
        stem, groups = _end(first), groups[1:]
    else:
        stem = learning[0]
    if all(group[0].size == () for group in groups):
        stages = [block for group in groups for block in group if block.learns]
        chosen = evenly_spaced(len(stages))
    else:
        stages = [_end(group) for group in groups]
        chosen = [*range(len(stages))]
    return stem.node, [block.node for block in stages], chosen


def _end(group):
    """The last block of a group that learns more than a norm does; after a bare convolution, what follows it too."""
    last = max(i for i, block in enumerate(group) if block.learns)
    return group[-1 if isinstance(group[last].module, nn.Conv2d) else last]
