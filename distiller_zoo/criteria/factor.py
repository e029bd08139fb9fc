"""FT: the student learns factors that a paraphraser extracts from the teacher."""
import torch.nn.functional as F
from torch import nn

from .pool import match_size


def _layers(conv, channels, bn=False):
    """3x3 `conv`s between the channels, each with BN if told, and leaky ReLU; three places a layer in either case."""
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        layers += [conv(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out) if bn else nn.Identity(),
                   nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map, with k times its channels in the middle. t_shape: (N, C, H, W)."""

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
    """Brings the student's map to the channels of the teacher's factor. s_shape, t_shape: (N, C, H, W)."""

    def __init__(self, s_shape: tuple, t_shape: tuple, k: float = 0.5):
        super().__init__()
        c, mid = s_shape[1], int(t_shape[1] * k)
        self.encoder = _layers(nn.Conv2d, (c, c, mid, mid), bn=True)

    def forward(self, f):
        return self.encoder(f)


class FactorTransfer(nn.Module):
    """Kim et al., NeurIPS 2018, Paraphrasing Complex Network: Network Compression via Factor Transfer,
    arXiv:1802.04977."""

    def forward(self, f_s, f_t):
        """Two factors (N, C, H, W) -> scalar: mean absolute difference of the normalised maps of mean squares."""
        f_s, f_t = match_size(f_s, f_t)
        s, t = (F.normalize(f.pow(2).mean(1).flatten(1), dim=1) for f in (f_s, f_t))
        return (s - t).abs().mean()
