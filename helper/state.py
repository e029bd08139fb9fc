"""last.pth, the state of a run: what it must hold, and the checks of an untrusted one before anything is changed."""
import contextlib
import zlib

import torch
from torch import nn

from .checkpoint import load_checkpoint
from .device import random_state, restore_random_state
from .errors import UserError
from .meter import Meter
from .records import Records

LAST, PREVIOUS = 'last.pth', 'previous.pth'
STAGES = ('init', 'train')
PARTS = {'identity': dict, 'seed': int, 'stage': str, 'epoch': int, 'step': int, 'module': dict, 'optimizer': dict,
         'scaler': dict, 'random': list, 'loader': (torch.Tensor, type(None)), 'own': list, 'log': dict, 'run': str}


def fingerprint(data) -> dict:
    """What a resumed run must find the same in its data: the counts, and a checksum of the labels."""
    return {'training images': data.n_train, 'classes': data.num_classes,
            'labels (checksum)': zlib.crc32(data.labels.numpy().tobytes())}


def weights_checksum(net: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    crc = 0
    for value in net.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


def load_state(path, module: nn.Module, steps: int) -> dict:
    """The state in the untrusted file at `path`, with all its parts, for a run of so many steps an epoch.

    Raises UserError.
    """
    what = f'--resume {path}'
    state = load_checkpoint(str(path), '--resume')
    with as_user_error(what):
        for name, kind in PARTS.items():
            if not isinstance(state.get(name), kind):
                raise UserError(f'{what}: is no {LAST} of a run ("{name}" is missing or odd); give the {LAST} that a '
                                f'run keeps in its folder')
        if state['stage'] not in STAGES or state['epoch'] < 1 or state['step'] < 0 or \
                (state['step'] and len(state['own']) != len(state['random'])) or not Records.fits(state['log']):
            raise UserError(f'{what}: its numbers make no sense; give the {LAST} that a run keeps in its folder')
        if state['step'] > steps or (state['stage'] == 'init' and not getattr(module, 'init_stage', False)):
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
    """What a checkpoint keeps for each parameter, whichever optimiser it is. Raises ValueError where it cannot be.

    Rates and other settings are those of the options; momentum and the like come from the file.
    """
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for number, kept in saved['state'].items():
        if number not in range(len(parameters)) or not isinstance(kept, dict):
            raise ValueError(f'parameter {number} has no state')
        for name, value in kept.items():
            if value is None or isinstance(value, (bool, int, float)):
                continue
            if not isinstance(value, torch.Tensor) or value.layout != torch.strided or not value.isfinite().all() \
                    or not _belongs(value, parameters[number]):
                raise ValueError(f'{name} of parameter {number} is {getattr(value, "dtype", type(value).__name__)} '
                                 f'{tuple(getattr(value, "shape", ()))}')
    fresh = optimizer.state_dict()
    for number, kept in saved['state'].items():
        expected = fresh['state'].get(number, {})
        for name, value in expected.items():
            if isinstance(value, torch.Tensor) and kept and (
                    not isinstance(kept.get(name), torch.Tensor) or
                    kept[name].is_floating_point() != value.is_floating_point()):
                raise ValueError(f'{name} of parameter {number}')
    optimizer.load_state_dict({'state': saved['state'], 'param_groups': fresh['param_groups']})


def _belongs(value, parameter):
    """A counter, a tensor of the parameter's shape, or a mean of it over some dimensions."""
    return not value.shape or (value.dim() == parameter.dim() and all(
        size in (1, wanted) for size, wanted in zip(value.shape, parameter.shape, strict=True)))
