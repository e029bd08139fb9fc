"""last.pth, the state of a run: how it is collected, checked as an untrusted file, and loaded."""
import contextlib
import copy

import torch
from torch import nn

from . import distributed
from .checkpoint import load_checkpoint, load_weights
from .device import Precision, random_state, restore_random_state
from .errors import UserError, reason
from .meter import Meter
from .records import Records

LAST, PREVIOUS = 'last.pth', 'previous.pth'
STAGES = ('init', 'train')
PARTS = {'identity': dict, 'seed': int, 'stage': str, 'epoch': int, 'step': int, 'module': dict, 'optimizer': dict,
         'scaler': dict, 'random': list, 'loader': (torch.Tensor, type(None)), 'own': list, 'log': dict}


class TrainingState:
    """Collects the parts of last.pth that a training loop holds, and loads them. module: a TrainingTask before DDP."""

    def __init__(self, module: nn.Module, loader, precision: Precision):
        self.module, self.loader, self.precision = module, loader, precision
        self.optimizer = self.meter = self._order_at_start = None

    def begin_epoch(self, epoch: int, meter: Meter) -> None:
        """Note the state of the image order, before the first batch. meter: averages over the epoch."""
        self.loader.order.epoch = epoch
        self.meter, self._order_at_start = meter, self._order_state()

    def collect(self, step: int) -> dict:
        """The state after `step` steps of an epoch. All processes call this; the result of process 0 counts."""
        random, parts = distributed.gather(random_state()), []
        if step:
            buffers = self._buffers_per_process() if distributed.world_size() > 1 else {}
            parts = distributed.gather({'meter': self.meter.state(),
                                        'buffers': {name: value.cpu() for name, value in buffers.items()}})
        return {'module': self.module.state_dict(), 'optimizer': self.optimizer.state_dict(),
                'scaler': self.precision.scaler.state_dict(), 'random': random, 'own': parts,
                'loader': self._order_at_start if step else self._order_state()}

    def load_module(self, state: dict, fresh_optimizer: torch.optim.Optimizer, source: str) -> None:
        """Check the state and load its weights. fresh_optimizer: for the check. source: begins an error message."""
        buffers = self._buffers_per_process()
        for name, value in (item for part in state['own'] for item in part['buffers'].items()):
            if name in buffers and (value.shape != buffers[name].shape or not value.isfinite().all()):
                raise ValueError(f'{name} of a process')
        load_weights(self.module, state['module'], f'{source}: does not fit this run')
        check_optimizer(fresh_optimizer, state['optimizer'])

    def load_stage(self, state: dict) -> None:
        """Load what the loop needs at the start of an epoch: optimiser, gradient scaler, random numbers."""
        load_optimizer(self.optimizer, state['optimizer'])
        if self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state['scaler'])
        if len(state['random']) == distributed.world_size():
            restore_random_state(state['random'][distributed.rank()])
        if state['loader'] is not None:
            self.loader.order.generator.set_state(state['loader'])

    def load_step(self, state: dict) -> None:
        """Load what differs within an epoch: the averages so far, the first batch, the buffers of each process."""
        self.loader.order.first_batch = state['step']
        parts, buffers = state['own'], {}
        if len(parts) == distributed.world_size():
            parts = [parts[distributed.rank()]]
            buffers = parts[0]['buffers']
        elif not distributed.is_main():     # of another number of processes the first loads the sum
            parts = []
        self.meter.restore([part['meter'] for part in parts], next(self.module.parameters()).device)
        for name, value in self._buffers_per_process().items():     # after DDP has made them equal
            if name in buffers:
                value.copy_(buffers[name])

    def _order_state(self):
        return None if self.loader.order.generator is None else self.loader.order.generator.get_state()

    def _buffers_per_process(self):
        """The buffers that differ between processes within an epoch, name -> tensor."""
        norms = [f'{name}.{kind}' for name, m in self.module.named_modules()
                 if isinstance(m, nn.modules.batchnorm._BatchNorm) for kind in ('running_mean', 'running_var')]
        names = {*norms, *self.module.spec.own_buffers}
        return {name: value for name, value in self.module.named_buffers() if name in names}


def load_state(path, module: nn.Module, loader) -> dict:
    """The state in the untrusted file at `path`, checked for a run of `module` on `loader`. Raises UserError."""
    source = f'--resume {path}'
    state = load_checkpoint(str(path), '--resume')
    with as_user_error(source):
        for name, kind in PARTS.items():
            if not isinstance(state.get(name), kind) or isinstance(state[name], bool):
                raise UserError(f'{source}: is no {LAST} of a run ("{name}" is missing or odd); give the {LAST} that a '
                                f'run keeps in its folder')
        finished = state['epoch'] - 1 if state['stage'] == 'train' else 0       # epochs
        if state['stage'] not in STAGES or state['epoch'] < 1 or state['step'] < 0 or not state['random'] or \
                (state['step'] and len(state['own']) != len(state['random'])) or \
                not Records.fits(state['log'], module.metrics) or len(state['log']['history']) != finished:
            raise UserError(f'{source}: its numbers make no sense; give the {LAST} that a run keeps in its folder')
        if state['step'] > len(loader) or (state['stage'] == 'init' and not module.has_first_stage) or \
                (state['loader'] is None) != (loader.order.generator is None):
            raise UserError(f'{source}: its numbers make no sense for this run')
        for name, value in state['module'].items():
            if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.isfinite().all():
                raise UserError(f'{source}: {name} is not finite')
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
def as_user_error(source: str):
    """Turn any exception that an untrusted state causes into one line that begins with `source`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f'{source}: not the state of this run ({reason(error, 150)})') from error


def _check_random(state):
    """Raise what the random number generators raise for a state that they cannot load."""
    before = random_state()
    try:
        for numbers in state['random']:
            restore_random_state(numbers)
    finally:
        restore_random_state(before)
    if state['loader'] is not None:
        torch.Generator().set_state(state['loader'])


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Load an untrusted state into an optimiser that has not made a step yet. Raises any exception.

    The settings come from the options; momentum, and entries that a step changes, as lamb's step count, from the file.
    """
    fresh, stepped = optimizer.state_dict(), _after_a_step(optimizer)
    groups = []
    for group, after, old in zip(fresh['param_groups'], stepped['param_groups'], saved['param_groups'], strict=True):
        changed = [name for name in after if name not in group or after[name] != group[name]]
        for name in changed if saved['state'] else ():
            if type(old.get(name)) is not type(after[name]) or not 0 <= old[name] < 2**53:
                raise ValueError(f'{name} of a group of parameters')
        groups.append({**group, **{name: old[name] for name in changed if name in old}})
    rest = {name: saved[name] for name in fresh if name not in ('state', 'param_groups')}   # as kron's random numbers
    optimizer.load_state_dict({**rest, 'state': saved['state'], 'param_groups': groups})


def check_optimizer(optimizer: torch.optim.Optimizer, saved: dict) -> None:
    """Raise an exception unless load_optimizer gives a state with which this optimiser can make a step.

    Shapes are compared first: a fused kernel does not check them and would read beyond a tensor.
    """
    fresh, stepped = optimizer.state_dict()['state'], _after_a_step(optimizer)['state']
    parameters = [p for group in optimizer.param_groups for p in group['params']]
    for number in {**fresh, **saved['state']}:
        entries, shape = saved['state'].get(number, {}), parameters[number].shape
        if missing := fresh.get(number, {}).keys() - entries.keys():
            raise ValueError(f'{missing.pop()} of parameter {number} is missing')
        for name, value in entries.items():
            usual = stepped.get(number, {}).get(name)
            if isinstance(usual, list) and (not isinstance(value, list) or len(value) != len(usual)):
                raise ValueError(f'{name} of parameter {number}')
            pairs = zip(value, usual, strict=True) if isinstance(usual, list) else [(value, usual)]
            for part, usual_part in pairs:
                shapes = [usual_part.shape] if isinstance(usual_part, torch.Tensor) else [(), shape]
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
