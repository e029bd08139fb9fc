"""A run, from its folder to its last epoch: what is trained, saved, resumed, recorded, and how signals end it."""
import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from . import distributed
from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .cli import comma_list, values
from .device import Precision, random_state, restore_random_state
from .errors import UserError, printable
from .files import Lock, folder_name, make_folder, read_json, run_folder, write_atomically
from .launch import STOP_SIGNALS
from .meter import FiniteCheck, Meter
from .records import Records
from .state import (
    LAST,
    NEWER,
    PREVIOUS,
    STAGES,
    as_user_error,
    check_buffers,
    check_optimizer,
    load_optimizer,
    load_state,
)

SAVE = 1        # in the place of a signal's number, and below all of them


class Interrupted(SystemExit):
    """A signal ended the run after its state was saved; the exit code is 128 + the signal."""


class AnotherRun(UserError):
    """--resume was given with options, or data, that are not those of the saved run."""


@dataclass
class Place:
    """Where a script's runs lie: {save_dir}/{models}/{name} and, of TensorBoard, {save_dir}/{events}/{name}."""

    models: str
    events: str
    name: str
    best_file: str
    seconds_per_unit: float     # of 'Total time' in parameters.json

    @classmethod
    def of_teacher(cls, opt):
        """Of a run of train_teacher.py with these options."""
        net = folder_name(opt.model)
        name = f'{net}_{folder_name(opt.dataset)}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}'
        return cls('models', 'tensorboard', name + _dali(opt), f'{net}_best.pth', seconds_per_unit=1)

    @classmethod
    def of_student(cls, opt):
        """Of a run of train_student.py with these options; opt.model_t names the teacher's net."""
        net = folder_name(opt.model_s)
        name = (f'S:{net}_T:{folder_name(opt.model_t)}_{folder_name(opt.dataset)}_{opt.distill}'
                f'_r:{opt.gamma}_a:{opt.alpha}_b:{comma_list(opt.beta)}_{opt.trial}')
        return cls('student_model', 'student_tensorboards', name + _dali(opt), f'{net}_best.pth',
                   seconds_per_unit=3600)

    def folder(self, opt) -> Path:
        return run_folder(opt.save_dir, self.models, self.name)

    def best_path(self, opt) -> Path:
        """The checkpoint of the best epoch."""
        return self.folder(opt) / self.best_file


class Run:
    """Owns the folder of a run. A train script opens it, takes its epochs from it, and tells it what happened.

        with Run(...) as run:
            for epoch in run.epochs(optimizer, opt.epochs):
                ...
                run.end_epoch(rate, train, test)

    last.pth, from which --resume continues, is written first at the end of an epoch; the files that people read follow
    from it. When a signal comes, the current step is finished and the state is saved, in the middle of an epoch too;
    then the process exits.
    """

    def __init__(self, opt, place: Place, module: nn.Module, loader, facts: dict, precision: Precision,
                 checkpoint: Callable, split: dict | None = None):
        """Claims the folder and reads the state of --resume into `module`, a distiller_zoo.Vanilla before DDP.

        facts: must be the same in a resumed run, beside the options. checkpoint() returns the content of the
        checkpoints beside epoch and best_acc. split: the images of each split of --split, for split.json. Raises
        UserError; nothing is written before everything is checked.
        """
        if module.own_backward and precision.scaler.is_enabled():
            raise UserError('--amp float16: scales the gradients, which does not go with the backward passes of this '
                            'method; give --amp bfloat16')
        self.opt, self.place, self.module, self.loader, self.precision = opt, place, module, loader, precision
        self.checkpoint = checkpoint
        self.folder = place.folder(opt)
        self.parameters = sum(p.numel() for p in module.inference_net().parameters()) / 1e6      # in millions
        self.records = Records(opt, self.folder, run_folder(opt.save_dir, place.events, place.name),
                               {'Total params': self.parameters, **facts}, place.seconds_per_unit, split)
        self.lock = Lock(self.folder)
        fixed = {name: value for name, value in values(opt).items() if name not in opt.flags.may_differ}
        self.identity = {**fixed, **facts, 'amp': str(precision.dtype)}
        self.agreement, self.signal = distributed.Agreement(), 0
        self.stage, self.epoch, self.step, self.optimizer, self.meter, self.finite = None, 0, 0, None, None, None
        self.saved_at = time.monotonic()
        distributed.check_alike(self.identity, 'all of them must read the same data and the same teacher')
        try:
            if not opt.resume or self._is_own(self._source()):
                self._claim()       # with --resume it waits for a run that still writes there
            self.state = distributed.broadcast(self._read if distributed.is_main() else None) if opt.resume else None
            if self.state:
                with as_user_error(f'--resume {opt.resume}'):
                    self._restore_module()
            self._claim()
            moved = self.state is not None and not self._is_own(Path(self.state['path']))
            self.first = self.state is None     # last.pth of this run is not in the folder yet
            if self.first or moved:
                self._spare_earlier_run()
            if moved and distributed.is_main():
                self._move()
            self.records.open(self.state['log'] if self.state else None, new=self.first or moved)
            if self.state and distributed.is_main():
                self._check_best(moved)
        except BaseException:
            self._release()
            raise

    def __enter__(self):
        self.before = {number: signal.signal(number, self.on_signal) for number in STOP_SIGNALS}
        self.signalled_at = 0.0
        return self

    def __exit__(self, kind, *_):
        # When the first process of several has stopped, srun ends the others; what they return is decided already.
        leaving = kind is Interrupted and distributed.world_size() > 1
        for number, handler in self.before.items():
            signal.signal(number, signal.SIG_IGN if leaving else handler)
        try:
            if kind is None:
                self.records.finish()
        finally:
            self._release()

    def _release(self):
        self.records.close()
        self.lock.release()

    # Reading the state of --resume

    def _read(self) -> dict | None:
        """The state of --resume; None if the run starts anew."""
        path = self._source()
        before = path.with_name(PREVIOUS)
        if self.opt.resume == 'auto' and not os.path.exists(path) and not os.path.exists(before):
            print(f'nothing to resume in {self.folder}: starting anew')
            return None
        try:
            state = load_state(path, self.module, self.loader)
        except UserError as error:
            if path.name != LAST or not os.path.exists(before):
                raise
            print(f'{printable(error)}: resuming from {PREVIOUS}, the state before it')
            path = before
            state = load_state(path, self.module, self.loader)
        try:
            with as_user_error(f'--resume {self.opt.resume}'):
                self._compare(state, path)
        except AnotherRun:
            if self.opt.overwrite and self._is_own(path):
                return None
            raise
        print(f'resuming from {path}: {_where(state)}')
        return {**state, 'path': str(path)}

    def _source(self):
        """The file of --resume."""
        path = self.folder if self.opt.resume == 'auto' else Path(self.opt.resume)
        return path / LAST if self.opt.resume == 'auto' or os.path.isdir(path) else path

    def _is_own(self, path):
        return path.parent.resolve() == self.folder.resolve()

    def _claim(self):
        """Make the folder, for this run alone; with --resume, once another run there has ended. All processes wait."""
        wait, said = self.opt.resume is not None, False
        while not distributed.broadcast(self._take if distributed.is_main() else None):
            if not wait:
                raise UserError(f'{self.folder}: another run is writing there; give another --trial, or --resume '
                                f'auto to wait and continue from it')
            if not said:
                print(f'{self.folder}: another run is writing there; waiting for it to end', flush=True)
            said = True
            time.sleep(0.3)

    def _take(self):
        make_folder(self.folder)
        return self.lock.take()

    def _differences(self, saved: dict, seed) -> list[str]:
        """The differences between this run and a saved one with this identity and seed, as texts.

        An option that did not exist when the state was saved had its default. A fact that an old state lacks is not
        compared.
        """
        saved = {**self.opt.flags.defaults, **{name: self.identity.get(name) for name in NEWER}, **saved}
        differ = [f'{name} {saved.get(name)}, now {value}' for name, value in self.identity.items()
                  if saved.get(name) != value]
        if 'seed' not in self.opt.flags.filled_in and self.opt.seed != seed:
            differ.append(f'seed {seed}, now {self.opt.seed}')
        return differ

    def _compare(self, state, path):
        """Raises AnotherRun that names what differs between this run and the saved one."""
        differ = self._differences(state['identity'], state['seed'])
        if len(state['random']) != distributed.world_size() and self.module.drop_last:
            differ.append(f'{_processes(len(state["random"]))}, now {distributed.world_size()}, and weights whose '
                          f'shapes depend on the batch of a process')
        anew = 'another --trial, for a run beside it' if self.opt.resume == 'auto' else \
            'another --trial without --resume, for a run beside it'
        if differ:
            raise AnotherRun(f'--resume {path}: another run, with {"; ".join(differ)}; give what it was started with, '
                             f'or {anew}')
        epochs = state.get('epochs', self.opt.epochs)
        if (self.module.scheduled_over_epochs or self.opt.sched != 'step') and epochs != self.opt.epochs:
            raise AnotherRun(f'--epochs {self.opt.epochs}: {path} follows a schedule over {epochs} epochs, which '
                             f'cannot be changed during a run; give --epochs {epochs}, or {anew}')
        done = state['epoch'] - (state['step'] == 0) if state['stage'] == 'train' else 0
        if self.opt.epochs < done:
            raise AnotherRun(f'--epochs {self.opt.epochs}: {path} has reached epoch {done}; give at least {done}, or '
                             f'{anew}')

    def _spare_earlier_run(self):
        """Raises UserError in all processes if this run would replace one of at least an epoch without --overwrite."""
        found = distributed.broadcast(self._earlier_run if distributed.is_main() else None)
        if found and not self.opt.overwrite:
            raise UserError(f'{self.folder} {"; ".join(found)}')
        if found:
            print(f'{self.folder} {found[0]}; --overwrite: this run replaces it after its first epoch')

    def _earlier_run(self) -> tuple[str, str] | None:
        """(what the folder holds, advice); None if no run there has finished an epoch."""
        there = {name for name in (LAST, PREVIOUS, 'history.json', 'test_best_metrics.json', self.place.best_file)
                 if os.path.exists(self.folder / name)}
        if not there:
            return None
        saved = seed = None
        with contextlib.suppress(UserError):
            state = load_checkpoint(str(self.folder / LAST), '')
            is_first_stage = state.get('stage') == 'init' or not getattr(self.module, 'init_stage', False)
            if is_first_stage and state.get('epoch') == 1 and there <= {LAST, PREVIOUS}:
                print(f'{self.folder} holds a run that was stopped in its first epoch; this one replaces it')
                return None
            saved, seed = state.get('identity'), state.get('seed')
        if not isinstance(saved, dict):
            with contextlib.suppress(UserError, TypeError):     # damaged, or no dictionary
                saved = {**read_json(self.folder / 'parameters.json', ''), 'amp': self.identity['amp']}
                seed = saved.get('seed')
        differ = self._differences(saved, seed) if isinstance(saved, dict) else ['options that cannot be read']
        if differ:
            return f'holds another run, with {"; ".join(differ)}', 'give another --trial, or --overwrite to replace it'
        if there & {LAST, PREVIOUS}:
            return 'holds this run already', \
                '--resume auto continues it, another --trial repeats it beside it, --overwrite replaces it'
        return f'holds this run, but not its {LAST}', 'give another --trial, or --overwrite to train it again'

    def _restore_module(self):
        """Load weights and buffers, and check the rest, which epochs() and begin_steps() load later."""
        state = self.state
        if state['stage'] == 'train' and self.module.initialising:
            self.module.finish_init()
        check_optimizer(self.module.make_optimizer(self.opt.learning_rate, self.opt), state['optimizer'])
        check_buffers(state['own'], self._own_buffers())
        load_weights(self.module, state['module'], f'--resume {self.opt.resume}: does not fit this run')
        self.opt.seed = state['seed']
        if distributed.world_size() != len(state['random']):
            print(f'saved by {_processes(len(state["random"]))}, resumed by {distributed.world_size()}: '
                  f'the random numbers of the methods are drawn anew')

    def _move(self):
        """The state comes from another folder: it is the last.pth of this one before anything else is written here."""
        save_checkpoint(self.folder / LAST, {name: value for name, value in self.state.items() if name != 'path'})
        (self.folder / PREVIOUS).unlink(missing_ok=True)

    def _check_best(self, moved):
        """See that the checkpoint of the best epoch so far is there, and if moved bring it; the log has its figures.

        Where it is lost the figures stay as they are, but a state that came without it counts the best anew.
        """
        source, best, last = Path(self.state['path']).parent, self.records.best, self._finished()
        if best.get('epoch') in (None, last):       # none yet, or this run writes it in a moment
            return
        file, whole = source / self.place.best_file, False
        with contextlib.suppress(UserError):
            found = load_checkpoint(str(file), '')
            whole = (found.get('epoch'), found.get('best_acc')) == (best['epoch'], best['test_acc'])
        if moved and not whole:
            print(f'{source}: does not hold the best checkpoint of epoch {best["epoch"]}; the best is counted anew')
            self.records.best = self.records.last if last else {'test_acc': -1.0}
            return
        if moved:
            content = file.read_bytes()
            write_atomically(self.folder / file.name, lambda out: out.write(content))
        if not whole:
            print(f'{file}: the weights of the best epoch, {best["epoch"]}, are lost; its figures stay, and the next '
                  f'epoch that is better is saved there')
        self.records.write_best()

    def _finished(self):
        """The epoch that the resumed state ends, whose files the run may not have written any more; else 0."""
        state = self.state
        return state['epoch'] - 1 if state['stage'] == 'train' and state['step'] == 0 else 0

    @property
    def starts_anew(self) -> bool:
        """Whether nothing is continued; to be asked before the first epoch."""
        return self.state is None

    # The epochs

    def epochs(self, optimizer: torch.optim.Optimizer, last: int, stage: str = 'train') -> Iterator[int]:
        """The epochs of a stage ('init' or 'train') that are still to be trained, counted from 1.

        The optimiser gets the state of --resume here.
        """
        self.stage, self.optimizer, self.epoch = stage, optimizer, 1
        state = self.state
        if state and STAGES.index(state['stage']) > STAGES.index(stage):
            return iter(())
        if state and state['stage'] == stage:
            with as_user_error(f'--resume {self.opt.resume}'):
                load_optimizer(optimizer, state['optimizer'])
                if self.precision.scaler.is_enabled():
                    self.precision.scaler.load_state_dict(state['scaler'])
                if len(state['random']) == distributed.world_size():
                    restore_random_state(state['random'][distributed.rank()])
                if state['loader'] is not None:
                    self.loader.order.generator.set_state(state['loader'])
            self.epoch = state['epoch']
            if self._finished():
                self._write(self._finished())
        return self._count(last)

    def _count(self, last):
        while self.epoch <= last:
            if self.state is None:
                self._stop_together()
            self.epoch_start = time.perf_counter()
            yield self.epoch

    def begin_steps(self, meter: Meter, finite: FiniteCheck) -> int:
        """Called by the loop before an epoch's steps. Returns how many of them were made before an interruption: the
        meter and the loader continue after them."""
        self.meter, self.finite, self.step = meter, finite, 0
        generator = self.loader.order.generator
        self.plan = generator.get_state() if generator is not None else None
        if self.state and self.state['step']:
            self.step = self.loader.order.first_batch = self.state['step']
            parts = self.state['own']
            # Each process continues with its own part; with another number of processes, the first with their sum.
            own = parts[distributed.rank()] if len(parts) == distributed.world_size() else None
            meters = [own] if own else parts if distributed.is_main() else []
            with as_user_error(f'--resume {self.opt.resume}'):
                meter.restore([part['meter'] for part in meters], next(self.module.parameters()).device)
                for name, value in self._own_buffers().items() if own else ():      # after DDP has made them equal
                    if name in own['buffers']:
                        value.copy_(own['buffers'][name])
        self.state = None       # used up
        return self.step

    def end_step(self, batches: int = 1) -> None:
        """Called by the loop after each step, made of so many batches: save when --save_every says so, end the run when
        a signal has come."""
        self.step += batches
        due = self.opt.save_every and time.monotonic() - self.saved_at > 60 * self.opt.save_every
        wanted = self.agreement.largest(self.signal or (SAVE if due else 0))
        if wanted:
            self.finite.flush()
            self.finite.check_weights(self.module)
            self.save(self.epoch, self.step)
            if wanted != SAVE:
                self.stop(wanted)

    def end_init_epoch(self, train: dict) -> None:
        """An epoch of the first stage is over. train: what train_epoch returned."""
        self.records.init_epoch(self.epoch, train)
        self._next_epoch()

    def end_epoch(self, rate: float, train: dict, test: dict, pictures: dict | None = None) -> None:
        """An epoch is trained, at learning rate `rate`, and validated: record and save it.

        train, test: what train_epoch and validate returned. pictures: of the module.
        """
        seconds = time.perf_counter() - self.epoch_start
        self.records.epoch(self.epoch, rate, train, test, seconds, pictures or {})
        self._next_epoch()
        self._write(self.epoch - 1)

    def _next_epoch(self):
        self.save(self.epoch + 1, 0)
        self.epoch += 1

    def _write(self, epoch):
        """The files that people read, up to `epoch`, which last.pth holds already."""
        if not distributed.is_main():
            return
        self.records.write(epoch)
        save_freq, best = getattr(self.opt, 'save_freq', 0), self.records.best
        content = {'epoch': epoch, 'best_acc': best['test_acc'], **self.checkpoint()}
        if save_freq and epoch % save_freq == 0:
            save_checkpoint(self.folder / f'ckpt_epoch_{epoch}.pth', content)
        if best.get('epoch') == epoch:
            save_checkpoint(self.place.best_path(self.opt), content)
            self.records.write_best()

    # Saving and stopping

    def on_signal(self, number, _) -> None:
        """The handler of all stop signals: the run ends after the current step. A second Ctrl-C ends it at once."""
        if self.signal == number == signal.SIGINT and time.monotonic() - self.signalled_at > 1:
            raise KeyboardInterrupt
        if not self.signal:
            self.signal, self.signalled_at = number, time.monotonic()

    @property
    def advice(self) -> str:
        """What the user can do when the loss diverges."""
        flags = '--init_learning_rate' if self.stage == 'init' else \
            '--learning_rate or --beta' if getattr(self.opt, 'beta', 0) else '--learning_rate'
        return f'lower {flags}' + ('' if self.first else f'; the last good state is in {self.folder / LAST}')

    def stop_if_asked(self) -> None:
        """Between two batches of the validation. Not with several processes, whose numbers of batches can differ."""
        if not self.signal or distributed.world_size() > 1:
            return
        if self.stage is None:
            raise Interrupted(128 + self.signal)        # before the first epoch there is nothing new to save
        self.save(self.epoch, self.step)
        self.stop(self.signal)

    def _stop_together(self):
        number = max(distributed.gather(max(self.signal, self.agreement.settle())))
        if number > SAVE:
            self.save(self.epoch, 0)        # no step of this stage may have been made yet
            self.stop(number)

    def stop(self, number: int) -> None:
        """The state is saved: leave."""
        print(f'{signal.Signals(number).name}: stopped {_where({"stage": self.stage, **self.saved})}, saved in '
              f'{self.folder / LAST}; the same command with --resume auto continues', flush=True)
        raise Interrupted(128 + number)

    def _own_buffers(self):
        """The buffers that differ between processes within an epoch."""
        norms = [f'{name}.{kind}' for name, m in self.module.named_modules()
                 if isinstance(m, nn.modules.batchnorm._BatchNorm) for kind in ('running_mean', 'running_var')]
        names = {*norms, *self.module.own_buffers}
        return {name: value for name, value in self.module.named_buffers() if name in names}

    def save(self, epoch: int, step: int) -> None:
        """Write last.pth: `step` steps of `epoch` are done. The file before it becomes previous.pth."""
        self.saved = {'epoch': epoch, 'step': step}
        self.saved_at = time.monotonic()
        random = distributed.gather(random_state())
        buffers = {name: value.cpu() for name, value in self._own_buffers().items()} \
            if distributed.world_size() > 1 else {}
        own = distributed.gather({'meter': self.meter.state(), 'buffers': buffers}) if step else []
        if not distributed.is_main():
            return
        generator = self.loader.order.generator
        now = generator.get_state() if generator is not None else None
        state = {
            **self.checkpoint(),        # the network of this step; these weights are in the file once
            'identity': self.identity, 'seed': self.opt.seed, 'stage': self.stage, **self.saved,
            'epochs': self.opt.epochs, 'module': self.module.state_dict(), 'optimizer': self.optimizer.state_dict(),
            'scaler': self.precision.scaler.state_dict(), 'random': random, 'loader': self.plan if step else now,
            'own': own, 'log': self.records.state()}
        if self.first:      # what an earlier run has left is not the state before this one
            (self.folder / PREVIOUS).unlink(missing_ok=True)
        save_checkpoint(self.folder / LAST, state, keep=None if self.first else PREVIOUS)
        self.first = False


def _dali(opt):
    return f'_dali:{opt.dali}' if opt.dali else ''


def _processes(count):
    return '1 process' if count == 1 else f'{count} processes'


def _where(state):
    stage = 'of the first stage ' if state['stage'] == 'init' else ''
    return f'after step {state["step"]} of epoch {state["epoch"]} {stage}'.rstrip() if state['step'] else \
        f'after epoch {state["epoch"] - 1} {stage}'.rstrip()
