"""What every network offers to the methods and the scripts, with timm's names where timm has one."""
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn


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

    def stages(self, x: Tensor, preact: bool = False) -> tuple[list[Tensor], Tensor]:
        """images (N, 3, H, W) -> ([the stem's output, one map a stage], the map that pooling sees).

        preact: the stages' maps before their last ReLU. Raises NotImplementedError where a net has none.
        """
        raise NotImplementedError(type(self).__name__)

    def get_classifier(self) -> nn.Linear:
        """The layer that gives the logits."""
        raise NotImplementedError(type(self).__name__)

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

    def forward_features(self, x: Tensor) -> Tensor:
        """images (N, 3, H, W) -> the map that pooling sees (N, num_features, h, w)."""
        return self.stages(x)[1]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """The map that pooling sees -> logits (N, classes), or with pre_logits what the classifier reads."""
        x = self.hidden(self.embed(x))
        return x if pre_logits else self.get_classifier()(x)

    def outputs(self, x: Tensor, preact: bool = False) -> Outputs:
        """images (N, 3, H, W) -> everything in one pass."""
        maps, last = self.stages(x, preact)
        embedding = self.embed(last)
        return Outputs(self.get_classifier()(self.hidden(embedding)), embedding, [*maps, embedding], last)

    def forward(self, x: Tensor, is_feat: bool = False, preact: bool = False):
        """images (N, 3, H, W) -> logits (N, classes), or with is_feat ([stem, stages ..., embedding], logits)."""
        out = self.outputs(x, preact)
        return (out.feats, out.logits) if is_feat else out.logits


def run_stages(stages, x: Tensor, preact: bool = False) -> tuple[list[Tensor], Tensor]:
    """Stages of blocks that return their sum BEFORE its ReLU, which is applied here.

    Returns (x and one map a stage, after the stage's last ReLU or with preact before it; the last map after it).
    """
    maps = [x]
    for stage in stages:
        for block in stage:
            before = block(x)
            x = F.relu(before)
        maps.append(before if preact else x)
    return maps, x
