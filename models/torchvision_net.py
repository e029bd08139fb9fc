"""Networks of torchvision, by its names. torchvision takes seconds to import: only the functions that need it do so."""
import contextlib
import http.client
import pickle
import re
import sys
import warnings
from functools import partial

from helper.errors import UserError, nearest, reason

from .adapter import Adapter, check_size, create_net

WITH_AUXILIARY = ('inception_v3', 'googlenet')      # nets with classifiers in their middle, which we leave out


def check(name: str, flag: str) -> None:
    """Raise UserError unless torchvision has the classification net `name`, which may end in .WEIGHTS."""
    from torchvision import models
    names = models.list_models(module=models)
    if name.partition('.')[0] not in names:
        raise UserError(f'{flag} torchvision:{name}: torchvision has no such net; {nearest(name, names)}')


def build(full: str, name: str, settings: dict, num_classes: int, image_size: int, flag: str) -> Adapter:
    """Net `name` of torchvision with new weights. full: the name with the settings, arguments of its builder."""
    from torchvision import models

    from .traced import LARGE_IMAGE, Traced
    name = name.partition('.')[0]
    if name in WITH_AUXILIARY:
        settings = {'aux_logits': False, 'init_weights': True, **settings}
    if name.startswith('maxvit'):
        raise UserError(f'{flag} {full}: not supported, its trace changes the names of its weights; timm has such '
                        f'nets, as timm:maxvit_tiny_tf_224')
    fixed_size = None
    if name.startswith('vit_'):
        fixed_size = check_size(settings.get('image_size', image_size), f'{flag} {full}: image_size')
        settings = {**settings, 'image_size': fixed_size}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        builder = partial(models.get_model, name, weights=None)
        net = create_net(builder, 'torchvision', full, num_classes, settings, flag)
    adapter = Traced(full, net, num_classes, fixed_size or image_size, flag, trace_size=fixed_size or LARGE_IMAGE)
    adapter.settings = settings
    return adapter.resize_from(image_size) if fixed_size else adapter


def published_inputs(name: str, flag: str) -> dict:
    """Preprocessing of torchvision's net `name` by its published weights, see inputs.check_inputs."""
    preset = _get_weights(name, flag).transforms()
    return {'mean': [*preset.mean], 'std': [*preset.std], 'size': preset.crop_size[0],
            'interpolation': preset.interpolation.value, 'crop_pct': preset.crop_size[0] / preset.resize_size[0]}


def has_published(name: str, flag: str) -> bool:
    """Whether torchvision publishes weights of its net `name`, which may end in .WEIGHTS. Raises UserError for others.
    """
    from torchvision import models
    return len(models.get_model_weights(name.partition('.')[0])) > 0 and _get_weights(name, flag) is not None


def published(name: str, flag: str, file_flag: str = '') -> tuple[str, dict]:
    """(name, checkpoint) with the newest published weights, or those of NAME.WEIGHTS. Raises UserError.

    file_flag: the flag for weights fetched by hand, if it is not `flag`.
    """
    check(name, flag)
    state = download(_get_weights(name, flag), f'{flag} torchvision:{name}',
                     file_flag or f'--path-t, with --model_t torchvision:{name}')
    state = {key: value for key, value in state.items() if not re.match('aux|Aux', key)}
    setting = ',transform_input=True' if name.startswith(WITH_AUXILIARY) else ''    # torchvision's with these weights
    return f'torchvision:{name}{setting}', {'model': state, 'num_classes': 1000,
                                            'inputs': published_inputs(name, flag)}


def download(weights, label: str, file_flag: str) -> dict:
    """The state_dict of torchvision's `weights`. Raises UserError.

    file_flag: the option for a file fetched by hand.
    """
    try:
        with contextlib.redirect_stderr(sys.stdout):    # the progress bar is no error
            return weights.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError, http.client.HTTPException, pickle.UnpicklingError) as error:
        raise UserError(f'{label}: {weights.url} could not be downloaded ({reason(error)}); bring that file here and '
                        f'give its path as {file_flag}') from error


def _get_weights(name, flag):
    from torchvision import models
    plain, _, tag = name.partition('.')
    known = models.get_model_weights(plain)
    if tag and tag not in known.__members__:
        raise UserError(f'{flag} torchvision:{name}: no such weights; there are: {", ".join(known.__members__)}')
    return known[tag] if tag else known.DEFAULT
