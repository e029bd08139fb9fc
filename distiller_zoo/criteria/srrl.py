"""SRRL: the student's embedding, read by the teacher's classifier, gives the teacher's logits."""
import torch.nn.functional as F
from torch import nn

from .layers import ConvBN


class SRRLTransfer(nn.Module):
    """The trained part of SRRL: 1x1 convolution, batch norm and ReLU on the embedding, (N, c_s) -> (N, c_t)."""

    def __init__(self, c_s: int, c_t: int):
        super().__init__()
        self.connector = ConvBN(c_s, c_t)

    def forward(self, f):
        """(N, c_s) -> (N, c_t)."""
        return F.relu(self.connector(f[..., None, None])).flatten(1)


class SRRLLoss(nn.Module):
    """Mean squared errors of the embeddings, and of the logits that the teacher's classifier reads from them.

    Yang et al., ICLR 2021, Knowledge Distillation via Softmax Regression Representation Learning.
    Published: weight 1.
    """

    def forward(self, h, f_t, logits_st, logits_t):
        """What SRRLTransfer gives and the teacher's embedding, (N, C), and the logits (N, classes) that the teacher's
        classifier reads from each -> scalar.
        """
        return F.mse_loss(h, f_t) + F.mse_loss(logits_st, logits_t)
