"""last.pth, the state of a run: what it must hold, and the checks of an untrusted one before anything is changed."""
import contextlib
import copy
import zlib

import torch
from torch import nn

from .checkpoint import load_checkpoint
from .device import random_state, restore_random_state
from .errors import UserError
from .meter import Meter
from .records import Records

LAST, PREVIOUS = 'last.pth', 'previous.pth'
IMAGES_IN = '--images_in'       # the two ways draw other random numbers
IMAGES, CLASS_NAMES = 'images (checksum)', 'class names'
NEWER = (IMAGES_IN, IMAGES, CLASS_NAMES)        # facts that the states of older versions do not have
NAMED = 4       # class names in the text of CLASS_NAMES
STAGES = ('init', 'train')
PARTS = {'identity': dict, 'seed': int, 'stage': str, 'epoch': int, 'step': int, 'module': dict, 'optimizer': dict,
         'scaler': dict, 'random': list, 'loader': (torch.Tensor, type(None)), 'own': list, 'log': dict}


def fingerprint(data, **nets) -> dict:
    """The facts of the data that must be the same in a resumed run: counts, class names, checksums, --images_in.

    nets: role -> net; the code of a net from a user's file must be the same too. parameters.json and the tables use
    these facts to tell whether two runs have the same data.
    """
    found = {'training images': data.n_train, 'classes': data.num_classes,
             'labels (checksum)': zlib.crc32(data.labels.numpy().tobytes()), CLASS_NAMES: _class_names(data.classes),
             IMAGES: data.checksum, IMAGES_IN: data.images_in,
             **{f'code of the {which} (checksum)': getattr(net, 'code_checksum', None) for which, net in nets.items()}}
    return {name: value for name, value in found.items() if value is not None}


def _class_names(classes):
    """The class names as text: all if they are few, else the first and a checksum of all; None if there are none."""
    if len(classes) <= 2 * NAMED:
        return ', '.join(classes) or None
    return f'{", ".join(classes[:NAMED])}, ... ({len(classes)}, checksum {zlib.crc32(repr([*classes]).encode())})'


def weights_checksum(net: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    crc = 0
    for value in net.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


def load_state(path, module: nn.Module, loader) -> dict:
    """The state in the untrusted file at `path`, with all its parts, for a run of `module` on the batches of `loader`.

    Raises UserError.
    """
    what = f'--resume {path}'
    state = load_checkpoint(str(path), '--resume')
    with as_user_error(what):
        for name, kind in PARTS.items():
            if not isinstance(state.get(name), kind) or isinstance(state[name], bool):
                raise UserError(f'{what}: is no {LAST} of a run ("{name}" is missing or odd); give the {LAST} that a '
                                f'run keeps in its folder')
        done = state['epoch'] - 1 if state['stage'] == 'train' else 0       # epochs of the training
        if state['stage'] not in STAGES or state['epoch'] < 1 or state['step'] < 0 or not state['random'] or \
                (state['step'] and len(state['own']) != len(state['random'])) or \
                not Records.fits(state['log']) or len(state['log']['history']) != done:
            raise UserError(f'{what}: its numbers make no sense; give the {LAST} that a run keeps in its folder')
        if state['step'] > len(loader) or (state['stage'] == 'init' and not getattr(module, 'init_stage', False)) or \
                (state['loader'] is None) != (loader.order.generator is None):
            raise UserError(f'{what}: its numbers make no sense for this run')
        for name, value in state['module'].items():
            if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.isfinite().all():
                raise UserError(f'{what}: {name} is not finite')
        _check_random(state)
        Meter().restore([part['meter'] for part in state['own']], torch.device('cpu'))
        if state['scaler']:
            if not all(isinstance(value, (int, float)) for value in state['scaler'].values()):
                raise ValueError('scaler')
            torch.amp.GradScaler('cpu').load_state_dict(state['scaler'])
    if state['module'].keys().isdisjoint(module.state_dict()):     # of a network that was trained without Vanilla
        state['module'] = {f'student.{name}': value for name, value in state['module'].items()}
    return state


@contextlib.contextmanager
def as_user_error(what: str):
    """Whatever an untrusted state makes the code raise becomes one line that begins with `what`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{what}: not the state of this run ({" ".join(str(error).split())[:150]})') from error


def _check_random(state):
    """Raises what the generators raise for a state that they cannot take."""
    before = random_state()
    try:
        for numbers in state['random']:
            restore_random_state(numbers)
    finally:
        restore_random_state(before)
    if state['loader'] is not None:
        torch.Generator().set_state(state['loader'])


def check_buffers(parts: list[dict], own: dict) -> None:
    """Raises ValueError unless the buffers that each process saved are finite and have the shapes of its `own`."""
    for name, value in (item for part in parts for item in part['buffers'].items()):
        if name in own and (value.shape != own[name].shape or not value.isfinite().all()):
            raise ValueError(f'{name} of a process')


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load the state of a checkpoint into an optimiser of any kind that has not made a step yet.

    Rates and other settings come from the options. Momentum and the like come from the file, and so do the group
    entries that a step changes, as the step counts of lamb and adan. Raises whatever an untrusted state causes.
    """
    own, stepped = optimizer.state_dict(), _after_a_step(optimizer)
    groups = []
    for group, after, kept in zip(own['param_groups'], stepped['param_groups'], saved['param_groups'], strict=True):
        counted = [name for name in after if name not in group or after[name] != group[name]]
        for name in counted if saved['state'] else ():
            if type(kept.get(name)) is not type(after[name]) or not 0 <= kept[name] < 2**53:
                raise ValueError(f'{name} of a group of parameters')
        groups.append({**group, **{name: kept[name] for name in counted if name in kept}})
    more = {name: saved[name] for name in own if name not in ('state', 'param_groups')}       # as kron's random numbers
    optimizer.load_state_dict({**more, 'state': saved['state'], 'param_groups': groups})


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Raises an exception unless load_optimizer gives a state with which this optimiser can make a step.

    Shapes are compared before anything is tried: a fused kernel does not look at them and would read beyond a tensor.
    """
    fresh, usual = optimizer.state_dict()['state'], _after_a_step(optimizer)['state']
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for number in {**fresh, **saved['state']}:
        kept, shape = saved['state'].get(number, {}), parameters[number].shape
        if missing := fresh.get(number, {}).keys() - kept.keys():
            raise ValueError(f'{missing.pop()} of parameter {number} is missing')
        for name, value in kept.items():
            like = usual.get(number, {}).get(name)
            if isinstance(like, list) and (not isinstance(value, list) or len(value) != len(like)):
                raise ValueError(f'{name} of parameter {number}')
            pairs = zip(value, like, strict=True) if isinstance(like, list) else [(value, like)]
            for part, like_part in pairs:
                shapes = [like_part.shape] if isinstance(like_part, torch.Tensor) else [(), shape]
                if isinstance(part, torch.Tensor) and (
                        part.layout != torch.strided or part.shape not in shapes or not part.isfinite().all()):
                    raise ValueError(f'{name} of parameter {number} is {part.dtype} {tuple(part.shape)}')
    load_optimizer(optimizer, saved)
    _after_a_step(optimizer)


def _after_a_step(optimizer):
    """The state_dict after a step with zero gradients, on copies. Raises whatever the step raises."""
    trial = copy.deepcopy(optimizer)
    for step in (getattr(trial, 'step_kd', None), trial.step):      # of an optimiser with two gradients, both
        for p in (p for group in trial.param_groups for p in group['params']):
            p.grad = torch.zeros_like(p)
        if step:
            step()
    return trial.state_dict()
