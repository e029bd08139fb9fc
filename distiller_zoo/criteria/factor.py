"""FT: the student learns factors that a paraphraser extracts from the teacher."""
import torch.nn.functional as F
from torch import nn

from .pool import match_size


def _layers(conv, channels, bn=False):
    """3x3 convolutions `conv`, each with leaky ReLU, and with BN if `bn`. Otherwise Identity keeps the numbering.
    """
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        layers += [conv(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out) if bn else nn.Identity(),
                   nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """The part of FT that a first stage trains, by its mean squared error: an autoencoder of the teacher's map.

    t_shape: (N, C, H, W) of that map. k: channels of the factor divided by those of the map.
    """

    def __init__(self, t_shape: tuple, k: float = 0.5):
        super().__init__()
        c, mid = t_shape[1], int(t_shape[1] * k)
        self.encoder = _layers(nn.Conv2d, (c, c, mid, mid))
        self.decoder = _layers(nn.ConvTranspose2d, (mid, mid, c, c))

    def forward(self, f, is_factor: bool = False):
        """(N, C, H, W) -> factor (N, kC, H, W), and unless is_factor the reconstruction (N, C, H, W)."""
        factor = self.encoder(f)
        return factor if is_factor else (factor, self.decoder(factor))


class Translator(nn.Module):
    """The trained part of FT: brings the student's map to the channels of the teacher's factor.

    s_shape, t_shape: (N, C, H, W) of both maps. k: as the Paraphraser's.
    """

    def __init__(self, s_shape: tuple, t_shape: tuple, k: float = 0.5):
        super().__init__()
        c, mid = s_shape[1], int(t_shape[1] * k)
        self.encoder = _layers(nn.Conv2d, (c, c, mid, mid), bn=True)

    def forward(self, f):
        """(N, C_s, H, W) -> (N, k * C_t, H, W)."""
        return self.encoder(f)


class FactorTransfer(nn.Module):
    """Mean absolute difference of two factors' maps: the mean over the channels of f^2, flattened and l2-normalised.

    Kim et al., NeurIPS 2018, Paraphrasing Complex Network: Network Compression via Factor Transfer, arXiv:1802.04977.
    Published: weight 200.
    """

    def forward(self, f_s, f_t):
        """Factors of the student, from Translator, and of the teacher, from Paraphraser, (N, C, H, W) -> scalar.

        The larger factor is average-pooled to the other's size.
        """
        f_s, f_t = match_size(f_s, f_t)
        s, t = (F.normalize(f.pow(2).mean(1).flatten(1), dim=1) for f in (f_s, f_t))
        return (s - t).abs().mean()
