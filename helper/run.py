"""A training run: its epochs, checkpoints and files, and its end after a signal."""
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from . import distributed
from .checkpoint import load_checkpoint, load_weights, save_checkpoint
from .cli import has_auto
from .device import Precision
from .errors import UserError
from .files import FolderLock
from .finite_check import FiniteCheck
from .loops import SPLITS, validate
from .meter import Meter
from .records import Records
from .resume import RunIdentity, check_best, describe_progress, finished_epoch, is_in, resume
from .run_folder import RunPaths, check_earlier_run, claim
from .signals import SAVE, Interrupted, StopSignals
from .state import LAST, PREVIOUS, STAGES, TrainingState, as_user_error


class Run:
    """Owns the folder of a run. A train script opens it, takes its epochs from it, and reports each epoch's results.

        with Run(...) as run:
            for epoch in run.epochs(optimizer, opt.epochs):
                ...
                run.end_epoch(rate, train, test)
            run.measure_test_set(test_loader)

    At the end of an epoch last.pth (for --resume) is written first, then the checkpoints and the JSON files.
    After a stop signal the current step is finished, the state is saved, also within an epoch, and the process exits.
    """

    def __init__(self, opt, paths: RunPaths, module: nn.Module, loader, properties: dict, precision: Precision,
                 checkpoint: Callable, data):
        """Lock the folder and load the weights of --resume into `module`, a distiller_zoo.TrainingTask before DDP.

        Sets opt.seed to the seed of a resumed run. properties: of the data and the nets, equal in a resumed run.
        checkpoint() returns the content of a checkpoint without epoch, best_acc and chosen_on. data: a dataset.Data.
        Raises UserError; nothing is written before all checks have passed.
        """
        if module.own_backward and precision.scaler.is_enabled():
            raise UserError('--amp float16: scales the gradients, but this method makes its own backward passes, which '
                            'do not; give --amp bfloat16')
        self.opt, self.paths, self.checkpoint = opt, paths, checkpoint
        self.parameters = sum(p.numel() for p in module.inference_net().parameters()) / 1e6      # in millions
        self.records = Records(opt, paths, {'Total params': self.parameters, **properties}, data, module.metrics)
        self.identity = RunIdentity(opt, properties, precision.dtype)
        self.training = TrainingState(module, loader, precision)
        self.signals, self.lock = StopSignals(), FolderLock(paths.folder)
        self.stage, self.epoch, self.step, self.finite = None, 0, 0, None
        self.saved_at = time.monotonic()
        distributed.check_alike(self.identity.values, 'all of them must read the same data and the same teacher')
        try:
            # The state of --resume until the first step begins; None afterwards and in a new run.
            self.resumed = resume(opt, paths, self.identity, self.training, self.lock) if opt.resume else None
            claim(self.lock, wait=opt.resume is not None)
            if self.resumed:
                opt.seed = self.resumed['seed']     # drawn by that run if not given
            is_moved = self.resumed is not None and not is_in(Path(self.resumed['path']), paths.folder)
            is_new = self.resumed is None or is_moved       # the folder has no file of this run
            self.has_saved = self.resumed is not None       # last.pth in the folder is of this run
            if is_new:
                check_earlier_run(paths, self.identity, module.has_first_stage, opt.overwrite)
            if is_moved and distributed.is_main():      # before anything else is written
                save_checkpoint(paths.folder / LAST, {k: v for k, v in self.resumed.items() if k != 'path'})
                (paths.folder / PREVIOUS).unlink(missing_ok=True)
            self.records.open(self.resumed['log'] if self.resumed else None, is_new)
            if self.resumed:        # process 0 reads the checkpoint, and may determine the best epoch again
                self.records.best = distributed.broadcast(lambda: check_best(self.resumed, paths, self.records))
        except BaseException:
            self._release()
            raise

    def __enter__(self):
        self.signals.install()
        return self

    def __exit__(self, kind, *_):
        # When one of several processes has ended, srun or torchrun sends the others a signal. They ignore it, because
        # they still have to name the lost process, or know their exit code already.
        self.signals.uninstall(ignore=kind is not None and distributed.world_size() > 1)
        try:
            if kind is None:
                self.records.finish()
        finally:
            self._release()

    def _release(self):
        self.records.close()
        self.lock.release()

    @property
    def advice(self) -> str:
        """Advice for the user when the loss diverges."""
        beta = getattr(self.opt, 'beta', 0)
        flags = '--init_learning_rate'
        if self.stage != 'init':
            of_beta = ', or give a number as --beta' if has_auto(beta) else ' or --beta' if beta else ''
            flags = f'--learning_rate{of_beta}'
        return f'lower {flags}' + (f'; the last good state is in {self.paths.folder / LAST}' if self.has_saved else '')

    def epochs(self, optimizer: torch.optim.Optimizer, last: int, stage: str = 'train') -> Iterator[int]:
        """Yield the remaining epochs, from 1, of a stage, 'init' or 'train'. Loads --resume into the optimiser."""
        self.stage, self.training.optimizer, self.epoch = stage, optimizer, 1
        state = self.resumed
        if state and STAGES.index(state['stage']) > STAGES.index(stage):
            return
        if state and state['stage'] == stage:
            with as_user_error(f'--resume {self.opt.resume}'):
                self.training.load_stage(state)
            self.epoch = state['epoch']
            if finished_epoch(state):
                self._write_files(finished_epoch(state))
        while self.epoch <= last:
            if stage == 'train' and self.records.is_out_of_patience:
                print(f'--patience {self.opt.patience}: the validation accuracy has not risen since epoch '
                      f'{self.records.best["epoch"]}, so the training ends after epoch {self.epoch - 1} of {last}',
                      flush=True)
                return
            if self.resumed is None and (number := self.signals.request_before_epoch()):
                self._stop(number, 0)       # no step of this stage may have been made yet
            self.epoch_start = time.perf_counter()
            yield self.epoch

    def begin_steps(self, meter: Meter, finite: FiniteCheck) -> int:
        """Start the steps of an epoch. Returns the number of batches that an interrupted run has made of it."""
        self.finite, self.step = finite, 0
        self.training.begin_epoch(self.epoch, meter)
        if self.resumed and self.resumed['step']:
            self.step = self.resumed['step']
            with as_user_error(f'--resume {self.opt.resume}'):
                self.training.load_step(self.resumed)
        self.resumed = None
        return self.step

    def end_step(self, batches: int = 1) -> None:
        """Count a step of `batches` batches. Save if --save_every is due; stop the run if a signal has arrived."""
        self.step += batches
        is_due = self.opt.save_every and time.monotonic() - self.saved_at > 60 * self.opt.save_every
        request = self.signals.request_after_step(is_due)
        if request:
            self.finite.flush()
            self.finite.check_weights(self.training.module)
            if request == SAVE:
                self.save(self.epoch, self.step)
            else:
                self._stop(request, self.step)

    def stop_if_asked(self) -> None:
        """Stop the run after a signal, between two batches of validation; only a run of one process.

        Several processes can have different numbers of batches, so they could not stop together.
        """
        if not self.signals.number or distributed.world_size() > 1:
            return
        if self.stage is None:
            raise Interrupted(128 + self.signals.number)        # outside the epochs there is nothing to save
        self._stop(self.signals.number, self.step)

    def end_init_epoch(self, train: dict) -> None:
        """Record and save an epoch of the first stage. train: result of train_epoch."""
        self.records.init_epoch(self.epoch, train)
        self.save(self.epoch + 1, 0)
        self.epoch += 1

    def end_epoch(self, rate: float, train: dict, test: dict, pictures: dict | None = None) -> None:
        """Record and save an epoch. train: result of train_epoch. test: result of validate on data.selection_split.

        pictures: result of TrainingTask.pictures.
        """
        seconds = time.perf_counter() - self.epoch_start
        self.records.epoch(self.epoch, rate, train, test, seconds, pictures or {})
        self.save(self.epoch + 1, 0)
        self.epoch += 1
        self._write_files(self.epoch - 1)

    def _write_files(self, epoch):
        """Write the JSON files, and the checkpoints of `epoch` that are due. last.pth must be written already."""
        if not distributed.is_main():
            return
        self.records.write(epoch)
        save_freq, best = getattr(self.opt, 'save_freq', 0), self.records.best
        content = {'epoch': epoch, f'best_{self.records.names[1]}': best[self.records.score],
                   'chosen_on': SPLITS[self.records.selection], **self.checkpoint()}
        if save_freq and epoch % save_freq == 0:
            save_checkpoint(self.paths.folder / f'ckpt_epoch_{epoch}.pth', content)
        if best.get('epoch') == epoch:
            save_checkpoint(self.paths.best, content)
            self.records.write_best()

    def measure_test_set(self, loader) -> None:
        """After all epochs of a run with a validation set, measure the last and the best weights on the test set."""
        if not self.records.is_tested:
            self.stage = None       # a stop signal has nothing to save
            net = self.training.module.inference_net()
            last = validate(loader, net, self)
            last_weights = {name: value.clone() for name, value in net.state_dict().items()}
            load_weights(net, distributed.broadcast(self._best_weights), str(self.paths.best))
            best = validate(loader, net, self)
            net.load_state_dict(last_weights)
            self.records.add_test(best, last)
            self.stage = 'train'
            self.save(self.epoch, 0)
        if distributed.is_main():
            self.records.write_test()

    def _best_weights(self):
        """Read the weights of the best epoch. Raises UserError if the file is of another epoch."""
        content, best = load_checkpoint(str(self.paths.best), ''), self.records.best
        if content.get('epoch') != best['epoch']:
            raise UserError(f'{self.paths.best}: holds another epoch than the best, {best["epoch"]}; the same command '
                            f'with --resume auto determines the best epoch again')
        return content['model']

    def save(self, epoch: int, step: int) -> None:
        """Write last.pth after `step` steps of `epoch`. The file before it becomes previous.pth."""
        self.saved_at = time.monotonic()
        training = self.training.collect(step)
        if not distributed.is_main():
            return
        state = {**self.checkpoint(),       # the network; `training` does not hold its weights again
                 'identity': self.identity.values, 'seed': self.opt.seed, 'stage': self.stage, 'epoch': epoch,
                 'step': step, 'epochs': self.opt.epochs, **training, 'log': self.records.state()}
        if not self.has_saved:      # previous.pth is of an earlier run
            (self.paths.folder / PREVIOUS).unlink(missing_ok=True)
        save_checkpoint(self.paths.folder / LAST, state, backup=PREVIOUS if self.has_saved else None)
        self.has_saved = True

    def _stop(self, number, step):
        """Save the state after this step, and exit."""
        self.save(self.epoch, step)
        progress = describe_progress({'stage': self.stage, 'epoch': self.epoch, 'step': step})
        print(f'{signal.Signals(number).name}: stopped {progress}, saved in {self.paths.folder / LAST}; the same '
              f'command with --resume auto continues', flush=True)
        raise Interrupted(128 + number)
