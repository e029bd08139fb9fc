"""--teacher_cache: the teacher's outputs for each augmentation variant of each training image, cached in files.

They are computed when they are first needed, and read from then on. A slot is the number of a variant of an image,
index * VARIANTS + variant. A file holds one field of models.base.Outputs.
"""
import contextlib
import errno
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helper import distributed
from helper.checkpoint import weights_checksum
from helper.cli import readable_bytes
from helper.errors import UserError, printable
from helper.files import read_json, write_json
from helper.loops import SPLITS
from helper.run_folder import folder_name
from models.base import Outputs, probe

from .cache_file import CacheFile, file_bytes
from .memory import VARIANTS, MemoryLoader

CACHED_OUTPUTS = ('logits', 'embedding')    # the fields of models.base.Outputs that can be cached, a file each
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TeacherCache:
    """The outputs of one teacher for the training images of one data set, of the fields that a method needs."""

    def __init__(self, files: dict[str, CacheFile], device: torch.device, accuracy_file: Path, checksums: dict,
                 accuracy_key: str = 'test_acc'):
        """files: by field. accuracy_file: JSON with the teacher's accuracy for these checksums, if it has been
        measured."""
        self.files, self.device = files, device
        self.accuracy_file, self.checksums, self.accuracy_key = accuracy_file, checksums, accuracy_key
        self.accuracy = distributed.broadcast(self._read_accuracy)
        self.writable = all(file.writable for file in files.values())       # whether new outputs are cached
        self.device_copy, self.unwritten = None, []
        if device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * sum(file.bytes for file in files.values()) < free:
                self.copy_to_device()

    def copy_to_device(self) -> None:
        """Keep a copy of all outputs in the device's memory from now on."""
        self.is_copied = np.zeros(next(iter(self.files.values())).slots, bool)
        self.device_copy = {field: torch.zeros(file.slots, file.width, device=self.device)
                            for field, file in self.files.items()}
        slots = np.flatnonzero(self._in_files(np.arange(len(self.is_copied))))
        for part in np.array_split(slots, 1 + len(slots) // 10**5):
            self._copy(part)

    def _copy(self, slots):
        for field, file in self.files.items():
            self.device_copy[field][self.to_device(slots)] = self.to_device(file.read(slots))
        self.is_copied[slots] = True

    def to_device(self, array: np.ndarray) -> Tensor:
        """The array as a tensor on the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    @property
    def full(self) -> bool:
        """Whether all outputs are cached."""
        return all(file.count() == file.slots for file in self.files.values())

    def _in_files(self, slots):
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
            return {field: self.to_device(file.read(slots)) for field, file in self.files.items()}
        rows = self.to_device(slots)
        return {field: values[rows] for field, values in self.device_copy.items()}

    def put(self, slots: np.ndarray, outputs: dict[str, Tensor]) -> None:
        """Cache outputs, which are on the device. flush() writes those of a GPU to the files."""
        if self.device_copy is not None:
            rows = self.to_device(slots)
            for field, values in self.device_copy.items():
                values[rows] = outputs[field]
            self.is_copied[slots] = True
        if self.writable:
            self.unwritten.append((slots, outputs))
        if self.device.type == 'cpu':
            self.flush()

    def flush(self) -> None:
        """Write what put() has collected, after waiting for the device. Nothing more is written to a full disk."""
        unwritten, self.unwritten = self.unwritten, []
        try:
            for slots, outputs in unwritten:
                for field, file in self.files.items():
                    file.write(slots, outputs[field].cpu().numpy())
        except OSError as error:
            self.writable = False
            print(f'--teacher_cache: {self}: no more outputs are cached ({error.strerror})')

    def _read_accuracy(self):
        """The accuracy in the accuracy file; None if it has none for this teacher and these images."""
        with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):       # missing or damaged
            content = read_json(self.accuracy_file, str(self.accuracy_file))
            differing = [name for name, value in self.checksums.items() if content.get(name) != value]
            if differing:
                print(f'{printable(self.accuracy_file)}: is of another {" and ".join(differing)}; the teacher is '
                      f'measured anew')
                return None
            accuracy = content[self.accuracy_key]
            return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 100 else None
        return None

    def save_accuracy(self, accuracy: float) -> None:
        """Save the teacher's top-1 accuracy for later runs, if the file can be written."""
        if distributed.is_main() and self.writable:
            with contextlib.suppress(UserError):
                write_json(self.accuracy_file, {**self.checksums, self.accuracy_key: accuracy})

    def __str__(self):
        return ', '.join(f'{printable(file.path)} ({int(1000 * file.count() / file.slots) / 10:g} % of '
                         f'{readable_bytes(file.bytes)})' for file in self.files.values())


class TeacherOutputLoader:
    """A loader of (images, target, index, models.base.Outputs); fields that are not cached are None.

    teacher_outputs(images) -> Outputs computes what the cache lacks.
    """

    def __init__(self, loader: MemoryLoader, cache: TeacherCache, teacher_outputs: Callable):
        self.loader, self.cache, self.teacher_outputs = loader, cache, teacher_outputs
        loader.with_slots = True

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            for images, target, index, slots in self.loader:
                yield images, target, index, self.outputs(images, slots.numpy())
        finally:
            self.cache.flush()

    def outputs(self, images: Tensor, slots: np.ndarray) -> Outputs:
        """The outputs for a batch, from the cache or else from the teacher."""
        is_cached = self.cache.has(slots)
        if is_cached.all():
            fields = self.cache.get(slots)
        elif not is_cached.any():
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
        fields = {field: getattr(out, field).float()[:len(slots)] for field in self.cache.files}
        self.cache.put(slots, fields)
        return fields


def _widths(opt, needs, teacher, data):
    """Cached field -> its width. Raises UserError if the images do not fit in memory."""
    if not isinstance(data.train_loader, MemoryLoader):
        raise UserError(f'--teacher_cache {opt.teacher_cache}: the images do not fit in memory, and the outputs for '
                        f'their variants would be many more; leave it out')
    out = probe(teacher, data.image_size)
    return {field: getattr(out, field).shape[1] for field in CACHED_OUTPUTS if field == 'logits' or field in needs}


def cache_bytes(opt, needs: tuple, teacher: nn.Module, data) -> int:
    """The size of the files of open_cache when full; 0 without --teacher_cache. Raises UserError."""
    if not opt.teacher_cache:
        return 0
    return sum(file_bytes(data.n_train * VARIANTS, width) for width in _widths(opt, needs, teacher, data).values())


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
    widths, teacher_checksum = _widths(opt, needs, teacher, data), outputs_checksum(teacher)
    folder, images_checksum, loader = Path(opt.teacher_cache), data.train_loader.checksum(), data.selection_loader
    stem = f'{folder_name(opt.model_t)}_{folder_name(opt.dataset)}_{teacher_checksum:08x}_{images_checksum:08x}'
    facts = {'forms': VARIANTS, 'teacher (checksum)': teacher_checksum, 'images (checksum)': images_checksum}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {field: CacheFile(folder / f'{stem}_{field}.cache', {'kind': field, **facts},
                                  data.n_train * VARIANTS, width) for field, width in widths.items()}
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise UserError(f'--teacher_cache {opt.teacher_cache}: {error.filename or folder}: cannot be used '
                            f'({error.strerror}); give another folder') from error
        files = None
    if not all(distributed.gather(files is not None)):
        print(f'--teacher_cache {printable(folder)}: the disk is full, so no outputs are cached')
        return None
    checksums = {f'{SPLITS[data.selection_split]} set (checksum)': zlib.crc32(loader.target.cpu().numpy(),
                                                                              loader.checksum()),
                 'teacher (checksum)': teacher_checksum}
    cache = TeacherCache(files, device, folder / f'{stem}.json', checksums, f'{data.selection_split}_acc')
    needed, free = sum(file.needed_bytes() for file in files.values()), shutil.disk_usage(folder).free
    is_full = cache.full
    cache.writable &= is_full or needed < free
    print(f'teacher cache: {cache}')
    if not is_full:
        room = f'another {readable_bytes(needed)} of {readable_bytes(free)} free'
        print(f'teacher cache: it will take {room}' if cache.writable else
              f'teacher cache: no more outputs are cached: it would take {room}, or may not be written')
    return cache
