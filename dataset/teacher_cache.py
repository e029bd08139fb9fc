"""--teacher_cache: what the teacher answers to every form of every training image, kept in files for all runs with it.

A crop of 9 x 9 places and a flip leave 162 forms of a small image, and the frozen teacher gives each of them the same
logits in every epoch and in every run. An answer is kept when it is first asked for, and read from then on.

A slot is the number of an image in a form, index * VARIANTS + form. A kind of answer is a field of models.base.Outputs.
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
from helper.run_folder import folder_name
from models.base import Outputs, probe

from .cache_file import CacheFile, file_bytes
from .memory import VARIANTS, MemoryLoader

CACHED_OUTPUTS = ('logits', 'embedding')   # the kinds that are kept, a file each
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class TeacherCache:
    """The answers of one teacher to the training images of one data set, of the kinds that a method asks for."""

    def __init__(self, files: dict[str, CacheFile], device: torch.device, accuracy_file: Path, checksums: dict):
        """files: by kind. device: where answers are wanted; a GPU keeps a copy in its memory if it fits.

        accuracy_file: JSON with the teacher's accuracy, if it was measured before. checksums: of the teacher and of the
        test images, which that file must have too.
        """
        self.files, self.device = files, device
        self.accuracy_file, self.checksums = accuracy_file, checksums
        self.accuracy = distributed.broadcast(self._known_accuracy)
        self.writable = all(file.writable for file in files.values())       # whether new answers are kept
        self.copy, self.unwritten = None, []
        if device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * sum(file.bytes for file in files.values()) < free:
                self.copy_to_device()

    def copy_to_device(self) -> None:
        """Keep all answers in the memory of the device from here on."""
        self.copied = np.zeros(next(iter(self.files.values())).slots, bool)
        self.copy = {kind: torch.zeros(file.slots, file.width, device=self.device)
                     for kind, file in self.files.items()}
        there = np.flatnonzero(self._in_files(np.arange(len(self.copied))))
        for slots in np.array_split(there, 1 + len(there) // 10**5):
            self._copy(slots)

    def _copy(self, slots):
        for kind, file in self.files.items():
            self.copy[kind][self._place(slots)] = self._place(file.read(slots))
        self.copied[slots] = True

    def _place(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    @property
    def full(self) -> bool:
        """Whether no answer is missing."""
        return all(file.count() == file.slots for file in self.files.values())

    def _in_files(self, slots):
        return np.logical_and.reduce([file.has(slots) for file in self.files.values()])

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Which slots are answered in every kind, bool (N,)."""
        if self.copy is None:
            return self._in_files(slots)
        late = slots[~self.copied[slots]]
        late = late[self._in_files(late)]       # by another process
        if len(late):
            self._copy(late)
        return self.copied[slots]

    def get(self, slots: np.ndarray) -> dict[str, Tensor]:
        """kind -> float32 (N, width) on the device."""
        if self.copy is not None:
            places = self._place(slots)
            return {kind: values[places] for kind, values in self.copy.items()}
        return {kind: self._place(file.read(slots)) for kind, file in self.files.items()}

    def put(self, slots: np.ndarray, answers: dict[str, Tensor]) -> None:
        """Keep answers, which are on the device. From a GPU they reach the files by flush()."""
        if self.copy is not None:
            places = self._place(slots)
            for kind, values in self.copy.items():
                values[places] = answers[kind]
            self.copied[slots] = True
        if self.writable:
            self.unwritten.append((slots, answers))
        if self.device.type == 'cpu':
            self.flush()

    def flush(self) -> None:
        """Write what put() has collected, which waits for the device. A full disk ends the filling, with one line."""
        unwritten, self.unwritten = self.unwritten, []
        try:
            for slots, answers in unwritten:
                for kind, file in self.files.items():
                    file.write(slots, answers[kind].cpu().numpy())
        except OSError as error:
            self.writable = False
            print(f'--teacher_cache: {self}: no more answers are kept ({error.strerror})')

    def _known_accuracy(self):
        if not self.accuracy_file.exists():
            return None
        try:
            found = read_json(self.accuracy_file, str(self.accuracy_file))
            differ = [name for name, value in self.checksums.items() if found.get(name) != value]
            if differ:
                print(f'{printable(self.accuracy_file)}: is of another {" and ".join(differ)}; the teacher is measured '
                      f'anew')
            accuracy = None if differ else found['test_acc']
            return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 100 else None
        except (UserError, TypeError, KeyError, AttributeError):
            return None

    def save_accuracy(self, accuracy: float) -> None:
        """The teacher's top-1 on the test images, for later runs, if it can be written."""
        if distributed.is_main() and self.writable:
            with contextlib.suppress(UserError):
                write_json(self.accuracy_file, {**self.checksums, 'test_acc': accuracy})

    def __str__(self):
        """The files, how far they are filled, and their size when full."""
        return ', '.join(f'{printable(file.path)} ({int(1000 * file.count() / file.slots) / 10:g} % of '
                         f'{readable_bytes(file.bytes)})' for file in self.files.values())


class TeacherOutputLoader:
    """A training loader whose batches also have the teacher's answers: (images, target, index, {kind: (B, width)}).

    ask(images) -> models.base.Outputs is called for the images whose answers are not there yet.
    """

    def __init__(self, loader: MemoryLoader, cache: TeacherCache, ask: Callable):
        self.loader, self.cache, self.ask = loader, cache, ask
        loader.with_slots = True

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            for images, target, index, slots in self.loader:
                out_t = self.answers(images, slots.numpy())
                yield images, target, index, Outputs(**dict.fromkeys(Outputs._fields) | out_t)
        finally:
            self.cache.flush()

    def answers(self, images: Tensor, slots: np.ndarray) -> dict[str, Tensor]:
        """Of the cache, and of the teacher for what it does not have."""
        there = self.cache.has(slots)
        if there.all():
            return self.cache.get(slots)
        new, old = np.flatnonzero(~there), np.flatnonzero(there)
        asked = new
        if len(old):
            # An algorithm of a library is prepared for each size of batch that it meets: let there be eight. The first
            # images are repeated until the size is one of them.
            step = max(1, self.loader.batch_size // 8)
            asked = np.resize(new, min(len(slots), -(-len(new) // step) * step))
            images = images[self.cache._place(asked)]
        out = self.ask(images)
        found = {kind: getattr(out, kind).float()[:len(new)] for kind in self.cache.files}
        self.cache.put(slots[new], found)
        if not len(old):
            return found
        kept = self.cache.get(slots[old])
        order = self.cache._place(np.concatenate([new, old]).argsort())     # new before old -> the order of the batch
        return {kind: torch.cat([found[kind], kept[kind]])[order] for kind in found}


def _widths(opt, needs, teacher, data):
    """kind of cached output -> its width. Raises UserError if the images do not fit in memory."""
    if not isinstance(data.train_loader, MemoryLoader):
        raise UserError(f'--teacher_cache {opt.teacher_cache}: the images do not fit in memory, and their answers '
                        f'would be many more; leave it out')
    out = probe(teacher, data.image_size)
    return {kind: getattr(out, kind).shape[1] for kind in CACHED_OUTPUTS if kind == 'logits' or kind in needs}


def cache_bytes(opt, needs: tuple, teacher: nn.Module, data) -> int:
    """The size of the files of open_cache when full; 0 without --teacher_cache. Raises UserError."""
    if not opt.teacher_cache:
        return 0
    return sum(file_bytes(data.n_train * VARIANTS, width) for width in _widths(opt, needs, teacher, data).values())


def outputs_checksum(teacher):
    """A checksum of everything that determines the teacher's outputs: its weights, the preprocessing of the loader's
    images, the class order, and the code of a net of a user's file."""
    more = ''.join(str(getattr(teacher, name, '')) for name in ('inputs', 'class_order', 'code_checksum'))
    return zlib.crc32(more.encode(), weights_checksum(teacher))


def open_cache(opt, needs: tuple, teacher: nn.Module, data, device: torch.device) -> TeacherCache | None:
    """The cache of `teacher` in the folder opt.teacher_cache; None without one.

    needs: the kinds that are kept beside the logits. Says what is there and what is to come. On a disk that has no room
    for it nothing more is kept. With several processes all call it. Raises UserError.
    """
    if not opt.teacher_cache:
        return None
    widths, teacher_checksum = _widths(opt, needs, teacher, data), outputs_checksum(teacher)
    folder, images_checksum, tests = Path(opt.teacher_cache), data.train_loader.checksum(), data.test_loader
    stem = f'{folder_name(opt.model_t)}_{folder_name(opt.dataset)}_{teacher_checksum:08x}_{images_checksum:08x}'

    def open_file(kind):
        return CacheFile(folder / f'{stem}_{kind}.cache',
                          {'kind': kind, 'forms': VARIANTS, 'teacher (checksum)': teacher_checksum,
                           'images (checksum)': images_checksum}, data.n_train * VARIANTS, widths[kind])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        files = {kind: open_file(kind) for kind in widths}
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise UserError(f'--teacher_cache {opt.teacher_cache}: {error.filename or folder}: cannot be used '
                            f'({error.strerror}); give another folder') from error
        files = None
    if not all(distributed.gather(files is not None)):
        print(f'--teacher_cache {printable(folder)}: the disk is full, so no answers are kept')
        return None
    checksums = {'test set (checksum)': zlib.crc32(tests.target.cpu().numpy(), tests.checksum()),
                 'teacher (checksum)': teacher_checksum}
    cache = TeacherCache(files, device, folder / f'{stem}.json', checksums)
    full = cache.full
    to_come, free = sum(file.to_come() for file in files.values()), shutil.disk_usage(folder).free
    cache.writable &= full or to_come < free
    print(f'teacher cache: {cache}')
    if not full:
        print(f'teacher cache: it will take another {readable_bytes(to_come)} of {readable_bytes(free)} free'
              if cache.writable else
              f'teacher cache: no more answers are kept: it would take another {readable_bytes(to_come)} of '
              f'{readable_bytes(free)} free, or may not be written')
    return cache
