"""The run folder or checkpoint that a user gives to a script: its options, its teacher and its data."""
import functools
import math
import os
from argparse import ArgumentTypeError
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

from dataset import WITHOUT_CLASSES, dataset_key, source_dict
from dataset.teacher_head import HEADS, load_saved_head
from helper.cli import Parser, as_list, comma_list, path
from helper.errors import UserError, printable
from helper.files import read_json
from helper.loops import SPLITS
from helper.state import LAST
from models.base import Net
from models.ensemble import TEACHER_OPTIONS, options_of_teachers
from models.find import get_library, is_user_file
from models.load import load_net, open_checkpoint, open_net
from models.teacher import load_teacher_net
from option_checkpoints import set_evaluation_preprocessing
from options import teacher_options

from .runs import read_or_empty

DATA_OPTIONS = ('dataset', 'data_dir', 'image_size', 'fit', 'max_pixels', 'images_in', 'shard_cache_gb', 'normalise',
                'split', 'val_fraction', 'train_fraction', 'batch_size', 'use_lmdb', 'skip_bad_images')


@dataclass
class RunCheckpoint:
    """A checkpoint, and the parameters.json of its run if there is one."""

    flag: str
    checkpoint: Path
    parameters: dict
    trusted: bool = True        # whether the files beside the checkpoint belong to the same run

    @classmethod
    def find(cls, given: str, flag: str) -> 'RunCheckpoint':
        """The checkpoint at `given`, or the best one in that run folder. Raises UserError that begins with `flag`."""
        checkpoint, source = Path(given), f'{flag} {given}'
        if os.path.isdir(given):
            best = sorted(checkpoint.glob('*_best.pth'))
            if len(best) > 1:
                raise UserError(f'{source}: has {len(best)} files NAME_best.pth; give one of them')
            if not best:
                last = checkpoint / LAST
                raise UserError(f'{source}: holds no NAME_best.pth'
                                + (f' yet; give {last}, the last epoch' if last.is_file() else
                                   '; give the folder of a run, or a checkpoint'))
            checkpoint = best[0]
        elif not os.path.exists(given):
            raise UserError(f'{source}: no such file; give the folder of a run, or a checkpoint')
        file = checkpoint.with_name('parameters.json')
        parameters = read_json(file, f'{source}: parameters.json') if file.exists() else {}
        if not isinstance(parameters, dict):
            raise UserError(f'{source}: parameters.json: not the options of a run')
        return cls(flag, checkpoint, parameters)

    def __str__(self):
        return str(self.checkpoint)

    @functools.cached_property
    def state(self) -> dict:
        """The checkpoint, see models.load.open_checkpoint. Raises UserError."""
        return open_checkpoint(str(self), self.flag)

    @property
    def trusted_parameters(self) -> dict:
        """The parameters; empty if they belong to another checkpoint."""
        return self.parameters if self.trusted else {}

    def check_metrics(self) -> None:
        """Set `trusted` to False, and print why, if the metrics beside the checkpoint belong to another one."""
        if difference := self.metrics_difference():
            print(f'{self}: {difference}, so those files are not used')
            self.trusted = False

    @property
    def chosen_on(self) -> str | None:
        """The split that chose the best epoch, 'test' or 'validation'; None if unknown."""
        by_file = SPLITS[self.selection] if self.trusted and self.read_metrics('best', self.selection) else None
        saved = self.state.get('chosen_on')
        return saved if saved in SPLITS.values() else by_file

    @property
    def selection(self) -> str:
        """'val' if the best epoch was chosen on a validation set, else 'test'."""
        return 'val' if self.checkpoint.with_name('val_best_metrics.json').exists() else 'test'

    def read_metrics(self, epoch: str, split: str = 'test') -> dict | None:
        """The metrics beside the checkpoint, of the 'best' or 'last' epoch; {} for a damaged file, None for none."""
        file = self.checkpoint.with_name(f'{split}_{epoch}_metrics.json')
        return read_or_empty(file, dict) if file.exists() else None

    def metrics_difference(self) -> str:
        """How the metrics beside the checkpoint differ from it in epoch or accuracy; '' if they do not."""
        epoch = 'last' if self.checkpoint.name == LAST else 'best' if self.checkpoint.name.endswith('_best.pth') else ''
        metrics = self.read_metrics(epoch, self.selection) if epoch else None
        if metrics is None:
            return ''
        keys = {'epoch': 'epoch', 'best_acc': f'{self.selection}_acc'} if epoch == 'best' else {'epoch': 'epoch'}
        differences = [f'{printable(f"{key} {metrics.get(key)}")[:50]}, not {printable(self.state[name])[:50]}'
                       for name, key in keys.items() if name in self.state and metrics.get(key) != self.state[name]]
        return f'{self.selection}_{epoch}_metrics.json beside it is of another checkpoint ({"; ".join(differences)})' \
            if differences else ''

    def teachers(self) -> list[tuple[str, dict]]:
        """(path of its checkpoint, the arguments of models.load.open_net) of each teacher of the run; empty if it names
        none. A net of a FILE.py is not named: only the user may say that its code is run.
        """
        parameters = self.trusted_parameters
        try:
            opt = SimpleNamespace(**{'path_t': None, **dict.fromkeys(TEACHER_OPTIONS), **parameters})
            teachers = options_of_teachers(opt)
        except (ValueError, TypeError, IndexError, KeyError, ArgumentTypeError):        # an untrusted file
            return []
        if not all(isinstance(teacher.path_t, str) for teacher in teachers):
            return []
        key = parameters.get('checkpoint_key')
        key = key if isinstance(key, str) else None
        return [(teacher.path_t, {'name': _named_net(teacher), 'key': key, 'inputs': _inputs(teacher)})
                for teacher in teachers]

    def _head_folders(self):
        cache = self.trusted_parameters.get('teacher_cache')
        save_dir = self.checkpoint.resolve().parent.parent.parent
        return [save_dir / HEADS, *([Path(cache)] if isinstance(cache, str) else [])]

    def teacher_weights(self, count: int) -> list[float] | None:
        """The weights of `count` teachers; None if they are equal, or depend on the image."""
        weights = self.trusted_parameters.get('teacher_weights')
        is_valid = isinstance(weights, list) and len(weights) == count and \
            all(type(weight) is float and 0 <= weight < math.inf for weight in weights) and any(weights)
        return weights if is_valid else None

    def open_teacher(self, number: int, data, model_t: str | None = None) -> tuple[str, dict, Net]:
        """(name, checkpoint, net) of a teacher, with the head by --teacher_head that taught this run. Raises UserError.

        number: in teachers(). model_t: the name of its net, if the user gives one.
        """
        file, args = self.teachers()[number]
        name, checkpoint = open_net(file, **{**args, 'name': model_t or args['name']})
        head = dict(enumerate(as_list(self.trusted_parameters.get('head of the teacher (checksum)')))).get(number)
        if head is None:
            return name, checkpoint, load_net(file, checkpoint, name, data)
        net = load_teacher_net(file, checkpoint, name, data, head='linear')
        load_saved_head(net, self._head_folders(), head, f'--path-t {file}')
        return name, checkpoint, net


def _named_net(teacher):
    name = teacher.model_t
    return name if isinstance(name, str) and not is_user_file(name) and not get_library(teacher.path_t) else None


def _inputs(teacher):
    return {part: value for part in ('mean', 'std', 'size', 'interpolation')
            if (value := getattr(teacher, f'{part}_t')) is not None}


def add_data_flags(parser: Parser) -> None:
    """Add the flags of the train scripts that select the data; their default is None."""
    add = parser.add_argument_group('data', 'As in the train scripts; if omitted, the values of the run.').add_argument
    add('--dataset', help='the data set on whose test images the nets are evaluated')
    add('--data_dir', type=path, help='the folder of the data')
    add('--image_size', help='side in pixels of the images of folder, hf: and wds:')
    add('--fit', help='how images of folder, hf: and wds: become square: crop, squash or pad')
    add('--max_pixels', help='images with more pixels count as unreadable')
    add('--images_in', help='where images of folder, hf: and wds: are kept: auto, memory or disk')
    add('--shard_cache_gb', help='most GB of shards that are kept from wds:URL')
    add('--split', help='the shares of training, validation and test images of folder, hf: and wds:')
    add('--batch_size', help='images per batch')
    add('--num_workers', help='threads or processes that decode image files; if omitted, one for each core')
    add('--use-lmdb', action='store_true', default=None, help='read imagenet from train.lmdb and val.lmdb')
    add('--skip_bad_images', action='store_true', default=None, help='skip unreadable images and count them')
    add('--same_classes', action='store_true',
        help='accept class names in a checkpoint that differ from those of the data: they mean the same in this order')


def data_options(run: RunCheckpoint, opt):
    """(options that make a train script read the data of a run, the preprocessing in the checkpoint).

    The options of add_data_flags in opt override those of the run. If neither has an image size, the checkpoint's is
    used. Raises UserError.
    """
    is_its_data = opt.dataset in (None, run.parameters.get('dataset'))
    values = {name: run.parameters.get(name) if is_its_data else None for name in DATA_OPTIONS}
    given = {name: getattr(opt, name, None) for name in (*DATA_OPTIONS, 'num_workers', 'seed')}
    values |= {name: value for name, value in given.items() if value is not None}
    if values['dataset'] == WITHOUT_CLASSES:
        raise UserError(f'{run.flag} {run}: its net was trained without classes; give it to a train script by '
                        f'--initial_checkpoint first, which trains a classifier')
    if given['image_size'] is None and dataset_key(values['dataset'] or '') not in source_dict:
        values['image_size'] = None         # other data have a fixed size
    values['split'] = comma_list(values['split']) if values['split'] else None
    options = teacher_options([f'--{name}' if value is True else f'--{name}={value}' for name, value in values.items()
                               if value is not None and value is not False])
    options.same_classes, options.evaluate = opt.same_classes, str(run)     # nothing is trained
    inputs = set_evaluation_preprocessing(options, run.state, f'{run.flag} {run}')
    if {'mean', 'std'} <= inputs.keys():
        options.normalise = None        # the checkpoint's, whatever the run was given
    return options, inputs
