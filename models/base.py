"""What every network offers to the methods and the scripts, with timm's names where timm has one."""
from typing import NamedTuple

import torch
from torch import Tensor, nn

from helper.errors import UserError


class Outputs(NamedTuple):
    """All that a network gives for a batch. A method's teacher gives what the method asks for; the rest is None."""

    logits: Tensor              # (N, classes)
    embedding: Tensor           # (N, C), the pooled last map; the last entry of feats too
    feats: list                 # the stem's output and one map (N, C, H, W) a stage, then the embedding
    map: Tensor                 # (N, num_features, H, W), what pooling sees


class Net(nn.Module):
    """A convolutional network in three parts: stages, pooling, classifier.

    A subclass writes `stages` and `get_classifier`, and the others where they differ.
    """

    activated = True    # without preact, the stages come after their last ReLU, or have none
    selected_stages = None      # by --stages: indices of the stages in feats, from 0; None: all

    def stages(self, x: Tensor, preact: bool = False) -> tuple[list[Tensor], Tensor]:
        """images (N, 3, H, W) -> ([the stem's output, one map a stage], the map that pooling sees).

        preact: the stages' maps before their last ReLU. Raises NotImplementedError where a net has none.
        """
        raise NotImplementedError(type(self).__name__)

    def get_classifier(self) -> nn.Linear:
        """The layer that gives the logits."""
        raise NotImplementedError(type(self).__name__)

    def count_stages(self, image_size: int) -> int:
        """Number of stages that feats can have."""
        return len(probe(self, image_size).feats) - 2

    def select_stages(self, stages: list[int], image_size: int, what: str) -> None:
        """Keep only these stages in feats, counted from 0. Raises UserError that begins with `what`."""
        self.selected_stages = None     # so that count_stages sees all
        count = self.count_stages(image_size)
        if sorted({*stages}) != stages or stages[-1] >= count:
            name = getattr(self, 'name', type(self).__name__)
            raise UserError(f'{what}: {name} has the stages 0 to {count - 1}; give some of them in rising order')
        self.selected_stages = stages

    def see(self, x: Tensor) -> Tensor:
        """The loader's images as this net was trained to see them; a module `inputs` of the net says how."""
        return self.inputs(x) if 'inputs' in self._modules else x

    @property
    def num_features(self) -> int:
        """Channels of the map that pooling sees."""
        return self.head_hidden_size

    @property
    def head_hidden_size(self) -> int:
        """Width of what the classifier reads."""
        return self.get_classifier().in_features

    def embed(self, features: Tensor) -> Tensor:
        """The map that pooling sees (N, C, H, W) -> the pooled embedding (N, C)."""
        return features.mean((2, 3))

    def hidden(self, embedding: Tensor) -> Tensor:
        """The embedding -> what the classifier reads, (N, head_hidden_size): for most nets the embedding itself."""
        return embedding

    def pooled_head(self) -> nn.Module:
        """What makes logits of the map's mean over its positions: (N, num_features) -> (N, classes).

        Raises NotImplementedError where the logits cannot be had from it.
        """
        classifier = self.get_classifier()
        if self.num_features != classifier.in_features:
            raise NotImplementedError(f'{type(self).__name__} has other layers between pooling and classifier')
        return classifier

    def forward_features(self, x: Tensor) -> Tensor:
        """images (N, 3, H, W) -> the map that pooling sees (N, num_features, h, w)."""
        return self.stages(self.see(x))[1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map that pooling sees -> logits (N, classes), or with pre_logits what the classifier reads."""
        x = self.hidden(self.embed(x))
        return x if pre_logits else self.get_classifier()(x)

    def outputs(self, x: Tensor, preact: bool = False) -> Outputs:
        """images (N, 3, H, W) -> everything in one pass."""
        maps, last = self.stages(self.see(x), preact)
        embedding = self.embed(last)
        if self.selected_stages is not None:
            maps = [maps[0], *(maps[1 + i] for i in self.selected_stages)]
        return Outputs(self.get_classifier()(self.hidden(embedding)), embedding, [*maps, embedding], last)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False):
        """images (N, 3, H, W) -> logits (N, classes), or with is_feat ([stem, stages ..., embedding], logits)."""
        out = self.outputs(x, preact)
        return (out.feats, out.logits) if is_feat else out.logits


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
