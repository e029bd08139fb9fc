"""What a run leaves behind beside its checkpoints: JSON files, TensorBoard, a line an epoch."""
import time
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from .checkpoint import save_checkpoint
from .files import run_folder, write_json


class RunLog:
    """Writes parameters.json, test_best_metrics.json, history.json and TensorBoard events; keeps the best accuracy."""

    def __init__(self, save_dir: str, models: str, tensorboards: str, name: str, opt, facts: dict):
        """Folders {save_dir}/{models}/{name} and {save_dir}/{tensorboards}/{name}; `facts` go into parameters.json."""
        self.folder: Path = run_folder(save_dir, models, name)
        self.writer = SummaryWriter(str(run_folder(save_dir, tensorboards, name)))
        self.parameters = {**vars(opt), **facts}
        self.history: list[dict] = []
        self.best: dict = {'test_acc': -1.0}
        self.start = time.time()

    def epoch(self, epoch: int, rate: float, train: dict, test: dict, seconds: float, pictures: dict | None = None):
        """Note an epoch. Returns True when it is the best so far: then keep_best is due."""
        scalars = {'train_acc': train['top1'], 'train_loss': train['loss'], **test, 'lr': rate}
        for tag, value in scalars.items():
            self.writer.add_scalar(tag, value, epoch)
        for tag, matrix in (pictures or {}).items():
            pixels = torch.tensor(matrix).repeat_interleave(32, 0).repeat_interleave(32, 1)
            self.writer.add_image(tag, pixels.clamp(0, 1), epoch, dataformats='HW')
        self.writer.flush()
        self.history.append({'epoch': epoch, **scalars, 'train': train, 'seconds': seconds, **(pictures or {})})
        if len(self.history) == 1:      # not before: a run that fails at once leaves an older one's files alone
            write_json(self.folder / 'parameters.json', self.parameters)
        write_json(self.folder / 'history.json', self.history)
        is_best = test['test_acc'] > self.best['test_acc']
        if is_best:
            self.best = {**test, 'epoch': epoch}
        print(f'epoch {epoch}: train loss {train["loss"]:.4f}, top-1 {train["top1"]:.2f} | '
              f'test loss {test["test_loss"]:.4f}, top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f} | '
              f'lr {rate:g}, {train["images_per_second"]:.0f} images/s, {seconds:.1f} s'
              f'{"  *best*" if is_best else ""}', flush=True)
        return is_best

    def keep_best(self, file: str, state: dict) -> None:
        """Write the best checkpoint, and then the metrics that describe it."""
        save_checkpoint(self.folder / file, state)
        write_json(self.folder / 'test_best_metrics.json', self.best)

    def init_epoch(self, epoch: int, train: dict) -> None:
        """Note an epoch of a method's first stage."""
        self.writer.add_scalar('init_loss', train['loss'], epoch)
        print(f'first stage, epoch {epoch}: loss {train["loss"]:.4f}, {train["images_per_second"]:.0f} images/s',
              flush=True)

    def close(self, seconds_per_unit: float) -> None:
        """Note the whole time in units of `seconds_per_unit`, and say the best accuracy."""
        self.parameters['Total time'] = (time.time() - self.start) / seconds_per_unit
        write_json(self.folder / 'parameters.json', self.parameters)
        self.writer.close()
        print(f'best top-1 {self.best["test_acc"]:.2f} at epoch {self.best["epoch"]}, saved in {self.folder}')


def show_evaluation(name: str, test: dict) -> None:
    """Print what validate returned for the net `name`."""
    print(f'{name}: top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f}, loss {test["test_loss"]:.4f}')
