"""Runs that can be interrupted: last.pth in the output folder, and the signals that end a run well."""
import contextlib
import os
import secrets
import signal
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from . import distributed
from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .device import random_state, restore_random_state
from .errors import UserError, printable
from .files import write_atomically
from .launch import STOP_SIGNALS
from .meter import Meter
from .run_log import RunLog

LAST, PREVIOUS = 'last.pth', 'previous.pth'
STAGES = ('init', 'train')
SAVE = 1        # below every signal's number

# Options that say how a run is computed or where it lies, not what it computes.
FREE = {'epochs', 'resume', 'save_every', 'save_freq', 'num_workers', 'print_freq', 'save_dir', 'data_dir', 'gpu_id',
        'multiprocessing_distributed', 'dist_url', 'dist_timeout', 'skip_validation', 'evaluate', 'path_t', 'trial',
        'use_lmdb', 'channels_last', 'compile', 'fast', 'seed', 'filled_in', 'debug'}


class Interrupted(SystemExit):
    """A signal ended the run after its state was saved; the exit code is 128 + the signal."""


def data_facts(data) -> dict:
    """What a run must find unchanged of its data: the counts, and a checksum of the labels."""
    return {'training images': data.n_train, 'classes': data.num_classes,
            'labels (checksum)': zlib.crc32(data.labels.numpy().tobytes())}


def weights_checksum(net: nn.Module) -> int:
    """A checksum of all parameters and buffers."""
    crc = 0
    for value in net.state_dict().values():
        crc = zlib.crc32(value.detach().cpu().contiguous().numpy().tobytes(), crc)
    return crc


class Keeper:
    """Keeps last.pth, from which --resume goes on; use as a context manager around the training.

    last.pth comes first at an epoch's end, the files that people read follow from it. A step that is under way when a
    signal comes is finished; then the state is saved, in the middle of an epoch too, and the process exits.
    """

    def __init__(self, log: RunLog, opt, module: nn.Module, loader, facts: dict, precision):
        """Reads the state of --resume into `module` and `log`, and opens `log`. module: what is trained, as it is
        before DDP. facts: what must be the same in a resumed run beside the options. Raises UserError."""
        self.log, self.opt, self.module, self.loader, self.precision = log, opt, module, loader, precision
        self.identity = {**{k: v for k, v in vars(opt).items() if k not in FREE}, **facts, 'amp': str(precision.dtype)}
        self.agreement, self.signal = distributed.Agreement(), 0
        self.stage, self.epoch, self.step, self.optimizer, self.meter, self.watch = None, 0, 0, None, None, None
        self.saved_at, self.run = time.monotonic(), secrets.token_hex(8)
        distributed.check_alike(self.identity, 'all of them must read the same data and the same teacher')
        try:
            if opt.resume and (opt.resume == 'auto' or self._source().parent.resolve() == log.folder.resolve()):
                self._claim()       # a run that still writes there is let finish first
            self.state = self.read()
            if self.state:
                with self._as_user_error():
                    self.restore_module()
            self._claim()
            self.first = not self.state or self._source().parent.resolve() != log.folder.resolve()
            log.open(self.state['log'] if self.state else None, own=not self.first)
            if self.state:
                self._bring_best()
        except BaseException:
            log.release()
            raise

    # Reading

    def read(self) -> dict | None:
        """What --resume finds, the same in every process; None where a run starts anew."""
        if self.opt.resume is None:
            if distributed.is_main() and os.path.exists(self.log.folder / LAST):
                print(f'{self.log.folder} holds an earlier run, which this one replaces after its first epoch; '
                      f'--resume auto would go on with it')
            return None
        return distributed.broadcast(self._read if distributed.is_main() else None)

    def _read(self):
        path = self._source()
        before = path.with_name(PREVIOUS)
        if self.opt.resume == 'auto' and not os.path.exists(path) and not os.path.exists(before):
            print(f'nothing to resume in {self.log.folder}: starting anew')
            return None
        try:
            state = self._load(path)
        except UserError as error:
            if path.name != LAST or not os.path.exists(before):
                raise
            print(f'{printable(error)}: going on with {PREVIOUS}, the state before it')
            path = before
            state = self._load(path)
        with self._as_user_error():
            self._compare(state, path)
        print(f'going on from {path}: {_where(state)}')
        return {**state, 'folder': str(path.parent)}

    def _source(self):
        """The file of --resume."""
        path = self.log.folder if self.opt.resume == 'auto' else Path(self.opt.resume)
        return path / LAST if self.opt.resume == 'auto' or os.path.isdir(path) else path

    def _claim(self):
        """The folder for this run alone; with --resume, once another run there has ended. All processes wait."""
        wait, said = self.opt.resume is not None, False
        while not distributed.broadcast(self.log.claim if distributed.is_main() else None):
            if not wait:
                raise UserError(f'{self.log.folder}: another run is writing there; give another --trial, or --resume '
                                f'auto to go on after it')
            if not said:
                print(f'{self.log.folder}: another run is writing there; waiting for it to end', flush=True)
            said = True
            time.sleep(0.3)

    def _load(self, path):
        state = load_checkpoint(str(path), '--resume')
        with self._as_user_error():
            _check(state, f'--resume {path}')
            if state['step'] > len(self.loader) or (
                    state['stage'] == 'init' and not getattr(self.module, 'init_stage', False)):
                raise UserError(f'--resume {path}: its numbers make no sense for this run')
        return state

    @contextlib.contextmanager
    def _as_user_error(self):
        """Whatever a file that nobody vouches for makes the code raise, in one line."""
        try:
            yield
        except UserError:
            raise
        except Exception as error:
            raise UserError(f'--resume {self.opt.resume}: not the state of this run '
                            f'({" ".join(str(error).split())[:150]})') from error

    def _bring_best(self):
        """From another folder: the files of the best epoch so far, or where they are missing, start without one."""
        log, source = self.log, Path(self.state['folder'])
        if not distributed.is_main() or source.resolve() == log.folder.resolve() \
                or log.best.get('epoch') in (None, self.finished):
            return
        files = [*source.glob('*_best.pth'), source / 'test_best_metrics.json']
        if len(files) < 2 or not files[-1].exists():
            print(f'{source}: has no best checkpoint; the best is counted anew')
            log.best = {'test_acc': -1.0}
            return
        for file in files:
            content = file.read_bytes()
            write_atomically(log.folder / file.name, lambda out, content=content: out.write(content))

    def _compare(self, state, path):
        """Raises UserError that names what differs between this run and the saved one."""
        saved = state['identity']
        differ = [f'{name} {saved.get(name)}, now {value}' for name, value in self.identity.items()
                  if saved.get(name) != value]
        if 'seed' not in self.opt.filled_in and self.opt.seed != state['seed']:
            differ.append(f'seed {state["seed"]}, now {self.opt.seed}')
        if len(state['random']) != distributed.world_size() and getattr(self.module, 'drop_last', False):
            differ.append(f'{len(state["random"])} processes, now {distributed.world_size()}, and weights whose shapes '
                          f'depend on the batch of a process')
        if differ:
            raise UserError(f'--resume {path}: another run, with {"; ".join(differ)}; give what it was started with, '
                            f'or leave --resume out')
        done = state['epoch'] - (state['step'] == 0) if state['stage'] == 'train' else 0
        if self.opt.epochs < done:
            raise UserError(f'--epochs {self.opt.epochs}: {path} has come to epoch {done}; give at least {done}')

    def restore_module(self):
        """Weights and buffers. What is the optimiser's or a single process's waits until the epochs begin."""
        state, what = self.state, f'--resume {self.opt.resume}: does not fit this run'
        if state['stage'] == 'train' and getattr(self.module, 'initialising', False):
            self.module.finish_init()
        _check_optimizer(state['optimizer'], list(self.module.parameters()))
        _check_buffers(state['own'], self._own_buffers())
        load_weights(self.module, state['module'], what)
        self.opt.seed, self.run = state['seed'], state['run']
        if distributed.world_size() != len(state['random']):
            print(f'saved by {len(state["random"])} processes, going on with {distributed.world_size()}: '
                  f'the random numbers of the methods are drawn anew')

    def _own(self, parts):
        """What this process itself had saved in the middle of an epoch; nothing where there were as many others."""
        return parts[distributed.rank()] if len(parts) == distributed.world_size() else None

    def _own_buffers(self):
        """The buffers that differ between processes within an epoch."""
        norms = [f'{name}.{kind}' for name, m in self.module.named_modules()
                 if isinstance(m, nn.modules.batchnorm._BatchNorm) for kind in ('running_mean', 'running_var')]
        names = {*norms, *getattr(self.module, 'own_buffers', ())}
        return {name: value for name, value in self.module.named_buffers() if name in names}

    @property
    def finished(self) -> int:
        """The epoch that the resumed state ends, whose files may not have been written before the run did; else 0."""
        state = self.state
        return state['epoch'] - 1 if state and state['stage'] == 'train' and state['step'] == 0 else 0

    # Keeping

    def __enter__(self):
        self.before = {number: signal.signal(number, self.note) for number in STOP_SIGNALS}
        self.noted_at = 0.0
        return self

    def __exit__(self, *exception):
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.log.release()

    def note(self, number, _):
        """A signal has come. The second Ctrl-C a while later ends the run at once."""
        if self.signal == number == signal.SIGINT and time.monotonic() - self.noted_at > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.noted_at = number, time.monotonic()

    def epochs(self, stage: str, last: int, optimizer) -> Iterator[int]:
        """The epochs of a stage ('init' or 'train') that are still to be trained, counted from 1."""
        self.stage, self.optimizer, self.epoch = stage, optimizer, 1
        state = self.state
        if state and STAGES.index(state['stage']) > STAGES.index(stage):
            return iter(())
        if state and state['stage'] == stage:
            with self._as_user_error():
                self._restore_optimizer(state)
            self.epoch = state['epoch']
        return self._count(last)

    def _count(self, last):
        while self.epoch <= last:
            if self.state is None:
                self._stop_together()
            yield self.epoch

    def _restore_optimizer(self, state):
        # Rates and the like are those of the options; the file brings the momentum alone.
        groups = self.optimizer.state_dict()['param_groups']
        self.optimizer.load_state_dict({'state': state['optimizer']['state'], 'param_groups': groups})
        if self.precision.scaler.is_enabled():
            self.precision.scaler.load_state_dict(state['scaler'])
        if len(state['random']) == distributed.world_size():
            restore_random_state(state['random'][distributed.rank()])
        if state['loader'] is not None:
            self.loader.generator.set_state(state['loader'])

    def begin_epoch(self, meter, watch) -> int:
        """How many steps of this epoch an earlier run has made: `meter` and the loader go on after them."""
        self.meter, self.watch, self.step = meter, watch, 0
        watch.advice = self._advice()
        generator = self.loader.generator
        self.plan = generator.get_state() if generator is not None else None
        if self.state and self.state['step']:
            self.step = self.loader.skip = self.state['step']
            parts = self.state['own']
            own = self._own(parts)
            meters = [own] if own else parts if distributed.is_main() else []
            with self._as_user_error():
                meter.restore([part['meter'] for part in meters], next(self.module.parameters()).device)
                for name, value in self._own_buffers().items() if own else ():      # DDP has made them equal
                    if name in own['buffers']:
                        value.copy_(own['buffers'][name])
        self.state = None       # used up
        return self.step

    def _advice(self):
        flags = '--init_learning_rate' if self.stage == 'init' else \
            '--learning_rate or --beta' if hasattr(self.opt, 'beta') else '--learning_rate'
        return f'lower {flags}' + ('' if self.first else f'; the last good state is in {self.log.folder / LAST}')

    def step_done(self) -> None:
        """After every step: save when --save_every says so; end the run when a signal asked for it."""
        self.step += 1
        due = self.opt.save_every and time.monotonic() - self.saved_at > 60 * self.opt.save_every
        wanted = self.agreement.largest(self.signal or (SAVE if due else 0))
        if wanted:
            self.watch.settle()
            self.watch.check_weights(self.module)
            self.save(self.epoch, self.step)
            if wanted != SAVE:
                self.stop(wanted)

    def stop_if_asked(self) -> None:
        """Between two batches of the validation. Several processes may have different numbers of them: they go on."""
        if not self.signal or distributed.world_size() > 1:
            return
        if self.stage is None:
            raise Interrupted(128 + self.signal)        # before the first epoch there is nothing new to save
        self.save(self.epoch, self.step)
        self.stop(self.signal)

    def end_epoch(self) -> None:
        """The epoch is trained, validated and noted in the log: save that."""
        self.save(self.epoch + 1, 0)
        self.epoch += 1

    def _stop_together(self):
        number = max(distributed.gather(max(self.signal, self.agreement.settle())))
        if number > SAVE:
            self.save(self.epoch, 0)        # it may be the first of this stage
            self.stop(number)

    def stop(self, number):
        """The state is saved: leave."""
        print(f'{signal.Signals(number).name}: stopped {_where({"stage": self.stage, **self.place})}, saved in '
              f'{self.log.folder / LAST}; the same command with --resume auto goes on', flush=True)
        raise Interrupted(128 + number)

    def save(self, epoch: int, step: int) -> None:
        """Write last.pth: `step` steps of `epoch` are done. The one before becomes previous.pth."""
        self.place = {'epoch': epoch, 'step': step}
        self.saved_at = time.monotonic()
        random = distributed.gather(random_state())
        buffers = {name: value.cpu() for name, value in self._own_buffers().items()} \
            if distributed.world_size() > 1 else {}
        own = distributed.gather({'meter': self.meter.state(), 'buffers': buffers}) if step else []
        if not distributed.is_main():
            return
        generator = self.loader.generator
        now = generator.get_state() if generator is not None else None
        state = {
            'identity': self.identity, 'run': self.run, 'seed': self.opt.seed, 'stage': self.stage, **self.place,
            'module': self.module.state_dict(), 'optimizer': self.optimizer.state_dict(),
            'scaler': self.precision.scaler.state_dict(), 'random': random, 'loader': self.plan if step else now,
            'own': own, 'log': self.log.state()}
        if self.first:      # what an earlier run has left is not the state before this one
            (self.log.folder / PREVIOUS).unlink(missing_ok=True)
        save_checkpoint(self.log.folder / LAST, state, keep=None if self.first else PREVIOUS)
        self.first = False


KINDS = {'identity': dict, 'seed': int, 'stage': str, 'epoch': int, 'step': int, 'module': dict, 'optimizer': dict,
         'scaler': dict, 'random': list, 'loader': (torch.Tensor, type(None)), 'own': list, 'log': dict, 'run': str}


def _check(state, what):
    """Raises UserError unless `state` has the parts of last.pth."""
    for name, kind in KINDS.items():
        if not isinstance(state.get(name), kind):
            raise UserError(f'{what}: is no {LAST} of a run ("{name}" is missing or odd); give the {LAST} that a run '
                            f'keeps in its folder')
    if state['stage'] not in STAGES or state['epoch'] < 1 or state['step'] < 0 or \
            (state['step'] and len(state['own']) != len(state['random'])) or not RunLog.fits(state['log']):
        raise UserError(f'{what}: its numbers make no sense; give the {LAST} that a run keeps in its folder')
    for name, value in state['module'].items():
        if isinstance(value, torch.Tensor) and value.layout == torch.strided and not value.isfinite().all():
            raise UserError(f'{what}: {name} is not finite')
    _check_random(state)
    Meter().restore([part['meter'] for part in state['own']], torch.device('cpu'))
    if state['scaler']:
        if not all(isinstance(value, (int, float)) for value in state['scaler'].values()):
            raise ValueError('scaler')
        torch.amp.GradScaler('cpu').load_state_dict(state['scaler'])


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


def _check_buffers(parts, own):
    """Raises ValueError unless what each process has saved of its `own` buffers is finite and has their shapes."""
    for name, value in (item for part in parts for item in part['buffers'].items()):
        if name in own and (value.shape != own[name].shape or not value.isfinite().all()):
            raise ValueError(f'{name} of a process')


def _check_optimizer(optimizer, parameters):
    """Raises ValueError unless what is kept for a parameter is a finite momentum of its shape."""
    for number, kept in optimizer['state'].items():
        if not isinstance(kept, dict):
            raise ValueError(f'parameter {number} has no state')
        value = kept['momentum_buffer'] if kept else None
        if value is not None and (value.layout != torch.strided or value.shape != parameters[number].shape
                                  or not value.is_floating_point() or not value.isfinite().all()):
            raise ValueError(f'momentum_buffer of parameter {number} is {value.dtype} {tuple(value.shape)}')


def _where(state):
    stage = 'of the first stage ' if state['stage'] == 'init' else ''
    return f'after step {state["step"]} of epoch {state["epoch"]} {stage}'.rstrip() if state['step'] else \
        f'after epoch {state["epoch"] - 1} {stage}'.rstrip()
