"""MLLD, multi-level logit distillation."""
import math

import torch.nn.functional as F
from torch import nn

from .common import standardize_logits
from .eakd import entropy_weights as weights_of_images
from .kd import distill_kl


def shares_up_to_median(logits_t):
    """Teacher's logits (N, classes) -> the share of images whose largest probability is at most the median, and the
    share of classes whose summed probability is: two scalars of about 0.5."""
    p = F.softmax(logits_t, dim=1)
    return ((x <= x.median(0).values).to(x.dtype).mean() for x in (p.amax(1), p.sum(0)))


class MLLDLoss(nn.Module):
    """Soft labels at five temperatures, plus differences of the relations between images and between classes.

    temperature: the first of the five. standardize: apply standardize_logits to the logits of the soft labels.
    entropy_weights: weight the images in the soft labels by the entropies of the logits as they are, each view by its
    own, at the temperature entropy_T; entropy_bound: the argument of entropy_weights, None: log(classes).
    Jin, Wang and Lin, CVPR 2023, Multi-Level Logit Distillation; as its published code computes it.
    Published: weight 0.9, temperature 4 for CIFAR-100; weight 0.5, temperature 1 for ImageNet.
    """

    fixed_temperatures = (3, 5, 2, 6)

    def __init__(self, temperature: float = 4.0, standardize: bool = False, entropy_weights: bool = False,
                 entropy_T: float = 3.0, entropy_bound: float | None = None):
        super().__init__()
        self.temperatures, self.standardize = (temperature, *self.fixed_temperatures), standardize
        self.entropy_weights, self.entropy_T, self.entropy_bound = entropy_weights, entropy_T, entropy_bound

    def parts(self, s_weak, t_weak, s_strong, t_strong):
        """Logits (N, classes) of the two views -> three scalars: the losses of the instances, the classes, the batch.
        """
        image_share, class_share = shares_up_to_median(t_weak)
        views = s_weak, t_weak, s_strong, t_strong
        weights = self.image_weights(s_weak, t_weak), self.image_weights(s_strong, t_strong)
        instance = self.instance_loss(image_share, *(map(standardize_logits, views) if self.standardize else views),
                                      *weights)
        class_loss = batch_loss = 0.0
        for T in self.temperatures:
            p_s, p_t = F.softmax(s_weak / T, dim=1), F.softmax(t_weak / T, dim=1)
            class_loss = class_loss + (p_s.t() @ p_s - p_t.t() @ p_t).pow(2).sum() / p_s.shape[1]
            batch_loss = batch_loss + (p_s @ p_s.t() - p_t @ p_t.t()).pow(2).sum() / len(p_s)
        return instance, class_share * class_loss, image_share * batch_loss

    def image_weights(self, logits_s, logits_t):
        if not self.entropy_weights:
            return None
        bound = math.log(logits_s.shape[1]) if self.entropy_bound is None else self.entropy_bound
        return weights_of_images(logits_s, logits_t, self.entropy_T, bound)

    def instance_loss(self, share, s_weak, t_weak, s_strong, t_strong, weak_weights, strong_weights):
        """As in the published code, which averages before it masks, so that the mask is only a factor `share`, and
        uses the weak view instead of the strong one at the last two temperatures."""
        first, rest = self.temperatures[:3], self.temperatures[3:]
        weak = {T: distill_kl(s_weak, t_weak, T, weak_weights) for T in {*self.temperatures}}
        strong = {T: distill_kl(s_strong, t_strong, T, strong_weights) for T in {*first}}
        return share * sum(weak[T] for T in self.temperatures) + sum(strong[T] for T in first) + \
            sum(weak[T] for T in rest)

    def forward(self, s_weak, t_weak, s_strong, t_strong):
        """Logits (N, classes) of a weakly and of a strongly augmented view of each image, by both nets -> scalar."""
        return sum(self.parts(s_weak, t_weak, s_strong, t_strong))
