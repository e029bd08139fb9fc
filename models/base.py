"""The contract of every network, with timm's names where timm has one."""
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from helper.errors import UserError


class Outputs(NamedTuple):
    """Outputs of a network for a batch. In a teacher's, those that the method does not need may be None."""

    logits: Tensor              # (N, classes)
    embedding: Tensor           # (N, C), the pooled last map; also the last entry of feats
    feats: list                 # the stem's output and a map (N, C, H, W) for each stage, then the embedding
    map: Tensor                 # (N, num_features, H, W), the input of pooling


class Net(nn.Module):
    """A convolutional network in three parts: stages, pooling, classifier. A subclass defines `stages`."""

    classifier_name = 'fc'      # of the linear layer that returns the logits, or of a Sequential that ends with it
    activated = True            # the stages' maps come after their last ReLU, if they have one
    head_checksum = None        # of the weights that --teacher_head has fitted
    has_classifier = True       # False: a teacher whose logits are not of the data's classes; they are never read
    selected_stages = None      # by --stages: indices of the stages in feats, from 0; None: all
    grad_checkpointing = False  # run_block keeps only the input of a block, see grad_checkpointing.py

    def stages(self, x: Tensor, preact: bool = False) -> tuple[list[Tensor], Tensor]:
        """images (N, 3, H, W) -> ([the stem's output, a map for each stage], the input of pooling).

        preact: the stages' maps before their last ReLU. Raises NotImplementedError if the net has none.
        It calls stem and blocks by run_block, for --grad_checkpointing.
        """
        raise NotImplementedError(type(self).__name__)

    def run_block(self, block: Callable, x: Tensor):
        """block(x), a part of `stages`. With --grad_checkpointing it runs again in the backward pass.

        Then only x is kept, so the block must not overwrite x.
        """
        if self.grad_checkpointing and torch.is_grad_enabled():
            return checkpoint(block, x, use_reentrant=False)
        return block(x)

    def set_grad_checkpointing(self) -> None:
        """Let run_block save memory. Call it by turn_on_grad_checkpointing, which also protects the batch norms."""
        self.grad_checkpointing = True

    def get_classifier(self) -> nn.Linear:
        """The layer that returns the logits."""
        layer = getattr(self, self.classifier_name, None)
        if layer is None:
            raise NotImplementedError(f'{_name(self)} has no layer {self.classifier_name}; set its classifier_name')
        return layer[-1] if isinstance(layer, nn.Sequential) else layer

    def classifier_layers(self) -> list[nn.Module]:
        """The layers that have an output for each class."""
        return [self.get_classifier()]

    def refuse_preact(self, preact: bool) -> None:
        """Raise NotImplementedError if `preact` is set: the first line of `stages` in nets without pre-activations."""
        if preact:
            raise NotImplementedError(f'{_name(self)} has no pre-activations')

    def get_bn_before_relu(self) -> list[nn.BatchNorm2d]:
        """The batch norm before the last ReLU of each stage. Raises NotImplementedError if there is none."""
        raise NotImplementedError(f'{_name(self)} has no single batch norm before the last ReLU of each stage')

    def count_stages(self, image_size: int) -> int:
        """Number of stages that feats can have."""
        return len(probe(self, image_size).feats) - 2

    def select_stages(self, stages: list[int], image_size: int, label: str) -> None:
        """Keep only these stages in feats, counted from 0. Raises UserError."""
        self.selected_stages = None     # so that count_stages includes all
        count = self.count_stages(image_size)
        if sorted({*stages}) != stages or stages[-1] >= count:
            raise UserError(f'{label}: {_name(self)} has the stages 0 to {count - 1}; give some of them in rising '
                            f'order')
        self.selected_stages = stages

    def convert_inputs(self, x: Tensor) -> Tensor:
        """The loader's images, converted by the module `inputs` if the net has one."""
        return self.inputs(x) if 'inputs' in self._modules else x

    @property
    def num_features(self) -> int:
        """Channels of the input of pooling."""
        return self.head_hidden_size

    @property
    def head_hidden_size(self) -> int:
        """Width of the classifier's input."""
        return self.get_classifier().in_features

    def embed(self, features: Tensor) -> Tensor:
        """The input of pooling (N, C, H, W) -> the pooled embedding (N, C)."""
        return features.mean((2, 3))

    def hidden(self, embedding: Tensor) -> Tensor:
        """The embedding -> the classifier's input (N, head_hidden_size), in most nets the embedding itself."""
        return embedding

    def pooled_head(self) -> nn.Module:
        """The layers from the mean of the map to the logits. Raises NotImplementedError if these need more."""
        classifier = self.get_classifier()
        if self.num_features != classifier.in_features:
            raise NotImplementedError(f'{type(self).__name__} has other layers between pooling and classifier')
        return classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """images (N, 3, H, W) -> the input of pooling (N, num_features, h, w)."""
        return self.stages(self.convert_inputs(x))[1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The input of pooling -> logits (N, classes), or with pre_logits the classifier's input."""
        x = self.hidden(self.embed(x))
        return x if pre_logits else self.get_classifier()(x)

    def outputs(self, x: Tensor, preact: bool = False) -> Outputs:
        """images (N, 3, H, W) -> all outputs, in one pass."""
        maps, last = self.stages(self.convert_inputs(x), preact)
        embedding = self.embed(last)
        if self.selected_stages is not None:
            maps = [maps[0], *(maps[1 + i] for i in self.selected_stages)]
        return Outputs(self.get_classifier()(self.hidden(embedding)), embedding, [*maps, embedding], last)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False):
        """images (N, 3, H, W) -> logits (N, classes), or with is_feat ([stem, stages ..., embedding], logits)."""
        out = self.outputs(x, preact)
        return (out.feats, out.logits) if is_feat else out.logits


def _name(net):
    return getattr(net, 'name', type(net).__name__)


def probe(net: Net, images: int | Tensor, preact: bool = False, gradient: bool = False) -> Outputs:
    """Outputs of `net` in eval mode for `images`: (N, 3, H, W), or the height of two blank images.

    The net keeps its training mode. gradient: compute the outputs with a graph for autograd.
    """
    if isinstance(images, int):
        images = torch.zeros(2, 3, images, images)
    was_training = net.training
    net.eval()
    try:
        with torch.set_grad_enabled(gradient):
            return net.outputs(images.to(next(net.parameters()).device), preact)
    finally:
        net.train(was_training)


def noise_images(size: int) -> Tensor:
    """Two images (2, 3, size, size) of noise, always the same. The global random state does not change."""
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
