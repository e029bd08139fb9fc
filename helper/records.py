"""What a run reports beside its checkpoints: JSON, TensorBoard events, Weights & Biases, a line for each epoch."""
import contextlib
import importlib.util
import json
import math
import re
import secrets
import threading
import time
from pathlib import Path

import torch

from .cli import values
from .device import surroundings
from .distributed import is_main, world_size
from .errors import UserError, reason
from .files import make_folder, write_json

SPLIT = 'split.json'
METRICS = ('test_loss', 'test_acc', 'test_acc_top5')


class Records:
    """parameters.json, history.json, test_best_metrics.json, test_last_metrics.json, TensorBoard events and --wandb.

    Also keeps the best accuracy. With several processes only the first one writes.
    """

    def __init__(self, opt, paths, facts: dict, split: dict | None = None):
        """paths: a RunPaths. facts: for parameters.json, beside the options. split: the images of each split."""
        self.opt, self.folder, self.events, self.facts, self.split = opt, paths.folder, paths.events, facts, split
        self.unit = paths.seconds_per_unit
        self.history: list[dict] = []
        self.best: dict = {'test_acc': -1.0}
        self.start, self.writer = time.time(), None
        self.wandb, self.wandb_id, self.ended = None, secrets.token_hex(4), 0   # ended: epochs, of all stages
        self.earlier: list[Path] = []       # files of an earlier run in the folder, removed at the first write

    def open(self, state: dict | None, new: bool) -> None:
        """Begin, or continue from what state() returned. new: the run has written nothing into this folder so far."""
        if state:
            self.history, self.best = list(state['history']), dict(state['best'])
            self.start = time.time() - state['seconds']
            identity, self.ended = state.get('wandb', (self.wandb_id, len(self.history)))
            self.wandb_id = self.wandb_id if new else identity
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter
        make_folder(self.events)
        if self.opt.wandb:
            self.wandb = Wandb(self.opt, self.wandb_id, self.folder.name, self._parameters())
        done = 0 if new else len(self.history)
        self.earlier = [file for file in self.folder.glob('ckpt_epoch_*.pth')
                        if (number := re.search(r'_(\d+)\.pth$', file.name)) and int(number[1]) > done]
        self.earlier += self.events.glob('events.out.tfevents.*') if new else []
        self.earlier += [self.folder / SPLIT] if new and not self.split else []
        threading.excepthook = _ignore_failed_writes
        # Events that an interrupted run wrote after its last state are hidden, not shown twice.
        with self._events():
            self.writer = SummaryWriter(str(self.events), purge_step=len(self.history) + 1 if state else None)
        if self.history:
            self._write_facts()
            write_json(self.folder / 'history.json', self.history)

    def close(self) -> None:
        """Close TensorBoard's file and end the reports to Weights & Biases."""
        if self.writer:
            with contextlib.suppress(OSError):
                self.writer.close()
        if self.wandb:
            self.wandb.finish()

    def state(self) -> dict:
        """What a resumed run needs, for last.pth."""
        return {'history': self.history, 'best': self.best, 'seconds': time.time() - self.start,
                'wandb': [self.wandb_id, self.ended]}

    @staticmethod
    def fits(state: dict) -> bool:
        """Whether a value from an untrusted file is one that state() can return."""
        history, best, seconds = (state.get(name) for name in ('history', 'best', 'seconds'))
        try:
            json.dumps(state)
        except (TypeError, ValueError):
            return False
        return (isinstance(history, list)
                and all(isinstance(epoch, dict) and isinstance(epoch.get('test_acc'), float) for epoch in history)
                and isinstance(best, dict) and isinstance(best.get('test_acc'), float)
                and math.isfinite(best['test_acc']) and (best['test_acc'] < 0 or isinstance(best.get('epoch'), int))
                and isinstance(seconds, float) and math.isfinite(seconds)
                and ('wandb' not in state or _fits_wandb(state['wandb'])))

    def init_epoch(self, epoch: int, train: dict) -> None:
        """An epoch of a method's first stage is over."""
        self.ended += 1
        if is_main():
            with self._events():
                self.writer.add_scalar('init_loss', train['loss'], epoch)
            if self.wandb:
                self.wandb.log({'init_loss': train['loss']}, self.ended)
            print(f'first stage, epoch {epoch}: loss {train["loss"]:.4f}, {train["images_per_second"]:.0f} images/s',
                  flush=True)

    def epoch(self, epoch: int, rate: float, train: dict, test: dict, seconds: float, pictures: dict) -> None:
        """An epoch is over: add it to the history, to TensorBoard and to the terminal, and see whether it is the best.

        No file but TensorBoard's is written yet.
        """
        metrics = {name: test[name] for name in METRICS}
        scalars = {'train_acc': train['top1'], 'train_loss': train['loss'], **metrics, 'lr': rate}
        pictures = {name: torch.as_tensor(matrix).tolist() for name, matrix in pictures.items()}
        entry = {'epoch': epoch, **scalars, **test, 'train': train, 'seconds': seconds}
        if taken := entry.keys() & pictures.keys():
            raise ValueError(f'pictures: {", ".join(taken)} is the name of something else in history.json')
        self.history.append({**entry, **pictures})
        self.ended += 1
        is_best = test['test_acc'] > self.best['test_acc']
        if is_best:
            self.best = {**metrics, 'epoch': epoch}
        if not is_main():
            return
        pixels = {tag: torch.tensor(matrix).repeat_interleave(32, 0).repeat_interleave(32, 1).clamp(0, 1)
                  for tag, matrix in pictures.items()}
        with self._events():
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, epoch)
            for tag, image in pixels.items():
                self.writer.add_image(tag, image, epoch, dataformats='HW')
            self.writer.flush()
        if self.wandb:
            self.wandb.log({'epoch': epoch, **scalars}, self.ended, pixels)
        print(f'epoch {epoch}: train loss {train["loss"]:.4f}, top-1 {train["top1"]:.2f} | '
              f'test loss {test["test_loss"]:.4f}, top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f} | '
              f'lr {rate:g}, {train["images_per_second"]:.0f} images/s, {seconds:.1f} s'
              f'{"  *best*" if is_best else ""}', flush=True)

    @property
    def last(self) -> dict:
        """The metrics of the last epoch."""
        return {name: self.history[-1].get(name) for name in (*METRICS, 'epoch')}

    def write(self, epoch: int) -> None:
        """Bring the JSON files up to `epoch`, the last one. The first call removes what an earlier run has left."""
        while self.earlier:
            self.earlier.pop().unlink(missing_ok=True)
        if epoch == 1:
            self._write_facts()
        write_json(self.folder / 'history.json', self.history)
        write_json(self.folder / 'test_last_metrics.json', self.last)

    def write_best(self) -> None:
        write_json(self.folder / 'test_best_metrics.json', self.best)

    def finish(self) -> None:
        """All epochs are over: write the total time, print the best and the last accuracy."""
        if is_main():
            self._write_parameters(**{'Total time': (time.time() - self.start) / self.unit})
            print(f'best top-1 {self.best["test_acc"]:.2f} at epoch {self.best["epoch"]}, last '
                  f'{self.last["test_acc"]:.2f}, saved in {self.folder}')
            for epoch in sorted({self.best['epoch'], self.last['epoch']}):
                warn_of_one_class(f'the network of epoch {epoch}', self.history[epoch - 1])

    def _write_facts(self):
        self._write_parameters()
        if self.split:
            write_json(self.folder / SPLIT, self.split)

    def _write_parameters(self, **more):
        write_json(self.folder / 'parameters.json', {**self._parameters(), **more})

    def _parameters(self):
        return {**values(self.opt), **self.facts, 'processes': world_size(), **surroundings()}

    @contextlib.contextmanager
    def _events(self):
        try:
            yield
        except OSError as error:
            raise UserError(f'{self.events}: cannot be written ({error.strerror}); the checkpoints are whole'
                            ) from error


class Wandb:
    """A run at Weights & Biases. A failure at its start is a UserError; after a later one training goes on without."""

    def __init__(self, opt, identity: str, name: str, config: dict):
        """identity: that of the parts of a run that was interrupted."""
        try:
            import wandb
            quiet = wandb.Settings(silent=True, console='off', finish_timeout=30)
            wandb.setup(quiet)
            self.run = wandb.init(project=opt.wandb, id=identity, resume='allow', name=name, dir=opt.save_dir,
                                  config=config, allow_val_change=True, settings=quiet)
        except Exception as error:      # of many kinds
            raise UserError(f'--wandb: cannot begin ({reason(error)}); run `wandb login`, or set WANDB_MODE=offline'
                            ) from error
        print(f'Weights & Biases: {self.run.url or self.run.settings.sync_dir}')

    def log(self, scalars: dict, step: int, images: dict | None = None) -> None:
        """An epoch's numbers, and images (H, W) of 0 to 1."""
        import wandb
        images = {tag: wandb.Image((255 * image).byte().numpy()) for tag, image in (images or {}).items()}
        self._call('log', {**scalars, **images}, step=step)

    def finish(self) -> None:
        """Send what is left, for half a minute at most: the system may end this process soon."""
        self._call('finish')

    def _call(self, name, *arguments, **more):
        try:
            if self.run:
                getattr(self.run, name)(*arguments, **more)
        except Exception as error:      # of many kinds, when its own process has ended
            self.run = None
            print(f'--wandb: nothing is reported any more ({reason(error)})', flush=True)


def check_wandb(project: str) -> None:
    """Raises UserError where --wandb cannot be given."""
    found = importlib.util.find_spec('wandb')
    if found is None or found.origin is None:       # no package, but perhaps the folder that it leaves
        raise UserError('--wandb: wandb is not installed; pip install wandb')
    if not 0 < len(project) <= 128 or set(project) & set('/\\#?%:'):
        raise UserError(f'--wandb {project}: no name of a project; give up to 128 characters without / \\ # ? % :')


def _fits_wandb(value):
    return (isinstance(value, list) and len(value) == 2 and isinstance(value[0], str)
            and re.fullmatch('[0-9a-f]{8}', value[0]) and type(value[1]) is int and value[1] >= 0)


def _ignore_failed_writes(args):
    """TensorBoard writes in a thread. Its OSError is raised again in the main thread, which reports it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def predicts_one_class(test: dict) -> bool:
    """Whether a net predicts one class for all test images although they have several. test: what validate returned, or
    an epoch of history.json; False for older runs, which do not record it."""
    return test.get('test_classes_predicted') == 1 and test.get('test_classes', 0) > 1


def warn_of_one_class(what: str, test: dict) -> None:
    """Print a line if the net `what` predicts one class for all test images. test: see predicts_one_class."""
    if predicts_one_class(test):
        print(f'{what} predicts one class for all test images: its top-1 is only the share of that class')


def show_evaluation(name: str, test: dict) -> None:
    """Print what validate returned for the net `name`."""
    print(f'{name}: top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f}, loss {test["test_loss"]:.4f}')
    warn_of_one_class(name, test)
