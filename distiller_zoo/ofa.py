"""OFA-KD: every stage of the student learns the teacher's logits through a head of its own, whatever kind of net the
teacher is."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.cli import number

from .base import Distiller
from .layers import ConvBN


class ExitHead(nn.Sequential):
    """A stage's map (N, c, H, W) -> logits (N, classes): separable convolutions of stride 2 that double the channels
    until the map has the size of the last stage, a 1x1 convolution to `width`, average pooling, a linear layer."""

    def __init__(self, c: int, size: int, last_size: int, width: int, num_classes: int):
        layers = []
        while size > last_size:
            layers += [nn.Conv2d(c, c, 3, stride=2, padding=1, groups=c, bias=False), ConvBN(c, 2 * c, 1),
                       nn.ReLU(inplace=True)]
            c, size = 2 * c, -(-size // 2)
        super().__init__(*layers, ConvBN(c, width, 1), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
                         nn.Linear(width, num_classes))


def ofa_loss(logits_s: Tensor, logits_t: Tensor, target: Tensor, gamma: float, temperature: float = 1.0) -> Tensor:
    """- ((1 + p_t)^gamma - 1) log p_s for the true class, - p_t log p_s for each other; the mean over the batch.

    With the cross-entropy, the true class has the paper's weight of (1 + p_t)^gamma: the surer the teacher is, the
    more it counts. logits: (N, classes), target: (N,).
    """
    p_t = F.softmax(logits_t / temperature, 1)
    true = torch.arange(p_t.shape[1], device=target.device) == target[:, None]      # one_hot would wait for the device
    weight = torch.where(true, (1 + p_t) ** gamma - 1, p_t)
    return -(weight * F.log_softmax(logits_s / temperature, 1)).sum(1).mean()


class OFAKDDistiller(Distiller):
    """Hao et al., NeurIPS 2023, One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation, arXiv:2310.19444.

    Only logits of the teacher are compared, so that it may be of any kind. The heads are as wide as the wider of the
    two nets' embeddings, and are not deployed.
    """

    title = 'OFA-KD'
    paper = 'Hao et al., NeurIPS 2023, arXiv:2310.19444'
    uses = "logits, the student's stages"
    needs_class = True
    published = {'alpha': 0.0, 'beta': 1.0, 'kd_T': 1.0}

    @classmethod
    def add_arguments(cls, add):
        add('--ofa_gamma', type=number(float, low=1, high=10), default=1.5,
            help='how much more the true class counts where the teacher is sure; the paper chooses it for each pair')

    def build(self, opt, data, shapes_s, shapes_t):
        maps = shapes_s.feats[1:-1]
        width = max(*shapes_s.embedding, *shapes_t.embedding)
        self.heads = nn.ModuleList(ExitHead(c, size, maps[-1][-1], width, data.num_classes) for c, _, size in maps)
        self.modulation = opt.ofa_gamma

    def method_loss(self, out_s, out_t, target, index):
        branches = [out_s.logits, *(head(f) for head, f in zip(self.heads, out_s.feats[1:-1], strict=True))]
        return sum(ofa_loss(logits, out_t.logits, target, self.modulation, self.temperature) for logits in branches)
