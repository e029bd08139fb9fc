"""The network that a checkpoint deploys, with its normalisation, and the configuration that rebuilds it."""
import copy
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from distiller_zoo import get_method, load_inference_net
from models.adapter import Adapter
from models.find import build, get_library, is_user_file, parse_name
from models.inputs import check_inputs
from models.load import open_checkpoint
from models.quantisation import Quantised, remove_rounding

OWN = 'this repository'     # in config.json, the library of nets that are of no other library


class NormalisedNet(nn.Module):
    """`net` with the normalisation of its images (N, 3, S, S), uint8 from 0 to 255 or floating point from 0 to 1."""

    def __init__(self, net: nn.Module, mean: list[float], std: list[float]):
        super().__init__()
        self.net = net
        for name, values in (('mean', mean), ('std', std)):
            self.register_buffer(name, torch.tensor(values).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        pixels = images.to(self.mean.dtype)
        pixels = pixels / 255 if images.dtype == torch.uint8 else pixels
        return self.net((pixels - self.mean) / self.std).float()

    def copy(self) -> 'NormalisedNet':
        """A copy in eval mode: one of torchvision's nets would be in training mode, as torch.fx copies a net."""
        return copy.deepcopy(self).eval()


@dataclass
class DeployedNet:
    """A network to export. config: of config.json. checkpoint: the file that it was loaded from."""

    name: str
    net: NormalisedNet
    config: dict
    checkpoint: str
    rounded: NormalisedNet | None = None    # of a student of --qat: with the rounding, which `net` leaves out

    @property
    def size(self) -> int:
        """The side of an image in pixels."""
        return self.config['inputs']['size']

    @property
    def parameters(self) -> int:
        return sum(p.numel() for p in self.net.net.parameters())

    def example(self, batch: int, dtype: str) -> Tensor:
        """A batch of random images."""
        pixels = torch.randint(0, 256, (batch, 3, self.size, self.size), dtype=torch.uint8,
                               generator=torch.Generator().manual_seed(0))
        return pixels if dtype == 'uint8' else pixels / 255


def open_deployed_net(path: str, data, flag: str, arch: str | None = None,
                      checkpoint: dict | None = None) -> DeployedNet:
    """The network that the checkpoint at `path` deploys. arch: its net, if the user gives it.

    data: has what the checkpoint lacks of num_classes, image_size, inputs, classes and crop_pct. checkpoint: of
    models.load.open_checkpoint or open_net, if it is already open. Raises UserError.
    """
    checkpoint = checkpoint or open_checkpoint(path, flag)
    inputs = check_inputs(checkpoint['inputs'], f'{flag} {path}') if 'inputs' in checkpoint else data.inputs
    classes = checkpoint.get('num_classes') or data.num_classes
    sizes = SimpleNamespace(num_classes=classes, image_size=inputs['size'], inputs=inputs)
    name, net = load_inference_net(path, sizes, flag, arch, checkpoint)
    names = checkpoint.get('classes')
    if not (isinstance(names, list) and len(names) == classes and all(isinstance(n, str) for n in names)):
        names = [*data.classes] if len(data.classes) == classes else [str(i) for i in range(classes)]
    method = checkpoint.get('inference_net')
    net.eval().requires_grad_(False)
    rounded = None
    if isinstance(net, Quantised):
        rounded = NormalisedNet(net, inputs['mean'], inputs['std']).copy()
        remove_rounding(net)
    arch = net.name if isinstance(net, Adapter) else arch or checkpoint.get('arch') or name.partition(' by ')[0]
    return DeployedNet(name, NormalisedNet(net, inputs['mean'], inputs['std']),
                   _config(arch, net, method, names, {**inputs, 'crop_pct': data.crop_pct}), path, rounded)


def _config(arch, net, method, classes, inputs):
    """The content of config.json in timm's layout; 'arch' and 'inference_net' rebuild the net here."""
    # A net with converted inputs (another size, grey) differs from its library's.
    is_plain = method is None and 'inputs' not in net._modules and getattr(net, 'channels', 3) == 3
    library = get_library(arch) if is_plain else None
    return {
        'architecture': parse_name(arch, 'arch')[0].partition('.')[0] if library else arch, 'num_classes': len(classes),
        'model_args': net.settings if library else {}, 'library': library or OWN, 'arch': arch, 'inference_net': method,
        'pretrained_cfg': {'input_size': [3, inputs['size'], inputs['size']], 'mean': inputs['mean'],
                           'std': inputs['std'], 'interpolation': inputs['interpolation'],
                           'crop_pct': inputs['crop_pct'], 'num_classes': len(classes), 'label_names': classes},
        'classes': classes, 'inputs': inputs,
    }


def rebuild(config: dict, weights: dict) -> nn.Module:
    """The network of a config.json with these weights. Raises any exception for an untrusted config."""
    if is_user_file(config['arch']):
        raise ValueError(f'its net is the function {config["arch"]} of a file: take one of the other formats')
    net = build(config['arch'], config['num_classes'], config['inputs']['size'], trains=False)
    if config['inference_net']:
        net = get_method(config['inference_net']).rebuild_inference_net(net, weights)
    net.load_state_dict(weights)
    return net.eval()
