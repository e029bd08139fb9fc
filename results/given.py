"""What a person gives a script: a run's folder or a checkpoint, and flags of the data where these say otherwise."""
import os
from dataclasses import dataclass
from pathlib import Path

from dataset import kind_of, source_dict
from helper.cli import Parser, comma_list, path
from helper.errors import UserError
from helper.files import read_json
from helper.state import LAST, PREVIOUS
from models.load import open_checkpoint
from options import take_image_size, teacher_options

OF_THE_RUN = ('dataset', 'data_dir', 'image_size', 'fit', 'max_pixels', 'images_in', 'normalise', 'split',
              'train_fraction', 'batch_size', 'use_lmdb', 'skip_bad_images')


@dataclass
class Given:
    """A checkpoint, and what its run's parameters.json says, as far as there is one."""

    checkpoint: Path
    parameters: dict

    @classmethod
    def find(cls, given: str, what: str) -> 'Given':
        """That of a run's folder, or of a checkpoint. Raises UserError that begins with `what`."""
        checkpoint = Path(given)
        if os.path.isdir(given):
            best = sorted(checkpoint.glob('*_best.pth'))
            if len(best) != 1:
                found = f'has {len(best)} files NAME_best.pth; give one of them' if best else \
                    'holds no NAME_best.pth; give the folder of a run, or a checkpoint'
                raise UserError(f'{what} {given}: {found}')
            checkpoint = best[0]
        elif not os.path.exists(given):
            raise UserError(f'{what} {given}: no such file; give the folder of a run, or a checkpoint')
        elif checkpoint.name in (LAST, PREVIOUS):
            raise UserError(f'{what} {given}: is the state of a run, from which it goes on; give its folder, or the '
                            f'NAME_best.pth in it')
        file, parameters = checkpoint.parent / 'parameters.json', {}
        if file.exists():
            parameters = read_json(file, f'{what} {given}: parameters.json')
            if not isinstance(parameters, dict):
                raise UserError(f'{what} {given}: parameters.json: not that of a run')
        return cls(checkpoint, parameters)

    def __str__(self):
        return str(self.checkpoint)


def add_data_flags(parser: Parser) -> None:
    """Those by which a train script reads its data; None where they are not given."""
    add = parser.add_argument_group('data', 'As in the train scripts. Not given: as the run had it.').add_argument
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


def data_options(run: Given, opt):
    """The options by which a train script would read the data of a run, but for what opt has of add_data_flags.

    Where neither says how large the images are, the checkpoint does.
    """
    parameters = run.parameters
    if opt.dataset not in (None, parameters.get('dataset')):
        parameters = {}
    given = {name: getattr(opt, name, None) for name in (*OF_THE_RUN, 'num_workers', 'seed')}
    values = {**{name: parameters.get(name) for name in OF_THE_RUN},
              **{name: value for name, value in given.items() if value is not None}}
    if given['image_size'] is None and kind_of(values['dataset'] or '') not in source_dict:
        del values['image_size']        # the images of other data have one size
    values['split'] = comma_list(values['split']) if values['split'] else None
    found = teacher_options([f'--{name}' if value is True else f'--{name}={value}' for name, value in values.items()
                            if value is not None and value is not False])
    found.same_classes = opt.same_classes
    if 'image_size' not in found.flags.given and kind_of(found.dataset) in source_dict:
        take_image_size(found, open_checkpoint(str(run), 'checkpoint'), f'checkpoint {run}')
    return found
