"""Networks of timm, by its names."""
from torch import nn

from helper.errors import UserError, nearest, reason

from .adapter import Adapter, cannot_build, checked_size, evenly_spaced, is_stem, tokens_to_map

MISSING = 'timm is not installed; pip install timm'


def library(flag: str):
    """The module timm. Raises UserError where it is not installed."""
    try:
        import timm
    except ImportError:
        raise UserError(f'{flag}: {MISSING}') from None
    return timm


def check(name: str, flag: str) -> None:
    """Raises UserError where timm has no net `name`, which may end in .TAG for its published weights."""
    timm = library(f'{flag} timm:{name}')
    if not timm.is_model(name):
        raise UserError(f'{flag} timm:{name}: timm {timm.__version__} has no such net; '
                        f'{nearest(name.partition(".")[0], timm.list_models(), "timm.list_models() tells all")}')
    plain, _, tag = name.partition('.')
    known = [other.partition('.')[2] for other in timm.list_pretrained(f'{plain}.*')] if tag else []
    if tag and tag not in known:
        raise UserError(f'{flag} timm:{name}: no such published weights; there are: {", ".join(known) or "none"}')


def build(full: str, name: str, settings: dict, num_classes: int, image_size: int, flag: str) -> Adapter:
    """The net `name` of timm with new weights for images of image_size pixels. settings: what timm's builder takes.

    full: the name with them. Raises UserError for what timm cannot build.
    """
    timm = library(flag)
    size = checked_size(settings.get('img_size', image_size), f'{flag} {full}: img_size')
    if timm.get_pretrained_cfg(name).fixed_input_size:
        settings = {**settings, 'img_size': size}
    if settings.get('global_pool', 'avg') in ('', None):
        raise UserError(f'{flag} {full}: gives logits for each position of its map, because it does not pool; leave '
                        f'global_pool out')
    channels = settings.get('in_chans', 3)
    if channels not in (1, 3):
        raise UserError(f'{flag} {full}: in_chans={channels}: images have three colours; give 3, or 1 for a net that '
                        f'takes grey images')
    try:
        net = timm.create_model(name, num_classes=num_classes, **settings)
    except Exception as error:      # a builder can stumble over a setting in any way
        raise cannot_build('timm', full, num_classes, settings, flag, error) from error
    adapter = TimmNet(full, net, size, flag)
    adapter.settings, adapter.channels = settings, channels
    return adapter.for_images_of(image_size)


def published_inputs(name: str, flag: str) -> dict:
    """How timm's net `name` sees images by timm's configuration: mean, std, size, interpolation."""
    config = library(flag).get_pretrained_cfg(name)
    return {'mean': [*config.mean], 'std': [*config.std], 'size': config.input_size[-1],
            'interpolation': config.interpolation}


def published(name: str, flag: str) -> tuple[str, dict]:
    """('timm:NAME', the checkpoint of the weights that timm downloads for NAME or NAME.TAG). Raises UserError."""
    check(name, flag)
    timm = library(flag)
    try:
        net = timm.create_model(name, pretrained=True)
    except Exception as error:      # of the hub, of the network, of a net without published weights
        raise UserError(f'{flag} timm:{name}: its weights cannot be had ({reason(error)}); timm downloads them where '
                        f'there is a network: fetch them there, and give the folder or the file of safetensors here, '
                        f'with --model_t timm:{name}') from error
    return f'timm:{name}', {'model': net.state_dict(), 'num_classes': net.num_classes,
                            'inputs': published_inputs(name, flag)}


class TimmNet(Adapter):
    """A net of timm. Its stages are the entries of timm's feature_info but a stem; where these are blocks that give
    maps of one size, as a ViT's, four of them."""

    def __init__(self, name: str, net: nn.Module, image_size: int, flag: str):
        super().__init__(name, net, image_size)
        info = getattr(net, 'feature_info', None)
        info = getattr(info, 'info', info)
        if not info or not hasattr(net, 'forward_intermediates'):
            raise UserError(f'{flag} {name}: timm does not give its stages; take another net')
        self.has_stem = is_stem(info[0]['module'])
        self.available = [entry['module'] for entry in info][self.has_stem:]
        alike = len({entry['reduction'] for entry in info}) == 1
        self.selected_stages = evenly_spaced(len(info)) if alike else [*range(len(self.available))]
        self.nhwc = getattr(net, 'output_fmt', 'NCHW') == 'NHWC'
        self.linear = isinstance(net.get_classifier(), nn.Linear)

    def run(self, x):
        indices = [0, *(1 + i for i in self.selected_stages)] if self.has_stem else self.selected_stages
        final, maps = self.net.forward_intermediates(x, indices=indices, output_fmt='NCHW')
        embedding = self.net.forward_head(final, pre_logits=True)
        logits = self.net.get_classifier()(embedding) if self.linear else self.net.forward_head(final)
        if final.dim() == 3:
            final = tokens_to_map(final, *maps[-1].shape[2:])
        elif self.nhwc:
            final = final.permute(0, 3, 1, 2)
        return maps if self.has_stem else [maps[0], *maps], final, embedding, logits

    def get_classifier(self):
        if not self.linear:
            raise NotImplementedError(f'{self.name} has another classifier than one linear layer')
        return self.net.get_classifier()
