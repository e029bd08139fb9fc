"""--teacher_cache: the teacher's outputs for each augmentation variant of each training image, cached in files.

They are computed when they are first needed, and read from then on. A file holds one field of models.base.Outputs, in
numbered slots. There are two ways to number them:

- small images with padded crops have VARIANTS variants: slot = index * VARIANTS + variant, in one file;
- with --cache_epochs each repeated epoch has files of its own: slot = index, and for a second view index + n.
"""
import contextlib
import errno
import functools
import shutil
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helper import distributed
from helper.checkpoint import weights_checksum
from helper.cli import ALL, readable_bytes
from helper.errors import UserError, printable
from helper.files import read_json, write_json
from helper.loops import SPLITS
from helper.run_folder import folder_name
from models.base import Outputs, probe

from .cache_encoding import Numbers, Probabilities
from .cache_file import CacheFile, file_bytes
from .crop import DEFAULTS
from .memory import VARIANTS, MemoryLoader

CACHED_OUTPUTS = ('logits', 'embedding')    # the fields of models.base.Outputs that can be cached, a file each
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@dataclass
class Layout:
    """The files of a cache: one for each field, with --cache_epochs one for each field and repeated epoch."""

    folder: Path
    stem: str           # of the file names
    facts: dict         # name -> value, in the header of each file
    encodings: dict     # field -> how its outputs are stored, see cache_encoding
    slots: int          # outputs in a file
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
        return CacheFile(self.path(field, repeated_epoch), {'kind': field, **self.facts, **epoch}, self.slots,
                         encoding.width, encoding.dtype)

    def usage(self) -> tuple[dict[str, float], int]:
        """(field -> cached share of its outputs, bytes of disk space that the files will still take)."""
        shares, needed = {}, 0
        for field in self.encodings:
            count = 0
            for repeated_epoch in self.repeated_epochs:
                if self.path(field, repeated_epoch).exists():
                    file = self.open(field, repeated_epoch)
                    count, needed = count + file.count(), needed + file.needed_bytes()
                else:
                    needed += self.bytes(field) // len(self.repeated_epochs)
            shares[field] = count / (len(self.repeated_epochs) * self.slots)
        return shares, needed


class TeacherCache:
    """The outputs of one teacher for the training images of one data set, of the fields that a method needs.

    Only the files of one repeated epoch are open at a time.
    """

    def __init__(self, layout: Layout, device: torch.device, checksums: dict, accuracy_key: str = 'test_acc'):
        """checksums: those for which an accuracy of the teacher counts. Raises as Layout.open."""
        self.layout, self.device = layout, device
        self.checksums, self.accuracy_key = checksums, accuracy_key
        self.accuracy = distributed.broadcast(self._read_accuracy)
        self.writable, self.unwritten = True, []    # writable: whether new outputs are cached
        self._open(0)

    def _open(self, repeated_epoch):
        self.repeated_epoch, self.device_copy = repeated_epoch, None
        self.files = {field: self.layout.open(field, repeated_epoch) for field in self.layout.encodings}
        for file in self.files.values():
            file.read_ahead()
            self.writable &= file.writable
        if self.device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(self.device)
            if 2 * sum(file.bytes for file in self.files.values()) < free:
                self.copy_to_device()

    def select(self, repeated_epoch: int) -> None:
        """Open the files of this repeated epoch. If they cannot be made, nothing more is cached."""
        if repeated_epoch == self.repeated_epoch:
            return
        try:
            self._open(repeated_epoch)
        except OSError as error:
            if self.writable:
                print(f'--teacher_cache: {printable(self.layout.folder)}: no more outputs are cached '
                      f'({error.strerror})')
            self.files, self.writable = {}, False

    def copy_to_device(self) -> None:
        """Keep a copy of all open outputs in the device's memory from now on."""
        self.is_copied = np.zeros(self.layout.slots, bool)
        self.device_copy = {field: self.to_device(np.zeros((file.slots, file.width), file.dtype))
                            for field, file in self.files.items()}
        slots = np.flatnonzero(self._in_files(np.arange(len(self.is_copied))))
        for chunk in np.array_split(slots, 1 + len(slots) // 10**5):
            self._copy(chunk)

    def _copy(self, slots):
        for field, file in self.files.items():
            self.device_copy[field][self.to_device(slots)] = self.to_device(file.read(slots))
        self.is_copied[slots] = True

    def to_device(self, array: np.ndarray) -> Tensor:
        """The array as a tensor on the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    @property
    def full(self) -> bool:
        """Whether all outputs of all parts are cached."""
        return all(share == 1 for share in self.layout.usage()[0].values())

    def _in_files(self, slots):
        if not self.files:
            return np.zeros(slots.shape, bool)
        return np.all([file.has(slots) for file in self.files.values()], axis=0)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Whether all fields of each slot are cached, bool (N,)."""
        if self.device_copy is None:
            return self._in_files(slots)
        new = slots[~self.is_copied[slots]]
        new = new[self._in_files(new)]      # written by another process
        if len(new):
            self._copy(new)
        return self.is_copied[slots]

    def get(self, slots: np.ndarray) -> dict[str, Tensor]:
        """field -> float32 (N, width) on the device, of slots that are cached. Raises UserError for a damaged file."""
        if self.device_copy is None:
            stored = {field: self.to_device(file.read(slots)) for field, file in self.files.items()}
        else:
            rows = self.to_device(slots)
            stored = {field: values[rows] for field, values in self.device_copy.items()}
        return {field: self.layout.encodings[field].decode(values) for field, values in stored.items()}

    def put(self, slots: np.ndarray, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cache outputs, which are on the device, and return them as get() would, after rounding.

        flush() writes those of a GPU to the files.
        """
        encodings = self.layout.encodings
        stored = {field: encoding.encode(outputs[field]) for field, encoding in encodings.items()}
        if self.device_copy is not None:
            rows = self.to_device(slots)
            for field, values in self.device_copy.items():
                values[rows] = stored[field]
            self.is_copied[slots] = True
        if self.writable:
            self.unwritten.append((slots, stored))
        if self.device.type == 'cpu':
            self.flush()
        return {field: encoding.decode(stored[field]) for field, encoding in encodings.items()}

    def flush(self) -> None:
        """Write what put() has collected, after waiting for the device. Nothing more is written to a full disk."""
        unwritten, self.unwritten = self.unwritten, []
        try:
            for slots, stored in unwritten:
                for field, file in self.files.items():
                    file.write(slots, stored[field].cpu().numpy())
        except OSError as error:
            self.writable = False
            print(f'--teacher_cache: {self}: no more outputs are cached ({error.strerror})')

    def _read_accuracy(self):
        """The accuracy in the accuracy file; None if it has none for this teacher and these images."""
        file = self.layout.accuracy_file
        with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):       # missing or damaged
            content = read_json(file, str(file))
            differing = [name for name, value in self.checksums.items() if content.get(name) != value]
            if differing:
                print(f'{printable(file)}: is of another {" and ".join(differing)}; the teacher is '
                      f'measured anew')
                return None
            accuracy = content[self.accuracy_key]
            return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 100 else None
        return None

    def save_accuracy(self, accuracy: float) -> None:
        """Save the teacher's top-1 accuracy for later runs, if the file can be written."""
        if distributed.is_main() and self.writable:
            with contextlib.suppress(UserError):
                write_json(self.layout.accuracy_file, {**self.checksums, self.accuracy_key: accuracy})

    def __str__(self):
        layout = self.layout
        more = f' and so on, {layout.epochs} files' if (layout.epochs or 1) > 1 else ''
        return ', '.join(f'{printable(layout.path(field, 0))}{more} ({int(1000 * share) / 10:g} % of '
                         f'{readable_bytes(layout.bytes(field))})' for field, share in layout.usage()[0].items())


class TeacherOutputLoader:
    """A loader of (images, target, index, teacher outputs); fields of Outputs that are not cached are None.

    With several views, the teacher outputs are a list, an Outputs for each view. teacher_outputs(images) ->
    models.base.Outputs computes what the cache lacks. loader: has batches_with_slots(), which yields (batch, slots).
    """

    def __init__(self, loader, cache: TeacherCache, teacher_outputs: Callable):
        self.loader, self.cache, self.teacher_outputs = loader, cache, teacher_outputs

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.cache.select(self.order.repeated_epoch)
        try:
            for (images, target, index), slots in self.loader.batches_with_slots():
                slots = slots.numpy()
                out_t = self.outputs(images, slots) if slots.ndim == 1 else \
                    [self.outputs(*view) for view in zip(images, slots, strict=True)]
                yield images, target, index, out_t
        finally:
            self.cache.flush()

    def outputs(self, images: Tensor, slots: np.ndarray) -> Outputs:
        """The outputs for a batch, from the cache or else from the teacher."""
        is_cached = self.cache.has(slots)
        if is_cached.all():
            fields = self.cache.get(slots)
        elif not is_cached[is_cached.argmin():].any():
            # If a killed process has stored the first ones, a smaller batch could round the others in another way.
            fields = self._compute(images, slots)
        else:
            missing, cached = np.flatnonzero(~is_cached), np.flatnonzero(is_cached)
            # Libraries prepare an algorithm for each batch size: allow eight sizes, and fill up with repeated images.
            step = max(1, self.loader.batch_size // 8)
            rows = np.resize(missing, min(len(slots), -(-len(missing) // step) * step))
            new = self._compute(images[self.cache.to_device(rows)], slots[missing])
            old = self.cache.get(slots[cached])
            order = self.cache.to_device(np.concatenate([missing, cached]).argsort())
            fields = {field: torch.cat([new[field], old[field]])[order] for field in new}
        return Outputs(**dict.fromkeys(Outputs._fields) | fields)

    def _compute(self, images, slots):
        """The teacher's outputs for the first len(slots) images, which are cached too."""
        out = self.teacher_outputs(images)
        return self.cache.put(slots, {field: getattr(out, field).float()[:len(slots)]
                                      for field in self.cache.layout.encodings})


def make_layout(opt, needs: tuple, teacher: nn.Module, data) -> Layout:
    """The files for this teacher, these images and their augmentation. needs: the fields beside the logits.

    Raises UserError.
    """
    loader, repetition = data.train_loader, data.train_loader.order.repetition
    if repetition is None and not isinstance(loader, MemoryLoader):
        raise UserError(f'--teacher_cache {opt.teacher_cache}: the images do not fit in memory, and the outputs for '
                        f'their variants would be many more; give --cache_epochs {opt.epochs} or less, or leave it out')
    out, folder = probe(teacher, data.image_size), Path(opt.teacher_cache)
    encodings = {field: _encoding(opt, field, getattr(out, field).shape[1])
                 for field in CACHED_OUTPUTS if field == 'logits' or field in needs}
    facts = {'teacher (checksum)': outputs_checksum(teacher), 'images (checksum)': loader.checksum()}
    stem = '_'.join([folder_name(opt.model_t), folder_name(opt.dataset), *(f'{crc:08x}' for crc in facts.values())])
    layout = functools.partial(Layout, folder, encodings=encodings, accuracy_file=folder / f'{stem}.json')
    if opt.cache_topk is not None:
        facts['cache_topk'] = opt.cache_topk
        stem += f'_top{opt.cache_topk}'
    if repetition is None:
        return layout(stem, {'forms': VARIANTS, **facts}, slots=data.n_train * VARIANTS)
    facts |= augmentation_facts(opt, loader)
    stem += f'_{zlib.crc32(repr(facts).encode()):08x}'
    return layout(stem, facts, slots=data.n_train * len(loader.views), epochs=min(opt.cache_epochs, opt.epochs))


def _encoding(opt, field, width):
    if opt.cache_topk is None:
        return Numbers(width)
    if field != 'logits':
        return Numbers(width, np.float16)
    if opt.cache_topk == ALL:
        return Probabilities(width)
    if opt.cache_topk >= width:
        raise UserError(f'--cache_topk {opt.cache_topk}: the data have {width} classes; give less, or {ALL}')
    return Probabilities(width, opt.cache_topk)


def augmentation_facts(opt, loader) -> dict:
    """The options that determine the augmentation of repeated epochs: name -> value."""
    names = ('image_size', 'crop', 'fit', *DEFAULTS, 'aa', 'reprob', 'mixup', 'cutmix')
    facts = {name: getattr(opt, name) for name in names}
    facts |= {'views': loader.views, 'cache_seed': loader.order.repetition.seed}
    if loader.order.repetition.with_order:
        facts |= {'batch_size': loader.batch_size, 'processes': distributed.world_size()}
    return facts


def cache_bytes(opt, needs: tuple, teacher: nn.Module, data) -> int:
    """The size of the files of open_cache when full; 0 without --teacher_cache. Raises UserError."""
    if not opt.teacher_cache:
        return 0
    layout = make_layout(opt, needs, teacher, data)
    return sum(map(layout.bytes, layout.encodings))


def outputs_checksum(teacher) -> int:
    """A checksum of all that determines a net's outputs: weights, preprocessing, class order, code of a user's file."""
    facts = ''.join(str(getattr(teacher, name, '')) for name in ('inputs', 'class_order', 'code_checksum'))
    return zlib.crc32(facts.encode(), weights_checksum(teacher))


def open_cache(opt, needs: tuple, teacher: nn.Module, data, device: torch.device) -> TeacherCache | None:
    """The cache of `teacher` in opt.teacher_cache, whose state it prints; None without one. Raises UserError.

    needs: the fields to cache beside the logits. All processes must call it.
    """
    if not opt.teacher_cache:
        return None
    layout, folder = make_layout(opt, needs, teacher, data), Path(opt.teacher_cache)
    images_checksum = zlib.crc32(data.selection_labels.numpy(), data.selection_loader.checksum())
    checksums = {f'{SPLITS[data.selection_split]} set (checksum)': images_checksum,
                 'teacher (checksum)': layout.facts['teacher (checksum)']}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cache = TeacherCache(layout, device, checksums, f'{data.selection_split}_acc')
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise UserError(f'--teacher_cache {opt.teacher_cache}: {error.filename or folder}: cannot be used '
                            f'({error.strerror}); give another folder') from error
        cache = None
    if not all(distributed.gather(cache is not None)):
        print(f'--teacher_cache {printable(folder)}: the disk is full, so no outputs are cached')
        return None
    (shares, needed), free = layout.usage(), shutil.disk_usage(folder).free
    is_full = all(share == 1 for share in shares.values())
    cache.writable &= is_full or needed < free
    print(f'teacher cache: {cache}')
    if not is_full:
        room = f'another {readable_bytes(needed)} of {readable_bytes(free)} free'
        print(f'teacher cache: it will take {room}' if cache.writable else
              f'teacher cache: no more outputs are cached: it would take {room}, or may not be written')
    return cache
