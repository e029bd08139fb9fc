"""Networks of timm, by its names."""
import contextlib
import logging
from functools import partial

from torch import nn

from helper.errors import UserError, import_optional, nearest, reason

from .adapter import Adapter, check_size, create_net, evenly_spaced, is_stem, tokens_to_map
from .hub import without_retries


def check(name: str, flag: str) -> None:
    """Raise UserError unless timm has the net `name`, which may end in .TAG for its published weights."""
    timm = import_optional('timm', f'{flag} timm:{name}')
    plain, _, tag = name.partition('.')
    if not timm.is_model(name):
        raise UserError(f'{flag} timm:{name}: timm {timm.__version__} has no such net; '
                        f'{nearest(plain, timm.list_models(), "timm.list_models() lists all")}')
    tags = [known.partition('.')[2] for known in timm.list_pretrained(f'{plain}.*')] if tag else ['']
    if tag not in tags:
        raise UserError(f'{flag} timm:{name}: no such published weights; there are: {", ".join(tags) or "none"}')


def build(full: str, name: str, settings: dict, num_classes: int, image_size: int, flag: str) -> Adapter:
    """Net `name` of timm with new weights. full: the name with the settings, which are arguments of timm's builder."""
    timm = import_optional('timm', flag)
    size = check_size(settings.get('img_size', image_size), f'{flag} {full}: img_size')
    if timm.get_pretrained_cfg(name).fixed_input_size:
        settings = {**settings, 'img_size': size}
    if settings.get('global_pool', 'avg') in ('', None):
        raise UserError(f'{flag} {full}: gives logits for each position of its map, because it does not pool; leave '
                        f'global_pool out')
    channels = settings.get('in_chans', 3)
    if channels not in (1, 3):
        raise UserError(f'{flag} {full}: in_chans={channels}: images have three colours; give 3, or 1 for a net that '
                        f'takes grey images')
    net = create_net(partial(timm.create_model, name), 'timm', full, num_classes, settings, flag)
    adapter = TimmNet(full, net, size, flag)
    adapter.plain_name, adapter.settings, adapter.channels = name, settings, channels
    return adapter.resize_from(image_size)


def published_inputs(name: str, flag: str) -> dict:
    """Preprocessing of timm's net `name` by timm's configuration, see inputs.check_inputs."""
    config = import_optional('timm', flag).get_pretrained_cfg(name)
    return {'mean': [*config.mean], 'std': [*config.std], 'size': config.input_size[-1],
            'interpolation': config.interpolation, 'crop_pct': config.crop_pct}


def has_published(name: str, flag: str) -> bool:
    """Whether timm publishes weights of its net `name`, which may end in .TAG."""
    return import_optional('timm', flag).is_model_pretrained(name)


def published(name: str, flag: str, file_flag: str = '') -> tuple[str, dict]:
    """('timm:NAME', a checkpoint with the weights that timm downloads for NAME or NAME.TAG). Raises UserError.

    file_flag: the flag for weights fetched by hand, if it is not `flag`.
    """
    check(name, flag)
    logging.getLogger('huggingface_hub').setLevel(logging.ERROR)        # it would report each failed try
    timm = import_optional('timm', flag)
    config = timm.get_pretrained_cfg(name)
    source = f'{config.hf_hub_id} of Hugging Face' if config.hf_hub_id else config.url
    print(f'{flag} timm:{name}: the weights are {source}, downloaded unless they are in its cache', flush=True)
    with without_retries(flag) as unreachable:
        try:
            net = timm.create_model(name, pretrained=True)
        except Exception as error:      # of the hub, of the network, of a net without published weights
            cause = f'{unreachable} does not answer' if unreachable else reason(error)
            advice = f'their folder or safetensors file as {file_flag}' if file_flag else \
                f'their folder, or their safetensors file with --model_t timm:{name}'
            raise UserError(f'{flag} timm:{name}: its weights cannot be downloaded ({cause}); fetch them where there '
                            f'is a network, and give {advice}') from error
    return f'timm:{name}', {'model': net.state_dict(), 'num_classes': net.num_classes,
                            'inputs': published_inputs(name, flag)}


class TimmNet(Adapter):
    """A net of timm. Its stages are the entries of timm's feature_info except a stem; of blocks with maps of one size,
    as in a ViT, four."""

    def __init__(self, name: str, net: nn.Module, image_size: int, flag: str):
        super().__init__(name, net, image_size)
        info = getattr(net, 'feature_info', None)
        info = getattr(info, 'info', info)
        if not info or not hasattr(net, 'forward_intermediates'):
            raise UserError(f'{flag} {name}: timm does not give its stages; take another net')
        self.has_stem = is_stem(info[0]['module'])
        self.stage_names = [entry['module'] for entry in info][self.has_stem:]
        same_size = len({entry['reduction'] for entry in info}) == 1
        self.selected_stages = evenly_spaced(len(info)) if same_size else [*range(len(self.stage_names))]
        self.nhwc = getattr(net, 'output_fmt', 'NCHW') == 'NHWC'
        self.linear = isinstance(net.get_classifier(), nn.Linear)

    def run(self, x):
        indices = [0, *(1 + i for i in self.selected_stages)] if self.has_stem else self.selected_stages
        last, maps = self.net.forward_intermediates(x, indices=indices, output_fmt='NCHW')
        embedding = self.net.forward_head(last, pre_logits=True)
        logits = self.net.get_classifier()(embedding) if self.linear else self.net.forward_head(last)
        if last.dim() == 3:
            last = tokens_to_map(last, *maps[-1].shape[2:])
        elif self.nhwc:
            last = last.permute(0, 3, 1, 2)
        return maps if self.has_stem else [maps[0], *maps], last, embedding, logits

    def set_grad_checkpointing(self):
        with contextlib.suppress(AssertionError):       # of a net for which timm does not support it
            self.net.set_grad_checkpointing()

    def classifier_layers(self):
        layers = self.net.get_classifier()
        return [*layers] if isinstance(layers, tuple) else [layers]     # a distilled transformer has two

    def resample(self, weights: dict, num_classes: int) -> dict | None:
        """The weights of this net for another image size, as timm resamples them: position embeddings, for example.

        None if timm cannot load them.
        """
        timm = import_optional('timm', self.name)
        source = {'state_dict': {**weights}, 'num_classes': num_classes, 'source': '', 'label_offset': 0}
        try:
            net = timm.create_model(self.plain_name, pretrained=True, num_classes=num_classes,
                                    pretrained_cfg_overlay=source, **self.settings)
        except Exception:       # the caller compares the weights with the net, and says what does not fit
            return None
        return net.state_dict()

    def get_classifier(self):
        if not self.linear:
            raise NotImplementedError(f'{self.name} has another classifier than one linear layer')
        return self.net.get_classifier()
