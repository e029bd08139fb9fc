"""The files of a teacher cache: their names, what their headers say, how they number the outputs, and their size.

A file holds one field of models.base.Outputs, in numbered slots. There are two ways to number them:

- small images with padded crops have VARIANTS variants: slot = index * VARIANTS + variant, in one file;
- with --cache_epochs each repeated epoch has files of its own: slot = index, and for a second view index + n.
"""
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import nn

from helper import distributed
from helper.checkpoint import weights_checksum
from helper.cli import ALL
from helper.errors import UserError
from helper.run_folder import folder_name
from models.base import probe

from ..crop import DEFAULTS
from ..memory import VARIANTS
from .encoding import Numbers, Probabilities
from .file import CacheFile, file_bytes

CACHED_OUTPUTS = ('logits', 'embedding')    # the fields of models.base.Outputs that can be cached, a file each


@dataclass
class Layout:
    """The files of a cache: one for each field, with --cache_epochs one for each field and repeated epoch."""

    folder: Path
    stem: str           # of the file names
    identity: dict      # name -> value, in the header of each file
    encodings: dict     # field -> how its outputs are stored, see encoding.py
    slots: int          # outputs for which a file has room
    used: int           # outputs of a file that runs need; fewer if they leave images out, always the same ones
    accuracy_file: Path     # JSON with the teacher's accuracy
    epochs: int | None = None       # repeated epochs that the run uses; None without --cache_epochs

    @property
    def repeated_epochs(self) -> range:
        """The numbers of the repeated epochs, from 0; without --cache_epochs only 0."""
        return range(self.epochs or 1)

    def bytes(self, field: str) -> int:
        """The size of a field's files when full."""
        encoding = self.encodings[field]
        return len(self.repeated_epochs) * file_bytes(self.slots, encoding.width, encoding.dtype)

    def path(self, field: str, repeated_epoch: int) -> Path:
        """The file of a field for a repeated epoch, from 0."""
        epoch = '' if self.epochs is None else f'_epoch{repeated_epoch + 1:03d}'
        return self.folder / f'{self.stem}{epoch}_{field}.cache'

    def open(self, field: str, repeated_epoch: int) -> CacheFile:
        """Open or make that file. Raises UserError if it is another one or damaged, OSError if it cannot be made."""
        encoding = self.encodings[field]
        epoch = {} if self.epochs is None else {'epoch': repeated_epoch + 1}
        return CacheFile(self.path(field, repeated_epoch), {'kind': field, **self.identity, **epoch}, self.slots,
                         encoding.width, encoding.dtype)

    def usage(self) -> tuple[dict[str, float], int]:
        """(field -> cached share of the needed outputs, bytes of disk space that the files will still take)."""
        shares, needed = {}, 0
        for field in self.encodings:
            count = 0
            for repeated_epoch in self.repeated_epochs:
                if self.path(field, repeated_epoch).exists():
                    file = self.open(field, repeated_epoch)
                    count, needed = count + file.count(), needed + file.needed_bytes()
                else:
                    needed += self.bytes(field) // len(self.repeated_epochs)
            shares[field] = count / (len(self.repeated_epochs) * self.used)
        return shares, needed


def make_layout(opt, needs: tuple, teacher: nn.Module, data) -> Layout:
    """The files for this teacher, these images and their augmentation.

    needs: the fields beside the logits, which a teacher without a classifier lacks. Raises UserError.
    """
    loader, folder = data.train_loader, Path(opt.teacher_cache)
    order = loader.order
    is_repeated = order.repetition is not None
    if loader.n_slots is None:
        raise UserError(f'--teacher_cache {opt.teacher_cache}: the images do not fit in memory, and the outputs for '
                        f'their variants would be many more; give --cache_epochs {opt.epochs} or less, or leave it out')
    identity = {'teacher (checksum)': outputs_checksum(teacher), 'images (checksum)': loader.checksum()}
    stem = '_'.join([folder_name(opt.model_t), folder_name(opt.dataset), *(f'{crc:08x}' for crc in identity.values())])
    accuracy_file = folder / f'{stem}.json'
    if opt.cache_topk is not None:
        identity['cache_topk'] = opt.cache_topk
        stem += f'_top{opt.cache_topk}'
    if is_repeated:
        identity |= augmentation_settings(opt, loader)
        stem += f'_{zlib.crc32(repr(identity).encode()):08x}'
        slots = loader.n_slots
        # If the order repeats, the images outside the batches are never needed. Otherwise they differ in each epoch.
        used = order.images_in_batches * len(loader.views) if order.repetition.with_order else slots
    else:
        identity = {'forms': VARIANTS, **identity}
        slots = used = loader.n_slots
    fields = ('logits', *needs) if teacher.has_classifier else needs
    return Layout(folder, stem, identity, _encodings(opt, fields, probe(teacher, data.image_size)), slots, used,
                  accuracy_file, min(opt.cache_epochs, opt.epochs) if is_repeated else None)


def _encodings(opt, fields, outputs):
    """field -> its encoding. outputs: the teacher's, for their widths."""
    widths = {field: getattr(outputs, field).shape[1] for field in CACHED_OUTPUTS if field in fields}
    if opt.cache_topk is None:
        return {field: Numbers(width) for field, width in widths.items()}
    if 'logits' not in widths:
        raise UserError(f'--cache_topk {opt.cache_topk}: without a classifier the teacher has no logits; leave it out')
    classes = widths.pop('logits')
    if opt.cache_topk != ALL and opt.cache_topk >= classes:
        raise UserError(f'--cache_topk {opt.cache_topk}: the data have {classes} classes; give less, or {ALL}')
    return {'logits': Probabilities(classes, None if opt.cache_topk == ALL else opt.cache_topk),
            **{field: Numbers(width, np.float16) for field, width in widths.items()}}


def augmentation_settings(opt, loader) -> dict:
    """The options that determine the augmentation of repeated epochs: name -> value."""
    names = ('image_size', 'crop', 'fit', *DEFAULTS, 'aa', 'reprob', 'mixup', 'cutmix')
    identity = {name: getattr(opt, name) for name in names}
    identity |= {'views': loader.views, 'cache_seed': loader.order.repetition.seed}
    if loader.order.repetition.with_order:
        identity |= {'batch_size': loader.batch_size, 'processes': distributed.world_size(),
                  'images in batches': loader.order.images_in_batches, 'device': loader.device.type}
    return identity


def outputs_checksum(teacher) -> int:
    """A checksum of all that determines a net's outputs: weights, preprocessing, class order, code of a user's file."""
    description = ''.join(str(getattr(teacher, name, '')) for name in ('inputs', 'class_order', 'code_checksum'))
    return zlib.crc32(description.encode(), weights_checksum(teacher))


def cache_bytes(opt, needs: tuple, teacher: nn.Module, data) -> int:
    """The size of all files when full; 0 without --teacher_cache. Raises UserError."""
    if not opt.teacher_cache:
        return 0
    layout = make_layout(opt, needs, teacher, data)
    return sum(map(layout.bytes, layout.encodings))
