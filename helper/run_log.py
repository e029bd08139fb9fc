"""What a run leaves behind beside its checkpoints: JSON files, TensorBoard, a line an epoch."""
import contextlib
import json
import math
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import save_checkpoint
from .distributed import is_main, world_size
from .errors import UserError
from .files import Lock, make_folder, run_folder, write_json


class RunLog:
    """Writes parameters.json, test_best_metrics.json, history.json and TensorBoard events; keeps the best accuracy.

    Of several processes only the first writes.
    """

    def __init__(self, opt, models: str, tensorboards: str, name: str, facts: dict):
        """Folders {save_dir}/{models}/{name} and {save_dir}/{tensorboards}/{name}, made by open(). `facts` go into
        parameters.json beside the options."""
        self.folder: Path = run_folder(opt.save_dir, models, name)
        self.events: Path = run_folder(opt.save_dir, tensorboards, name)
        self.opt, self.facts = opt, facts
        self.lock = Lock(self.folder)
        self.history: list[dict] = []
        self.best: dict = {'test_acc': -1.0}
        self.start, self.writer = time.time(), None
        self.earlier: list[Path] = []       # what another run has left, which this one will replace

    def claim(self) -> bool:
        """Make the folder, for this run alone. Returns False while another run writes there. Raises UserError."""
        make_folder(self.folder)
        return self.lock.take()

    def open(self, state: dict | None, own: bool) -> None:
        """Begin, or go on from what state() gave; `own` when the run in this folder goes on. The folder is claimed."""
        if state:
            self.history, self.best = list(state['history']), dict(state['best'])
            self.start = time.time() - state['seconds']
        if not is_main():
            return
        make_folder(self.events)
        done = len(self.history) if own else 0
        self.earlier = [file for file in self.folder.glob('ckpt_epoch_*.pth')
                        if (number := re.search(r'_(\d+)\.pth$', file.name)) and int(number[1]) > done]
        self.earlier += [] if own else self.events.glob('events.out.tfevents.*')
        threading.excepthook = _leave_to_main_thread
        # What an interrupted run wrote after the state is hidden, not shown twice.
        with self._events():
            self.writer = SummaryWriter(str(self.events), purge_step=len(self.history) + 1 if state else None)
        if self.history:
            self._write_parameters()
            self._write_history()

    def release(self) -> None:
        """Another run may write into the folder."""
        if self.writer:
            with contextlib.suppress(OSError):
                self.writer.close()
        self.lock.release()

    def state(self) -> dict:
        """What a resumed run needs, for its checkpoint."""
        return {'history': self.history, 'best': self.best, 'seconds': time.time() - self.start}

    @staticmethod
    def fits(state: dict) -> bool:
        """Whether a value, from a file that nobody vouches for, is one that state() gives."""
        history, best, seconds = (state.get(name) for name in ('history', 'best', 'seconds'))
        try:
            json.dumps(state)
        except (TypeError, ValueError):
            return False
        return (isinstance(history, list) and all(isinstance(epoch, dict) for epoch in history)
                and isinstance(best, dict) and isinstance(best.get('test_acc'), float)
                and math.isfinite(best['test_acc']) and (best['test_acc'] < 0 or isinstance(best.get('epoch'), int))
                and isinstance(seconds, float) and math.isfinite(seconds))

    def epoch(self, epoch: int, rate: float, train: dict, test: dict, seconds: float,
              pictures: dict | None = None) -> None:
        """Note an epoch, and whether it is the best so far."""
        scalars = {'train_acc': train['top1'], 'train_loss': train['loss'], **test, 'lr': rate}
        self.history.append({'epoch': epoch, **scalars, 'train': train, 'seconds': seconds, **(pictures or {})})
        is_best = test['test_acc'] > self.best['test_acc']
        if is_best:
            self.best = {**test, 'epoch': epoch}
        if not is_main():
            return
        with self._events():
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, epoch)
            for tag, matrix in (pictures or {}).items():
                pixels = torch.tensor(matrix).repeat_interleave(32, 0).repeat_interleave(32, 1)
                self.writer.add_image(tag, pixels.clamp(0, 1), epoch, dataformats='HW')
            self.writer.flush()
        print(f'epoch {epoch}: train loss {train["loss"]:.4f}, top-1 {train["top1"]:.2f} | '
              f'test loss {test["test_loss"]:.4f}, top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f} | '
              f'lr {rate:g}, {train["images_per_second"]:.0f} images/s, {seconds:.1f} s'
              f'{"  *best*" if is_best else ""}', flush=True)

    @contextlib.contextmanager
    def _events(self):
        try:
            yield
        except OSError as error:
            raise UserError(f'{self.events}: cannot be written ({error.strerror}); the checkpoints are whole'
                            ) from error

    def write(self, epoch: int, best_file: str, state: Callable, save_freq: int = 0) -> None:
        """Bring all files up to `epoch`, which was noted last and which last.pth holds.

        state() gives what the checkpoints hold; best_file is written if this epoch is the best so far, then the metrics
        that describe it, and ckpt_epoch_N.pth every save_freq epochs. The first call removes what an earlier run has
        left: one that fails before leaves it alone.
        """
        if not is_main():
            return
        while self.earlier:
            self.earlier.pop().unlink(missing_ok=True)
        if epoch == 1:
            self._write_parameters()
        self._write_history()
        if save_freq and epoch % save_freq == 0:
            save_checkpoint(self.folder / f'ckpt_epoch_{epoch}.pth', state())
        if self.best.get('epoch') == epoch:
            save_checkpoint(self.folder / best_file, state())
            write_json(self.folder / 'test_best_metrics.json', self.best)

    def _write_history(self):
        write_json(self.folder / 'history.json', self.history)

    def _write_parameters(self, **more):
        options = {name: value for name, value in vars(self.opt).items() if name != 'filled_in'}
        write_json(self.folder / 'parameters.json', {**options, **self.facts, 'processes': world_size(), **more})

    def init_epoch(self, epoch: int, train: dict) -> None:
        """Note an epoch of a method's first stage."""
        if is_main():
            with self._events():
                self.writer.add_scalar('init_loss', train['loss'], epoch)
            print(f'first stage, epoch {epoch}: loss {train["loss"]:.4f}, {train["images_per_second"]:.0f} images/s',
                  flush=True)

    def close(self, seconds_per_unit: float) -> None:
        """Note the whole time in units of `seconds_per_unit`, and say the best accuracy."""
        if is_main():
            self._write_parameters(**{'Total time': (time.time() - self.start) / seconds_per_unit})
            print(f'best top-1 {self.best["test_acc"]:.2f} at epoch {self.best["epoch"]}, saved in {self.folder}')


def _leave_to_main_thread(args):
    """A failed write in TensorBoard's thread is raised again in the main thread: that one says it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def show_evaluation(name: str, test: dict) -> None:
    """Print what validate returned for the net `name`."""
    print(f'{name}: top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f}, loss {test["test_loss"]:.4f}')
