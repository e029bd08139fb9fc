"""Soft labels of several teachers, and CA-MKD's loss on feature maps."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .kd import distill_kl

WEIGHTINGS = ('average', 'confidence', 'entropy')


def relative_weights(weights: list[float]) -> list[float]:
    """Weights of the teachers, divided by their mean: 1,2,1 -> 0.75,1.5,0.75."""
    return [len(weights) * weight / sum(weights) for weight in weights]


def image_weights(logits_t: list[Tensor], weighting: str | list[float], target: Tensor | None = None) -> Tensor:
    """Return the weights (K, N) of K teachers for each image. logits_t: K tensors (N, classes). target: (N,), classes.

    average: 1.
    confidence: (1 - softmax over the teachers of the cross-entropy with the target) / (K - 1); their sum is 1.
    entropy: 1 - the teacher's share in the sum of the entropies of all; their sum is K - 1.
    A list of numbers, one for each teacher: these, divided by their mean.

    Zhang, Chen and Wang, ICASSP 2022, Confidence-Aware Multi-Teacher Knowledge Distillation, arXiv:2201.00007.
    """
    logits = torch.stack([*logits_t])
    count = len(logits)
    if weighting == 'confidence':
        losses = torch.stack([F.cross_entropy(teacher_logits, target, reduction='none') for teacher_logits in logits])
        return (1 - losses.softmax(0)) / (count - 1)
    if weighting == 'entropy':
        log_p = logits.log_softmax(2)
        entropies = -(log_p.exp() * log_p).sum(2)
        total = entropies.sum(0)
        return 1 - torch.where(total > 0, entropies / total, 1 / count)
    weights = [1.0] * count if weighting == 'average' else relative_weights(weighting)
    return logits.new_tensor(weights)[:, None].expand(logits.shape[:2])


class MultiTeacherKL(nn.Module):
    """The mean over teachers and images of T^2 * KL(teacher || student), weighted by image_weights.

    With 'average' or a list of numbers its gradient is that of T^2 * KL to the weighted mean of the teachers'
    probabilities. The weights of 'confidence' have the mean 1/K, so its loss is about K times smaller.

    Published, CA-MKD: weight 1, T 4, confidence, three teachers. Raises ValueError for another weighting.
    """

    def __init__(self, temperature: float = 4.0, weighting: str | list[float] = 'average'):
        super().__init__()
        if isinstance(weighting, str) and weighting not in WEIGHTINGS:
            raise ValueError(f'weighting {weighting}: give one of {", ".join(WEIGHTINGS)}, or a number a teacher')
        self.temperature, self.weighting = temperature, weighting

    def forward(self, logits_s: Tensor, logits_t: list[Tensor], target: Tensor | None = None) -> Tensor:
        """Logits of the student (N, classes) and of each teacher, classes (N,) for 'confidence' -> scalar.

        Raises ValueError for one teacher with 'confidence' or 'entropy', or another number of weights than of teachers.
        """
        if len(logits_t) < 2 and self.weighting in ('confidence', 'entropy'):
            raise ValueError(f'weighting {self.weighting}: compares teachers; give at least two')
        if not isinstance(self.weighting, str) and len(self.weighting) != len(logits_t):
            raise ValueError(f'{len(logits_t)} teachers have {len(self.weighting)} weights')
        weights = image_weights(logits_t, self.weighting, target)
        losses = [distill_kl(logits_s, teacher_logits, self.temperature, weight)
                  for teacher_logits, weight in zip(logits_t, weights, strict=True)]
        return sum(losses) / len(losses)


class CAMKDFeatureLoss(nn.Module):
    """CA-MKD's loss on feature maps: squared differences, weighted for each teacher and image by 'confidence'.

    The logits are those of each teacher's pooling and classifier on the student's projected map; the weights pass their
    gradient on. Published: weight 50, three teachers.
    """

    def forward(self, h: list[Tensor], feats_t: list[Tensor], logits: list[Tensor], target: Tensor) -> Tensor:
        """For each teacher the student's projected map and the teacher's (N, C, H, W), and the logits (N, classes) of
        the projected map; classes (N,) -> scalar."""
        weights = image_weights(logits, 'confidence', target)
        squares = [(of_s - of_t).square().flatten(1).mean(1) for of_s, of_t in zip(h, feats_t, strict=True)]
        return (weights * torch.stack(squares)).mean()
