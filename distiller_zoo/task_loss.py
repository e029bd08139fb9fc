"""The loss of the task: the cross-entropy with the labels, as its flags change it."""
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def task_loss(opt=None, data=None) -> nn.Module:
    """The loss of logits (N, classes) with the target, (N,) or with mixed images (N, classes) -> scalar.

    opt: the parsed options; None for the plain cross-entropy. data: dataset.Data, for the weights of --balance_classes.
    """
    if opt is None:
        return nn.CrossEntropyLoss()
    smoothing = 0.0 if opt.mixup or opt.cutmix else opt.smoothing       # a mixed target has it already
    if opt.bce_loss:
        from timm.loss import BinaryCrossEntropy
        return BinaryCrossEntropy(smoothing)
    if opt.balance_classes:
        return BalancedCrossEntropy(class_weights(data.labels, data.num_classes), smoothing)
    return nn.CrossEntropyLoss(label_smoothing=smoothing)


class BalancedCrossEntropy(nn.Module):
    """The mean over the batch of each image's cross-entropy times the weight of its class.

    torch's own divides by the sum of the weights in the batch, so that the mean over several processes would differ
    from that of one. weight: (classes,).
    """

    def __init__(self, weight: Tensor, smoothing: float):
        super().__init__()
        self.register_buffer('weight', weight, persistent=False)
        self.smoothing = smoothing

    def forward(self, logits, target):
        return F.cross_entropy(logits, target, self.weight, reduction='none', label_smoothing=self.smoothing).mean()


def class_weights(labels: Tensor, num_classes: int) -> Tensor:
    """How much each class counts so that all count alike, whatever their number of images: samples / (classes * count).

    labels: int64 (N,). Returns (num_classes,); a class without images has 0.
    """
    counts = labels.bincount(minlength=num_classes)
    weights = len(labels) / (num_classes * counts.clamp(min=1).double())
    return torch.where(counts > 0, weights, 0.0).float()
