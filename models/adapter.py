"""A network of another library behind the contract of base.py; timm_net.py and traced.py are the two kinds."""
import re
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper.errors import UserError, reason

from .base import Net, Outputs, noise_images, probe
from .inputs import Inputs, to_grey

MAX_EQUAL_STAGES = 4        # evenly spaced blocks that are the stages if all blocks have maps of one size


class Adapter(Net):
    """`net`, with the outputs of base.Net. Its state_dict has the library's own keys.

    A subclass defines `run` and sets `stage_names` and `selected_stages`. Call `measure` before any use.
    """

    settings = {}           # arguments of the library's builder beside the number of classes
    stage_names = []        # all stages, by the library's names
    channels = 3            # of the images that `net` takes, 3 or 1
    num_features = head_hidden_size = None      # set by `measure`

    def __init__(self, name: str, net: nn.Module, image_size: int):
        super().__init__()
        self.name, self.net, self.image_size = name, net, image_size
        self.version = getattr(net, '_version', None)       # of the library's state_dict; a traced net lacks it
        self.register_state_dict_post_hook(_remove_prefix)
        self.register_load_state_dict_pre_hook(_add_prefix)

    def run(self, x: Tensor) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
        """(N, channels, H, W) -> ([stem's output, a map for each selected stage], last map, embedding, logits).

        Maps are (N, C, H, W). If the library does not return the stem's output, the first stage's map replaces it.
        """
        raise NotImplementedError(type(self).__name__)

    def measure(self, label: str) -> Tensor:
        """Logits for two noise images. Keeps the widths of all outputs. Raises UserError that begins with `label`."""
        try:
            out = probe(self, noise_images(self.image_size), gradient=True)
            self.num_features, self.head_hidden_size = out.map.shape[1], out.embedding.shape[1]
            self.head_norm = _find_head_norm(self.net, out.map.detach().mean((2, 3)), out.embedding.detach())
        except Exception as error:      # a net can fail for a size in any way
            raise UserError(f'{label}: cannot be used with images of {self.image_size} pixels '
                            f'({reason(error)}); give larger ones, other settings or another net') from error
        return out.logits

    def convert_inputs(self, x):
        x = super().convert_inputs(x)
        return to_grey(x) if self.channels == 1 else x

    def resize_from(self, size: int) -> 'Adapter':
        """Resize images of `size` pixels, if the net only takes images of another size. Returns the adapter."""
        if size != self.image_size:
            plain = {'mean': [0.0] * 3, 'std': [1.0] * 3, 'interpolation': 'bicubic'}
            self.inputs = Inputs({**plain, 'size': size}, {**plain, 'size': self.image_size})
        return self

    def no_weight_decay(self) -> set:
        """Names of the parameters that timm excludes from weight decay, for example position embeddings."""
        return {f'net.{name}' for name in getattr(self.net, 'no_weight_decay', set)()}

    def count_stages(self, image_size):
        return len(self.stage_names)

    def outputs(self, x, preact=False):
        self.refuse_preact(preact)
        maps, last, embedding, logits = self.run(self.convert_inputs(x))
        return Outputs(logits, embedding, [*maps, embedding], last)

    def stages(self, x, preact=False):
        self.refuse_preact(preact)
        maps, last, *_ = self.run(x)
        return maps, last

    def embed(self, features):
        return self._norm()(features.mean((2, 3)))

    def pooled_head(self):
        norm, classifier = self._norm(), self.get_classifier()
        return classifier if isinstance(norm, nn.Identity) else nn.Sequential(norm, classifier)

    def _norm(self):
        """The layer between pooled map and embedding: a LayerNorm or none. Raises NotImplementedError for others."""
        if self.head_norm is None:
            raise NotImplementedError(f'the classifier of {self.name} does not read the mean of its last map')
        return _on_vectors(self.net.get_submodule(self.head_norm)) if self.head_norm else nn.Identity()


def create_net(builder: Callable, library: str, name: str, num_classes: int, settings: dict, flag: str) -> nn.Module:
    """builder(num_classes=num_classes, **settings) of a library. Raises UserError if it fails."""
    try:
        return builder(num_classes=num_classes, **settings)
    except Exception as error:      # a builder can fail for a setting in any way
        listed = ', '.join(f'{key}={value}' for key, value in {'num_classes': num_classes, **settings}.items())
        raise UserError(f'{flag} {name}: {library} cannot build it with {listed} ({type(error).__name__}: '
                        f'{reason(error)}); give other settings, or leave them out') from error


def check_size(size, label: str) -> int:
    """The image size in a net's name. Raises UserError that begins with `label`."""
    if type(size) is not int or not 8 <= size <= 4096:
        raise UserError(f'{label}={size}: give the pixels of a side, from 8 to 4096')
    return size


def evenly_spaced(count: int) -> list[int]:
    """Indices of the blocks that are stages, out of `count` blocks with maps of one size: 12 -> [2, 5, 8, 11]."""
    stages = min(count, MAX_EQUAL_STAGES)
    return [(i + 1) * count // stages - 1 for i in range(stages)]


def tokens_to_map(tokens: Tensor, height: int, width: int) -> Tensor:
    """(N, extra + height * width, C) -> (N, C, height, width), without the extra tokens, for example a class token."""
    return tokens[:, tokens.shape[1] - height * width:].transpose(1, 2).unflatten(2, (height, width))


def is_stem(name: str) -> bool:
    """Whether a library's name of a layer means a stem, which comes before the first stage."""
    return bool(re.search(r'(^|[._])(stem|act1|bn1|norm0|conv1)($|[._])', name)) or not name


def _find_head_norm(net, pooled, embedding):
    """Name of the LayerNorm that turns the pooled map into the embedding; '' if they are equal, None if neither."""
    if pooled.shape != embedding.shape or not embedding.isfinite().all():
        return None

    def is_embedding(x):
        return torch.allclose(x, embedding, rtol=1e-3, atol=1e-4 * float(embedding.abs().max()))
    if is_embedding(pooled):
        return ''
    for name, module in [*net.named_modules()][::-1]:
        if isinstance(module, nn.LayerNorm) and tuple(module.normalized_shape) == tuple(pooled.shape[1:]) \
                and is_embedding(_on_vectors(module)(pooled)):
            return name
    return None


def _on_vectors(norm):
    """A LayerNorm of (N, C) with the same parameters: some libraries' LayerNorms take maps."""
    plain = nn.LayerNorm(norm.normalized_shape, norm.eps, norm.elementwise_affine, device='meta')
    plain.weight, plain.bias = norm.weight, norm.bias
    return plain


def _remove_prefix(module, state, prefix, metadata):
    if module.version is not None:
        metadata['version'] = module.version
    for key in [key for key in state if key.startswith(f'{prefix}net.')]:
        state[prefix + key.removeprefix(f'{prefix}net.')] = state.pop(key)


def _add_prefix(module, state, prefix, *_):
    for key in [key for key in state if key.startswith(prefix) and key.removeprefix(prefix) not in module._buffers]:
        state[f'{prefix}net.{key.removeprefix(prefix)}'] = state.pop(key)
