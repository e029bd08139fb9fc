"""The loss on the labels: cross-entropy with the labels, or the variant that the options ask for."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def label_loss(opt=None, data=None) -> nn.Module:
    """Return the loss: logits (N, classes), target (N,) or for mixed images (N, classes) -> scalar.

    opt: the parsed options; None: plain cross-entropy. data: dataset.Data, for the class weights of --balance_classes.
    """
    if opt is None:
        return nn.CrossEntropyLoss()
    smoothing = 0.0 if opt.mixup or opt.cutmix else opt.smoothing       # mixed targets are already smoothed
    if opt.bce_loss:
        from timm.loss import BinaryCrossEntropy
        return BinaryCrossEntropy(smoothing)
    if opt.balance_classes:
        return BalancedCrossEntropy(class_weights(data.labels, data.num_classes), smoothing)
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


class BalancedCrossEntropy(nn.Module):
    """The mean over the batch of each image's cross-entropy times the weight of its class, (classes,).

    torch's weighted loss divides by the sum of the weights in the batch, so its mean over several processes would
    differ from the result of one process.
    """

    def __init__(self, weight: Tensor, smoothing: float):
        super().__init__()
        self.register_buffer('weight', weight, persistent=False)
        self.smoothing = smoothing

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, self.weight, reduction='none', label_smoothing=self.smoothing).mean()


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """labels int64 (N,) -> weights (num_classes,) that balance the classes: samples / (classes * count), or 0."""
    counts = labels.bincount(minlength=num_classes)
    weights = len(labels) / (num_classes * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 0.0).float()
