"""SRRL, softmax regression representation learning."""
import torch.nn.functional as F
from torch import nn

from .common import ConvBN


class SRRLTransfer(nn.Module):
    """The trained part of SRRL: 1x1 convolution, batch norm and ReLU on the student's embedding."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        self.connector = ConvBN(c_s, c_t)

    def forward(self, f):
        """(N, c_s) -> (N, c_t)."""
        return F.relu(self.connector(f[..., None, None])).flatten(1)


class SRRLLoss(nn.Module):
    """Mean squared error of the embeddings, plus the mean squared error of the teacher's classifier's logits for both.

    Yang et al., ICLR 2021, Knowledge Distillation via Softmax Regression Representation Learning.
    Published: weight 1.
    """

    def forward(self, h, f_t, logits_st, logits_t):
        """SRRLTransfer's output and the teacher's embedding (N, C), and the teacher's classifier's logits (N, classes)
        for each -> scalar."""
        return F.mse_loss(h, f_t) + F.mse_loss(logits_st, logits_t)
