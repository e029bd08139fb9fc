"""A network of another library behind the contract of base.py."""
import re

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.errors import UserError, reason

from .base import Net, Outputs

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')
FITS = ('crop', 'squash', 'pad')        # of --fit, see dataset.folder.resize_to_square
MANY = 4        # stages of a net whose blocks all give maps of one size: this many of them, evenly spaced


class Adapter(Net):
    """`net`, with stages, map, embedding and logits as base.Net promises. Its state_dict has the library's own keys.

    A subclass writes `run` and sets `available` and `selected_stages`. `measure` comes before any use.
    """

    settings = {}       # what the library's builder was given beside the number of classes
    available = []      # the stages there are to choose from, as the library names them
    channels = 3        # of the images that `net` takes, 3 or 1

    def __init__(self, name: str, net: nn.Module, image_size: int):
        super().__init__()
        self.name, self.net, self.image_size = name, net, image_size
        self.version = getattr(net, '_version', None)       # of the library's state_dict, which a trace does not have
        self.register_state_dict_post_hook(_library_keys)
        self.register_load_state_dict_pre_hook(_own_keys)

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """(N, channels, H, W) -> ([the stem's output, one map a selected stage], last map, embedding, logits).

        Maps are (N, C, H, W). The embedding is what the classifier reads. Where the library does not give the output of
        a stem, the first stage's stands in its place too.
        """
        raise NotImplementedError(type(self).__name__)

    def measure(self, what: str) -> Tensor:
        """Run the net on two noise images of its size. Returns their logits.

        Raises UserError that begins with `what` if the net cannot take them.
        """
        was_training, size = self.training, self.image_size
        images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
        try:
            with torch.enable_grad():
                _, last, embedding, logits = self.eval().run(self.see(images))
            self.widths = last.shape[1], embedding.shape[1]
            self.head_norm = _norm_between(self.net, last.detach().mean((2, 3)), embedding.detach())
        except Exception as error:      # a net can stumble over a size in any way
            raise UserError(f'{what}: cannot be used with images of {size} pixels '
                            f'({reason(error)}); give larger ones, other settings or another net') from error
        self.train(was_training)
        return logits

    def see(self, x):
        x = super().see(x)
        return to_grey(x) if self.channels == 1 else x

    def for_images_of(self, size: int) -> 'Adapter':
        """This net, which takes images of one size alone; those of another are resized before it."""
        if size != self.image_size:
            plain = {'mean': [0.0] * 3, 'std': [1.0] * 3, 'interpolation': 'bicubic'}
            self.inputs = Inputs({**plain, 'size': size}, {**plain, 'size': self.image_size})
        return self

    def no_weight_decay(self) -> set:
        """Names of the parameters that timm leaves without decay, as position embeddings."""
        names = getattr(self.net, 'no_weight_decay', set)()
        return {f'net.{name}' for name in names}

    def count_stages(self, image_size):
        return len(self.available)

    @property
    def num_features(self):
        return self.widths[0]

    @property
    def head_hidden_size(self):
        return self.widths[1]

    def outputs(self, x, preact=False):
        self._no_preact(preact)
        maps, last, embedding, logits = self.run(self.see(x))
        return Outputs(logits, embedding, [*maps, embedding], last)

    def stages(self, x, preact=False):
        self._no_preact(preact)
        maps, last, *_ = self.run(x)
        return maps, last

    def embed(self, features):
        return self._norm()(features.mean((2, 3)))

    def pooled_head(self):
        norm, classifier = self._norm(), self.get_classifier()
        return classifier if isinstance(norm, nn.Identity) else nn.Sequential(norm, classifier)

    def _norm(self):
        """What makes the embedding of the pooled map: a LayerNorm, or nothing. Raises NotImplementedError."""
        if self.head_norm is None:
            raise NotImplementedError(f'the classifier of {self.name} does not read the mean of its last map')
        return _plain(self.net.get_submodule(self.head_norm)) if self.head_norm else nn.Identity()

    def _no_preact(self, preact):
        if preact:
            raise NotImplementedError(f'{self.name} does not give its stages before their ReLU')


def to_grey(images: Tensor) -> Tensor:
    """(N, 3, H, W) -> (N, 1, H, W), with Pillow's weights of red, green and blue."""
    red, green, blue = images.split(1, dim=1)
    return 0.299 * red + 0.587 * green + 0.114 * blue


class Inputs(nn.Module):
    """Images as the loader gives them -> as a net was trained to see them, on the device: (N, 3, H, W) -> (N, 3, S, S).

    given, wanted: 'mean' and 'std' of the colours, of pixels from 0 to 1, and 'size', the side of an image. wanted also
    has 'interpolation', which brings an image to its size: bilinear, bicubic or nearest.
    """

    def __init__(self, given: dict, wanted: dict):
        super().__init__()
        mean_g, std_g, mean_w, std_w = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
                                        for values in (given['mean'], given['std'], wanted['mean'], wanted['std']))
        self.register_buffer('scale', (std_g / std_w).float(), persistent=False)
        self.register_buffer('shift', ((mean_g - mean_w) / std_w).float(), persistent=False)
        self.size, self.mode = wanted['size'], wanted['interpolation']
        given, wanted = ({key: value for key, value in inputs.items() if key != 'fit'} for inputs in (given, wanted))
        self.words = f'{given} -> {wanted}'

    def extra_repr(self):
        return self.words

    def forward(self, images):
        images = images * self.scale + self.shift
        if images.shape[-1] == self.size:
            return images
        if self.mode == 'nearest':
            return F.interpolate(images, self.size, mode='nearest')
        return F.interpolate(images, self.size, mode=self.mode, antialias=True)


def checked_size(size, what: str) -> int:
    """A size that a user gives in a net's name. Raises UserError."""
    if type(size) is not int or not 8 <= size <= 4096:
        raise UserError(f'{what}={size}: give the pixels of a side, from 8 to 4096')
    return size


def cannot_build(library: str, name: str, num_classes: int, settings: dict, flag: str, error: Exception) -> UserError:
    """The error for a net that its library does not build."""
    listed = ', '.join(f'{key}={value}' for key, value in {'num_classes': num_classes, **settings}.items())
    return UserError(f'{flag} {name}: {library} cannot build it with {listed} ({type(error).__name__}: '
                     f'{reason(error)}); give other settings, or leave them out')


def evenly_spaced(count: int) -> list[int]:
    """Which of `count` alike blocks stand for the stages: 12 -> [2, 5, 8, 11]."""
    return [(i + 1) * count // MANY - 1 for i in range(MANY)] if count > MANY else [*range(count)]


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(N, extra + height * width, C) -> (N, C, height, width), without the extra ones: class tokens and the like."""
    return tokens[:, tokens.shape[1] - height * width:].transpose(1, 2).unflatten(2, (height, width))


def is_stem(name: str) -> bool:
    """Whether a library's name of a layer is that of a stem, which comes before the first stage."""
    return bool(re.search(r'(^|[._])(stem|act1|bn1|norm0|conv1)($|[._])', name)) or not name


def _norm_between(net, pooled, embedding):
    """The name of the LayerNorm that makes the embedding of the pooled map; '' where they are equal, None where neither
    is so."""
    if pooled.shape != embedding.shape or not embedding.isfinite().all():
        return None

    def same(x):
        return torch.allclose(x, embedding, rtol=1e-3, atol=1e-4 * float(embedding.abs().max()))
    if same(pooled):
        return ''
    for name, module in [*net.named_modules()][::-1]:
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == tuple(pooled.shape[1:]) \
                and same(_plain(module)(pooled)):
            return name
    return None


def _plain(norm):
    """A LayerNorm with the same parameters that takes (N, C): libraries have kinds that take maps."""
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, norm.elementwise_affine, device='meta')
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


def _library_keys(module, state, prefix, metadata):
    if module.version is not None:
        metadata['version'] = module.version
    for key in [key for key in state if key.startswith(f'{prefix}net.')]:
        state[prefix + key.removeprefix(f'{prefix}net.')] = state.pop(key)


def _own_keys(module, state, prefix, *_):
    for key in [key for key in state if key.startswith(prefix)]:
        state[f'{prefix}net.{key.removeprefix(prefix)}'] = state.pop(key)
