"""The reports of a run: JSON files, TensorBoard events, Weights & Biases, a line for each epoch."""
import contextlib
import importlib.util
import json
import math
import re
import secrets
import threading
import time

import torch

from .class_metrics import class_report
from .cli import values
from .device import environment
from .distributed import is_main, world_size
from .errors import UserError, reason
from .files import make_folder, write_json
from .loops import PREDICTIONS, SPLITS

METRICS = ('loss', 'acc', 'acc_top5')       # after 'test_' or 'val_'; of a task with classes
# metric -> its text for the terminal
SHOWN = {'loss': 'loss {:.4f}', 'acc': 'top-1 {:.2f}', 'acc_top5': 'top-5 {:.2f}', 'cosine': 'cosine similarity {:.4f}'}


class Records:
    """The JSON files, TensorBoard events, --wandb and the best epoch. Of several processes only the first writes."""

    def __init__(self, opt, paths, properties: dict, data, metrics: tuple = METRICS):
        """paths: a RunPaths. properties: for parameters.json, beside the options. data: a dataset.Data.

        metrics: of the validation; the best epoch has the highest second one, the score.
        """
        self.opt, self.paths, self.properties = opt, paths, properties
        self.split, self.classes = data.split, data.classes
        self.selection = data.selection_split       # the split that is measured after each epoch
        self.names = metrics
        self.metrics = [f'{self.selection}_{name}' for name in metrics]     # their names in the files
        self.score = self.metrics[1]
        self.history: list[dict] = []
        self.best: dict = {self.score: -1.0}
        self.test: dict = {}    # with a validation set, at the end: 'best' and 'last' -> metrics on the test set
        self.class_report: dict = {}        # the metrics of each class on the test set, in the best epoch
        self.start, self.writer = time.time(), None
        self.wandb, self.wandb_id = None, secrets.token_hex(4)
        self.epochs = 0         # finished epochs of all stages
        self.outdated = []      # files of an earlier run in the folder, removed at the first write

    def open(self, state: dict | None, is_new: bool) -> None:
        """Begin, or continue from what state() returned. is_new: the run has written nothing into this folder yet."""
        if state:
            self.history, self.best = list(state['history']), dict(state['best'])
            self.test = state.get('test', {})
            self.class_report = state.get('class_report', {})       # not in states of older versions
            self.start = time.time() - state['seconds']
            wandb_id, self.epochs = state.get('wandb', (self.wandb_id, len(self.history)))
            self.wandb_id = self.wandb_id if is_new else wandb_id
        if not is_main():
            return
        from torch.utils.tensorboard import SummaryWriter
        make_folder(self.paths.events)
        if self.opt.wandb:
            self.wandb = Wandb(self.opt, self.wandb_id, self.paths.folder.name, self._parameters())
        last = 0 if is_new else len(self.history)
        self.outdated = [file for file in self.paths.folder.glob('ckpt_epoch_*.pth')
                         if (number := re.search(r'_(\d+)\.pth$', file.name)) and int(number[1]) > last]
        if is_new:
            self.outdated += self.paths.events.glob('events.out.tfevents.*')
            self.outdated += [] if self.split else [self.paths.folder / 'split.json']
            self.outdated += [self.paths.folder / f'{split}_{epoch}_metrics.json' for split in SPLITS
                              for epoch in ('best', 'last') if split != self.selection]
            self.outdated += [] if self.selection == 'test' else [self.paths.folder / 'test_best_classes.json']
        threading.excepthook = _ignore_failed_writes
        # Events that an interrupted run wrote after its last state are hidden, not shown twice.
        with self._events():
            self.writer = SummaryWriter(str(self.paths.events), purge_step=len(self.history) + 1 if state else None)
        if self.history:
            self._write_parameters()
            self._write_json('history', self.history)

    def close(self) -> None:
        """Close TensorBoard's file and end the reports to Weights & Biases."""
        if self.writer:
            with contextlib.suppress(OSError):
                self.writer.close()
        if self.wandb:
            self.wandb.finish()

    def state(self) -> dict:
        """The state in last.pth that a resumed run needs."""
        return {'history': self.history, 'best': self.best, 'seconds': time.time() - self.start,
                'class_report': self.class_report, 'wandb': [self.wandb_id, self.epochs],
                **({'test': self.test} if self.test else {})}

    @staticmethod
    def fits(state: dict, metrics: tuple = METRICS) -> bool:
        """Whether a value from an untrusted file is one that state() can return. metrics: of the task."""
        try:
            json.dumps(state)
            history, best, seconds = state['history'], state['best'], state['seconds']
            score = f'{selection_of(best)}_{metrics[1]}'
            numbers = [*(epoch[score] for epoch in history), best[score], seconds]
            tested = state.get('test', {})
            numbers += [test[f'test_{name}'] for test in tested.values() for name in METRICS]
            wandb_id, epochs = state.get('wandb', ('0' * 8, 0))
            return (isinstance(history, list) and all(isinstance(number, float) for number in numbers)
                    and math.isfinite(best[score]) and math.isfinite(seconds)
                    and (best[score] < 0 or isinstance(best['epoch'], int))
                    and isinstance(state.get('class_report', {}), dict)
                    and tested.keys() in (set(), {'best', 'last'})
                    and all(isinstance(test['epoch'], int) for test in tested.values())
                    and re.fullmatch('[0-9a-f]{8}', wandb_id) is not None and type(epochs) is int and epochs >= 0)
        except (AttributeError, KeyError, TypeError, ValueError):
            return False

    def init_epoch(self, epoch: int, train: dict) -> None:
        """Report an epoch of a method's first stage."""
        self.epochs += 1
        if not is_main():
            return
        with self._events():
            self.writer.add_scalar('init_loss', train['loss'], epoch)
        if self.wandb:
            self.wandb.log({'init_loss': train['loss']}, self.epochs)
        print(f'first stage, epoch {epoch}: loss {train["loss"]:.4f}, {train["images_per_second"]:.0f} images/s',
              flush=True)

    def epoch(self, epoch: int, rate: float, train: dict, test: dict, seconds: float, pictures: dict) -> None:
        """Add an epoch to the history, to TensorBoard and to the terminal, and update the best. Writes no JSON."""
        metrics = {name: test[name] for name in self.metrics}
        accuracy = {'train_acc': train['top1']} if 'top1' in train else {}      # none without labelled images
        scalars = {**accuracy, 'train_loss': train['loss'], **metrics, 'lr': rate}
        pictures = {name: torch.as_tensor(matrix).tolist() for name, matrix in pictures.items()}
        entry = {'epoch': epoch, **scalars, **test, 'train': train, 'seconds': seconds}
        entry.pop(PREDICTIONS, None)
        if taken := entry.keys() & pictures.keys():
            raise ValueError(f'pictures: {", ".join(taken)} is the name of something else in history.json')
        self.history.append({**entry, **pictures})
        self.epochs += 1
        is_best = test[self.score] > self.best[self.score]
        if is_best:
            self.best = {**metrics, 'epoch': epoch}
        if is_best and self.selection == 'test' and PREDICTIONS in test:
            self._report_classes(test)
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
            self.wandb.log({'epoch': epoch, **scalars}, self.epochs, pixels)
        top1_train = f', top-1 {train["top1"]:.2f}' if accuracy else ''
        print(f'epoch {epoch}: train loss {train["loss"]:.4f}{top1_train} | '
              f'{SPLITS[self.selection]} {self.describe(metrics)} | '
              f'lr {rate:g}, {train["images_per_second"]:.0f} images/s, {seconds:.1f} s'
              f'{"  *best*" if is_best else ""}', flush=True)

    def _report_classes(self, test):
        """Note the metrics of each class. test: what validate returned on the test set for the best epoch."""
        self.class_report = {'epoch': self.best['epoch'], **class_report(test[PREDICTIONS], self.classes)}

    def describe(self, metrics: dict) -> str:
        """The metrics of a split as text for the terminal."""
        return ', '.join(SHOWN[name].format(value) for name, value in zip(self.names, metrics.values(), strict=True))

    @property
    def last(self) -> dict:
        """The metrics of the last epoch."""
        return {name: self.history[-1].get(name) for name in (*self.metrics, 'epoch')}

    def count_best_anew(self, from_last: bool) -> None:
        """Forget the best epoch. from_last: take the last epoch as the best so far."""
        self.best = self.last if from_last else {self.score: -1.0}

    @property
    def is_tested(self) -> bool:
        """Whether the best and the last weights are measured on the test set, or need not be (--no_test)."""
        tested = {epoch: test['epoch'] for epoch, test in self.test.items()}
        return self.selection == 'test' or self.opt.no_test or tested == {'best': self.best['epoch'],
                                                                          'last': self.last['epoch']}

    @property
    def needs_best_weights(self) -> bool:
        """Whether the best weights are still to be measured on the test set when the training ends."""
        is_over = len(self.history) >= self.opt.epochs or self.is_out_of_patience
        return self.selection == 'val' and not (is_over and self.is_tested)

    def add_test(self, best: dict, last: dict) -> None:
        """Note what validate returned on the test set for the weights of the best and of the last epoch."""
        for name, test, number in (('best', best, self.best['epoch']), ('last', last, self.last['epoch'])):
            self.test[name] = {**{f'test_{metric}': test[f'test_{metric}'] for metric in METRICS}, 'epoch': number}
        self._report_classes(best)
        if not is_main():
            return
        scalars = {f'test_{epoch}_acc': test['test_acc'] for epoch, test in self.test.items()}
        with self._events():
            for tag, value in scalars.items():
                self.writer.add_scalar(tag, value, self.last['epoch'])
            self.writer.flush()
        if self.wandb:
            self.wandb.log(scalars, self.epochs)

    @property
    def is_out_of_patience(self) -> bool:
        """Whether --patience ends the training now."""
        return is_out_of_patience(self.history, self.opt.patience)

    def write(self, epoch: int) -> None:
        """Write the JSON files up to `epoch`, the last one. The first call removes the files of an earlier run."""
        while self.outdated:
            self.outdated.pop().unlink(missing_ok=True)
        if epoch == 1:
            self._write_parameters()
        self._write_json('history', self.history)
        self._write_json(f'{self.selection}_last_metrics', self.last)

    def write_best(self) -> None:
        """Write the metrics of the best epoch, and without a validation set also those of each class."""
        self._write_json(f'{self.selection}_best_metrics', self.best)
        self._write_class_report()

    def write_test(self) -> None:
        """Write the metrics of add_test and those of each class, if there are any."""
        for epoch, metrics in self.test.items():
            self._write_json(f'test_{epoch}_metrics', metrics)
        self._write_class_report()

    def _write_class_report(self):
        if self.class_report.get('epoch') == self.best['epoch']:        # else an older version measured the best epoch
            self._write_json('test_best_classes', self.class_report)

    def finish(self) -> None:
        """All epochs are over: write the total time, print the best and the last accuracy."""
        if is_main():
            total = {'Total time': (time.time() - self.start) / self.paths.seconds_per_unit}
            self._write_json('parameters', {**self._parameters(), **total})
            best, last = (SHOWN[self.names[1]].format(metrics[self.score]) for metrics in (self.best, self.last))
            on_test = ''
            if self.selection == 'val':
                on_test = ' on the validation set; ' + (
                    f'on the test set {self.test["best"]["test_acc"]:.2f}, last {self.test["last"]["test_acc"]:.2f}'
                    if self.test else 'the test set is not measured (--no_test)')
            print(f'best {best} at epoch {self.best["epoch"]}, last {last.split()[-1]}{on_test}, saved in '
                  f'{self.paths.folder}')
            for epoch in sorted({self.best['epoch'], self.last['epoch']}):
                warn_of_one_class(f'the network of epoch {epoch}', self.history[epoch - 1])

    def _write_json(self, name, value):
        write_json(self.paths.folder / f'{name}.json', value)

    def _write_parameters(self):
        self._write_json('parameters', self._parameters())
        if self.split:
            self._write_json('split', self.split)

    def _parameters(self):
        return {**values(self.opt), **self.properties, 'processes': world_size(), **environment()}

    @contextlib.contextmanager
    def _events(self):
        try:
            yield
        except OSError as error:
            raise UserError(f'{self.paths.events}: cannot be written ({error.strerror}); the checkpoints are whole'
                            ) from error


class Wandb:
    """A run at Weights & Biases. A failure at its start is a UserError; after a later one training goes on without."""

    def __init__(self, opt, run_id: str, name: str, config: dict):
        """run_id: the same in all parts of an interrupted run."""
        try:
            import wandb
            quiet = wandb.Settings(silent=True, console='off', finish_timeout=30)
            wandb.setup(quiet)
            self.run = wandb.init(project=opt.wandb, id=run_id, resume='allow', name=name, dir=opt.save_dir,
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

    def _call(self, name, *arguments, **options):
        try:
            if self.run:
                getattr(self.run, name)(*arguments, **options)
        except Exception as error:      # of many kinds, when its own process has ended
            self.run = None
            print(f'--wandb: nothing is reported any more ({reason(error)})', flush=True)


def check_wandb(project: str) -> None:
    """Raise UserError where --wandb cannot be given."""
    spec = importlib.util.find_spec('wandb')
    if spec is None or spec.origin is None:     # not installed; wandb's own output folder would be found without origin
        raise UserError('--wandb: wandb is not installed; pip install wandb')
    if not 0 < len(project) <= 128 or set(project) & set('/\\#?%:'):
        raise UserError(f'--wandb {project}: no name of a project; give up to 128 characters without / \\ # ? % :')


def _ignore_failed_writes(args):
    """TensorBoard writes in a thread. Its OSError is raised again in the main thread, which reports it."""
    if not isinstance(args.exc_value, OSError):
        threading.__excepthook__(args)


def selection_of(metrics: dict) -> str:
    """'val' if the metrics of an epoch were measured on a validation set, else 'test'."""
    return 'val' if 'val_acc' in metrics else 'test'


def is_out_of_patience(history: list[dict], patience: int | None) -> bool:
    """Whether the validation accuracy has not risen in the last `patience` epochs of a history; None: never."""
    accuracies = [epoch['val_acc'] for epoch in history] if patience else []
    return bool(accuracies) and len(accuracies) - 1 - accuracies.index(max(accuracies)) >= patience


def predicts_one_class(test: dict) -> bool:
    """Whether a net predicts one class although there are several. test: of validate or any history.json."""
    split = selection_of(test)
    return test.get(f'{split}_classes_predicted') == 1 and test.get(f'{split}_classes', 0) > 1


def warn_of_one_class(name: str, test: dict) -> None:
    """Print a line if the net `name` predicts one class for all images of a split."""
    if predicts_one_class(test):
        print(f'{name} predicts one class for all {SPLITS[selection_of(test)]} images: its top-1 is only the share of '
              f'that class')


def show_evaluation(name: str, test: dict) -> None:
    """Print what validate returned for the net `name`."""
    print(f'{name}: top-1 {test["test_acc"]:.2f}, top-5 {test["test_acc_top5"]:.2f}, loss {test["test_loss"]:.4f}')
    warn_of_one_class(name, test)
