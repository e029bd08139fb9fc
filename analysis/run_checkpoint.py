"""The arguments of scripts: a run folder or a checkpoint, and flags that override the data of the run."""
import functools
import os
from dataclasses import dataclass
from pathlib import Path

from dataset import dataset_key, source_dict
from helper.cli import Parser, comma_list, path
from helper.errors import UserError, printable
from helper.files import read_json
from helper.state import LAST
from models.load import open_checkpoint
from options import take_image_size, teacher_options

OF_THE_RUN = ('dataset', 'data_dir', 'image_size', 'fit', 'max_pixels', 'images_in', 'normalise', 'split',
              'train_fraction', 'batch_size', 'use_lmdb', 'skip_bad_images')


@dataclass
class RunCheckpoint:
    """A checkpoint, and the parameters.json of its run if there is one."""

    flag: str
    checkpoint: Path
    parameters: dict
    trusted: bool = True        # whether the files beside it are of the same run

    @classmethod
    def find(cls, given: str, what: str) -> 'RunCheckpoint':
        """The checkpoint at `given`, or the best one in that run folder. Raises UserError that begins with `what`."""
        checkpoint = Path(given)
        if os.path.isdir(given):
            best = sorted(checkpoint.glob('*_best.pth'))
            if len(best) != 1:
                last = checkpoint / LAST
                found = f'has {len(best)} files NAME_best.pth; give one of them' if best else \
                    f'holds no NAME_best.pth yet; give {last}, the last epoch' if last.is_file() else \
                    'holds no NAME_best.pth; give the folder of a run, or a checkpoint'
                raise UserError(f'{what} {given}: {found}')
            checkpoint = best[0]
        elif not os.path.exists(given):
            raise UserError(f'{what} {given}: no such file; give the folder of a run, or a checkpoint')
        file, parameters = checkpoint.parent / 'parameters.json', {}
        if file.exists():
            parameters = read_json(file, f'{what} {given}: parameters.json')
            if not isinstance(parameters, dict):
                raise UserError(f'{what} {given}: parameters.json: not that of a run')
        return cls(what, checkpoint, parameters)

    def __str__(self):
        return str(self.checkpoint)

    @functools.cached_property
    def state(self) -> dict:
        """The checkpoint, see models.load.open_checkpoint. Raises UserError."""
        return open_checkpoint(str(self), self.flag)

    def check_metrics(self) -> None:
        """Set `trusted` to False, with a line, if the metrics beside the checkpoint have another epoch or accuracy."""
        if words := self.metrics_difference():
            print(f'{self}: {words}, so those files are not used')
            self.trusted = False

    def metrics_difference(self) -> str:
        """How the metrics beside the checkpoint differ from it, as text; '' if they do not."""
        kinds = {LAST: ('test_last_metrics.json', {'epoch': 'epoch'})}
        if self.checkpoint.name.endswith('_best.pth'):
            kinds = {self.checkpoint.name: ('test_best_metrics.json', {'epoch': 'epoch', 'best_acc': 'test_acc'})}
        name, pairs = kinds.get(self.checkpoint.name, (None, {}))
        if name is None or not (file := self.checkpoint.with_name(name)).exists():
            return ''
        try:
            found = read_json(file, str(file))
            found = found if isinstance(found, dict) else {}
        except UserError:
            found = {}
        known = {there: self.state[here] for here, there in pairs.items() if here in self.state}
        differ = [f'{printable(f"{name} {found.get(name)}")[:50]}, not {printable(value)[:50]}'
                  for name, value in known.items() if found.get(name) != value]
        return f'{file.name} beside it is of another checkpoint ({"; ".join(differ)})' if differ else ''

    @property
    def trusted_parameters(self) -> dict:
        """The parameters; empty if they are not of this checkpoint."""
        return self.parameters if self.trusted else {}


def teacher_open_args(parameters: dict) -> dict:
    """The arguments of models.load.open_net with which a run opened its teacher."""
    key = parameters.get('checkpoint_key')
    given = {name: parameters.get(f'{name}_t') for name in ('mean', 'std', 'size', 'interpolation')}
    return {'key': key if isinstance(key, str) else None,
            'inputs': {name: value for name, value in given.items() if value is not None}}


def add_data_flags(parser: Parser) -> None:
    """Add the flags of the train scripts that select the data; their default is None."""
    add = parser.add_argument_group('data', 'As in the train scripts. Not given: the values of the run.').add_argument
    add('--dataset', help='its test set')
    add('--data_dir', type=path, help='the folder of the data')
    add('--image_size', help='of --dataset folder and hf:')
    add('--fit', help='of --dataset folder and hf:')
    add('--max_pixels', help='images with more pixels count as unreadable')
    add('--images_in', help='of --dataset folder and hf:')
    add('--split', help='of --dataset folder and hf:, the shares of training, validation and test images')
    add('--batch_size', help='images at a time')
    add('--num_workers', help='threads or processes that decode image files; not given: one for each core')
    add('--use-lmdb', action='store_true', default=None, help='read imagenet from train.lmdb and val.lmdb')
    add('--skip_bad_images', action='store_true', default=None, help='count unreadable images and skip them')
    add('--same_classes', action='store_true', help='the class names in a checkpoint mean the same in this order')


def data_options(run: RunCheckpoint, opt):
    """The options with which a train script reads the data of a run; those of add_data_flags in opt override them.

    If neither has an image size, the checkpoint's is used.
    """
    parameters = run.parameters
    if opt.dataset not in (None, parameters.get('dataset')):
        parameters = {}
    given = {name: getattr(opt, name, None) for name in (*OF_THE_RUN, 'num_workers', 'seed')}
    values = {**{name: parameters.get(name) for name in OF_THE_RUN},
              **{name: value for name, value in given.items() if value is not None}}
    if given['image_size'] is None and dataset_key(values['dataset'] or '') not in source_dict:
        del values['image_size']        # other data have a fixed size
    values['split'] = comma_list(values['split']) if values['split'] else None
    found = teacher_options([f'--{name}' if value is True else f'--{name}={value}' for name, value in values.items()
                            if value is not None and value is not False])
    found.same_classes = opt.same_classes
    if 'image_size' not in found.flags.given and dataset_key(found.dataset) in source_dict:
        take_image_size(found, run.state, f'{run.flag} {run}')
    return found
