"""MLLD: soft labels of two views of each image, and of how images and classes relate within the batch."""
import torch.nn.functional as F
from torch import nn

from .kd import distill_kl
from .logits import standardize_logits


def confident_shares(logits_t):
    """Teacher's logits (N, classes) -> two scalars: the share of images whose largest probability is at most the
    median, and the share of classes whose summed probability is. Both are about one half."""
    p = F.softmax(logits_t, dim=1)
    top, of_class = p.amax(1), p.sum(0)
    return ((x <= x.median(0).values).to(x.dtype).mean() for x in (top, of_class))


class MLLDLoss(nn.Module):
    """Soft labels at several temperatures, and differences of the relations between images and between classes.

    temperature: one of the five. standardize: the logits of the instance part are standardised (Sun et al., CVPR 2024,
    arXiv:2403.01427).
    Jin, Wang and Lin, CVPR 2023, Multi-Level Logit Distillation; as its published code computes it.
    Published: weight 0.9, temperature 4 for CIFAR-100; weight 0.5, temperature 1 for ImageNet.
    """

    more_temperatures = (3, 5, 2, 6)

    def __init__(self, temperature: float = 4.0, standardize: bool = False):
        super().__init__()
        self.temperature, self.standardize = temperature, standardize

    def parts(self, s_weak, t_weak, s_strong, t_strong):
        """Logits (N, classes) of the two views -> three scalars: of the instances, the classes, the batch."""
        image_share, class_share = confident_shares(t_weak)
        temperatures = (self.temperature, *self.more_temperatures)
        instance = self._instance(image_share, *(
            standardize_logits(x) if self.standardize else x for x in (s_weak, t_weak, s_strong, t_strong)))
        of_classes = of_batch = 0.0
        for T in temperatures:
            p_s, p_t = F.softmax(s_weak / T, dim=1), F.softmax(t_weak / T, dim=1)
            of_classes = of_classes + (p_s.t() @ p_s - p_t.t() @ p_t).pow(2).sum() / p_s.shape[1]
            of_batch = of_batch + (p_s @ p_s.t() - p_t @ p_t.t()).pow(2).sum() / len(p_s)
        return instance, class_share * of_classes, image_share * of_batch

    def _instance(self, share, s_weak, t_weak, s_strong, t_strong):
        """The published code averages before it masks, so the mask is a mere factor, and two of the five temperatures
        of the strong view read the weak one."""
        first, second = (self.temperature, *self.more_temperatures[:2]), self.more_temperatures[2:]
        weak = {T: distill_kl(s_weak, t_weak, T) for T in {*first, *second}}
        strong = {T: distill_kl(s_strong, t_strong, T) for T in {*first}}
        return share * sum(weak[T] for T in (*first, *second)) + sum(strong[T] for T in first) + \
            sum(weak[T] for T in second)

    def forward(self, s_weak, t_weak, s_strong, t_strong):
        """Logits (N, classes) of a weakly and of a strongly augmented view of each image, by both nets -> scalar."""
        return sum(self.parts(s_weak, t_weak, s_strong, t_strong))
