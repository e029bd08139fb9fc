"""FT, factor transfer."""
from torch import nn

from .attention import attention_map
from .common import match_size


def _conv_layers(conv, channels, bn=False):
    """3x3 convolutions of type `conv`, each followed by BN if `bn`, else by Identity, and by leaky ReLU."""
    layers = []
    for c_in, c_out in zip(channels, channels[1:], strict=False):
        layers += [conv(c_in, c_out, 3, 1, 1), nn.BatchNorm2d(c_out) if bn else nn.Identity(),
                   nn.LeakyReLU(0.1, inplace=True)]
    return nn.Sequential(*layers)


class Paraphraser(nn.Module):
    """An autoencoder of the teacher's map, trained in a first stage by its mean squared error.

    t_shape: (N, C, H, W) of that map. k: channels of the factor divided by those of the map.
    """

    def __init__(self, t_shape: tuple, k: float = 0.5):
        super().__init__()
        c, mid = t_shape[1], int(t_shape[1] * k)
        self.encoder = _conv_layers(nn.Conv2d, (c, c, mid, mid))
        self.decoder = _conv_layers(nn.ConvTranspose2d, (mid, mid, c, c))

    def forward(self, f, is_factor: bool = False):
        """(N, C, H, W) -> the factor (N, k * C, H, W), and unless is_factor the reconstruction (N, C, H, W)."""
        factor = self.encoder(f)
        return factor if is_factor else (factor, self.decoder(factor))


class Translator(nn.Module):
    """The trained part of FT: maps the student's feature map to the channels of the teacher's factor.

    s_shape, t_shape: (N, C, H, W) of both maps. k: the same as in the Paraphraser.
    """

    def __init__(self, s_shape: tuple, t_shape: tuple, k: float = 0.5):
        super().__init__()
        c, mid = s_shape[1], int(t_shape[1] * k)
        self.encoder = _conv_layers(nn.Conv2d, (c, c, mid, mid), bn=True)

    def forward(self, f):
        """(N, C_s, H, W) -> (N, k * C_t, H, W)."""
        return self.encoder(f)


class FactorTransfer(nn.Module):
    """Mean absolute difference of the factors' attention maps: the mean of f^2 over the channels, l2-normalised.

    Kim et al., NeurIPS 2018, Paraphrasing Complex Network: Network Compression via Factor Transfer, arXiv:1802.04977.
    Published: weight 200.
    """

    def forward(self, f_s, f_t):
        """Factors (N, C, H, W) from the student's Translator and the teacher's Paraphraser -> scalar.

        The larger factor is average-pooled to the size of the other.
        """
        f_s, f_t = match_size(f_s, f_t)
        return (attention_map(f_s) - attention_map(f_t)).abs().mean()
