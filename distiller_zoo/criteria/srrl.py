"""SRRL: the student's embedding, read by the teacher's classifier, gives the teacher's logits."""
import torch.nn.functional as F
from torch import nn

from .layers import ConvBN


class SRRLTransfer(nn.Module):
    """Embedding (N, c_s) -> (N, c_t): 1x1 convolution, batch norm, ReLU."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        self.connector = ConvBN(c_s, c_t)

    def forward(self, f):
        return F.relu(self.connector(f[..., None, None])).flatten(1)


class SRRLLoss(nn.Module):
    """Yang et al., ICLR 2021, Knowledge Distillation via Softmax Regression Representation Learning."""

    def forward(self, h, f_t, logits_st, logits_t):
        """The student's embedding as the teacher's (N, C), the teacher's, the logits (N, classes) that the teacher's
        classifier gives for both -> scalar."""
        return F.mse_loss(h, f_t) + F.mse_loss(logits_st, logits_t)
