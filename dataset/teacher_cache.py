"""--teacher_cache: what the teacher answers to every form of every training image, kept in files for all runs with it.

A crop of 9 x 9 places and a flip leave 162 forms of a small image, and the frozen teacher gives each of them the same
logits in every epoch and in every run. It is asked once; from then on the answer is read.
"""
import contextlib
import errno
import json
import mmap
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from helper import distributed
from helper.cli import readable_bytes
from helper.errors import UserError
from helper.files import locked, read_json, write_json

from .memory import FORMS, MemoryLoader

ANSWERS = ('logits', 'embedding')     # fields of models.base.Outputs that are kept, a file each
HEADER = 4096                       # bytes before the checksums


class AnswerFile:
    """One kind of answer to `slots` questions, float32 (slots, width), in a file that processes share.

    The file holds a header, a checksum of each answer (0: not there yet), and the answers. An answer is written once,
    under a lock, and its checksum after it: a process that is killed in between leaves it out. The file is sparse: it
    takes room as it is filled. It is read by a memory map, and written without one, because a full disk would end a
    process that writes into a map.
    """

    def __init__(self, path: Path, facts: dict, slots: int, width: int):
        """Opens the file, or makes an empty one. facts: what must be the same for the answers to be the same.

        Raises UserError for a file that is damaged, or that holds something else.
        """
        self.path, self.slots, self.width = path, slots, width
        self.bytes = slots * (4 + 4 * width)        # when full
        self.values_at = HEADER + -(-4 * slots // HEADER) * HEADER
        size = self.values_at + slots * 4 * width
        header = json.dumps({'teacher cache': 1, 'slots': slots, 'width': width, **facts}).encode().ljust(HEADER)
        try:
            self.file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, 'O_BINARY', 0), 0o644), 'r+b',
                                  buffering=0)
            with locked(self.file):
                found = self.file.read(HEADER)
                if not found.strip(b'\0'):      # new, or its process was killed before it wrote the header
                    self.file.truncate(size)
                    self._write(0, header)
                    found = header
            if found != header:
                raise UserError(f'--teacher_cache: {path}: {_difference(found, header)}; remove it, or give another '
                                f'folder')
            if (there := os.fstat(self.file.fileno()).st_size) != size:
                raise UserError(f'--teacher_cache: {path}: is damaged, it has {there:,} bytes instead of {size:,}; '
                                f'remove it')
            memory = mmap.mmap(self.file.fileno(), size, access=mmap.ACCESS_READ)
        except OSError as error:
            raise UserError(f'--teacher_cache: {path}: cannot be used ({error.strerror}); give a folder that you may '
                            f'write') from error
        if hasattr(mmap, 'MADV_WILLNEED'):      # read it ahead: later accesses are single pages all over the file
            memory.madvise(mmap.MADV_WILLNEED)
        self.checksums = np.frombuffer(memory, np.uint32, slots, HEADER)
        self.values = np.frombuffer(memory, np.float32, slots * width, self.values_at).reshape(slots, width)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Which of these answers are there, bool (N,)."""
        return self.checksums[slots] != 0

    def count(self) -> int:
        """How many answers are there."""
        return int(np.count_nonzero(self.checksums))

    def to_come(self) -> int:
        """Bytes of the disk that the file will still take."""
        there = os.fstat(self.file.fileno())
        taken = there.st_blocks * 512 if hasattr(there, 'st_blocks') else self.count() * 4 * (1 + self.width)
        return max(0, there.st_size - taken)

    def read(self, slots: np.ndarray) -> np.ndarray:
        """float32 (N, width). Raises UserError for an answer that is not what was written."""
        values, expected = self.values[slots], self.checksums[slots]
        for slot, value, checksum in zip(slots.tolist(), values, expected.tolist(), strict=True):
            if _checksum(slot, value) != checksum:
                raise UserError(f'--teacher_cache: {self.path}: is damaged, answer {slot} is not what was written; '
                                f'remove it')
        return values

    def write(self, slots: np.ndarray, values: np.ndarray) -> None:
        """Keep answers that are not there yet. Raises OSError when the disk is full; what is there stays."""
        values = np.ascontiguousarray(values, np.float32)
        with locked(self.file):
            new = ~self.has(slots)
            for slot, value in zip(slots[new].tolist(), values[new], strict=True):
                self._write(self.values_at + slot * 4 * self.width, value.data)
                self._write(HEADER + slot * 4, np.uint32(_checksum(slot, value)).tobytes())

    def _write(self, offset, content):
        self.file.seek(offset)
        if self.file.write(content) != memoryview(content).nbytes:      # what a full disk still took
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _checksum(slot, value) -> int:
    return zlib.crc32(value, slot) or 1


def _difference(found, header):
    """What another header says, for a person."""
    try:
        found, own = json.loads(found), json.loads(header)
        differ = [f'{name} {found.get(name)}, now {value}' for name, value in own.items() if found.get(name) != value]
        return f'belongs to something else ({"; ".join(differ)})'
    except (ValueError, AttributeError):
        return 'is no teacher cache, or its beginning is damaged'


class TeacherCache:
    """The answers of one teacher to the training images of one data set, of the kinds that a method asks for."""

    def __init__(self, files: dict[str, AnswerFile], device: torch.device, accuracy_file: Path, test_checksum: int):
        """files: by kind. device: where answers are wanted; a GPU keeps them in its memory if they fit.

        accuracy_file: JSON with the teacher's accuracy on the test images of this checksum, if it was measured before.
        """
        self.files, self.device = files, device
        self.accuracy_file, self.test_checksum = accuracy_file, test_checksum
        self.accuracy = distributed.broadcast(self._known_accuracy if distributed.is_main() else None)
        self.writable = True        # new answers are kept in the files
        self.near, self.unwritten = None, []
        if device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(device)
            if 2 * sum(file.bytes for file in files.values()) < free:
                self._bring_near()

    def _bring_near(self):
        """All answers so far onto the GPU, each checked."""
        self.near_has = self._has(np.arange(next(iter(self.files.values())).slots))
        self.near = {}
        for kind, file in self.files.items():
            self.near[kind] = torch.zeros(file.slots, file.width, device=self.device)
            for slots in np.array_split(np.flatnonzero(self.near_has), 1 + file.bytes // 2**28):
                places, values = (torch.from_numpy(part).to(self.device) for part in (slots, file.read(slots)))
                self.near[kind][places] = values

    @property
    def full(self) -> bool:
        """Whether no answer is missing."""
        return all(file.count() == file.slots for file in self.files.values())

    def _has(self, slots):
        return np.logical_and.reduce([file.has(slots) for file in self.files.values()])

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Which questions are answered in every kind, bool (N,)."""
        return self._has(slots) if self.near is None else self.near_has[slots]

    def get(self, slots: np.ndarray) -> dict[str, Tensor]:
        """kind -> float32 (N, width) on the device."""
        if self.near is not None:
            places = torch.from_numpy(slots).to(self.device, non_blocking=True)
            return {kind: values[places] for kind, values in self.near.items()}
        return {kind: torch.from_numpy(file.read(slots)).to(self.device, non_blocking=True)
                for kind, file in self.files.items()}

    def put(self, slots: np.ndarray, answers: dict[str, Tensor]) -> None:
        """Keep answers, on the device. From a GPU they reach the files by flush()."""
        if self.near is not None:
            places = torch.from_numpy(slots).to(self.device, non_blocking=True)
            for kind, values in self.near.items():
                values[places] = answers[kind]
            self.near_has[slots] = True
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
            accuracy = found['test_acc'] if found['test images (checksum)'] == self.test_checksum else None
            return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 100 else None
        except (UserError, TypeError, KeyError):
            return None

    def keep_accuracy(self, accuracy: float) -> None:
        """The teacher's top-1 on the test images, for later runs."""
        if distributed.is_main() and self.writable:
            write_json(self.accuracy_file, {'test images (checksum)': self.test_checksum, 'test_acc': accuracy})

    def __str__(self):
        """The files, how far they are filled, and their size when full."""
        return ', '.join(f'{file.path} ({100 * file.count() / file.slots:.4g} % of {readable_bytes(file.bytes)})'
                         for file in self.files.values())


class TaughtLoader:
    """A training loader whose batches also have the teacher's answers: (images, target, index, {kind: (B, width)}).

    ask(images) -> models.base.Outputs is called for the images whose answers are not there yet.
    """

    def __init__(self, loader: MemoryLoader, cache: TeacherCache, ask: Callable):
        self.loader, self.cache, self.ask = loader, cache, ask
        loader.gives_slots = True

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        try:
            for images, target, index, slots in self.loader:
                yield images, target, index, self.answers(images, slots.numpy())
        finally:
            self.cache.flush()

    def answers(self, images: Tensor, slots: np.ndarray) -> dict[str, Tensor]:
        """Of the cache, and of the teacher for what it does not have."""
        there = self.cache.has(slots)
        if there.all():
            return self.cache.get(slots)
        new, old = np.flatnonzero(~there), np.flatnonzero(there)
        # A few sizes of batches, not each: an algorithm of a library is prepared for each size that it meets.
        step = max(1, self.loader.batch_size // 8)
        places = np.resize(new, min(len(slots), -(-len(new) // step) * step))
        out = self.ask(images if len(places) == len(slots) == len(new) else images[self._place(places)])
        found = {kind: getattr(out, kind).float()[:len(new)] for kind in self.cache.files}
        self.cache.put(slots[new], found)
        if not len(old):
            return found
        places, kept = self._place(np.concatenate([new, old]).argsort()), self.cache.get(slots[old])
        return {kind: torch.cat([found[kind], kept[kind]])[places] for kind in found}

    def _place(self, numbers):
        return torch.from_numpy(numbers).to(self.cache.device, non_blocking=True)


def open_cache(opt, needs: tuple, teacher: nn.Module, checksum: int, data, device: torch.device) -> TeacherCache | None:
    """The cache of `teacher`, with this checksum of its weights, in the folder opt.teacher_cache; None without one.

    needs: the fields of its outputs that are kept beside the logits. Says what is there and what is to come. When the
    disk has no room for that, nothing more is kept. With several processes all call it. Raises UserError.
    """
    if not opt.teacher_cache:
        return None
    folder, images = Path(opt.teacher_cache), data.train_loader.checksum()
    with torch.no_grad():
        out = teacher.eval().outputs(torch.zeros(2, 3, data.image_size, data.image_size))
    stem = f'{opt.model_t}_{opt.dataset}_{checksum:08x}_{images:08x}'

    def open_all():
        with contextlib.suppress(OSError):      # which opening the files reports
            folder.mkdir(parents=True, exist_ok=True)
        return {kind: AnswerFile(folder / f'{stem}_{kind}.cache',
                                 {'kind': kind, 'forms': FORMS, 'teacher (checksum)': checksum,
                                  'images (checksum)': images}, data.n_train * FORMS, getattr(out, kind).shape[1])
                for kind in ANSWERS if kind == 'logits' or kind in needs}
    if distributed.is_main():
        files = open_all()
    distributed.gather(None)        # the first process has made the files
    if not distributed.is_main():
        files = open_all()
    cache = TeacherCache(files, device, folder / f'{stem}.json', data.test_loader.checksum())
    to_come, free = sum(file.to_come() for file in files.values()), shutil.disk_usage(folder).free
    cache.writable = cache.full or to_come < free
    print(f'teacher cache: {cache}' + ('' if cache.full else f'; it will take another {readable_bytes(to_come)} of '
          f'{readable_bytes(free)} free') + ('' if cache.writable else ': too little, so no more answers are kept'))
    return cache
