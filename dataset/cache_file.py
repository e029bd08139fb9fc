"""The file of the teacher's answers: shared by processes, filled in parts, and never half-believed."""
import contextlib
import errno
import json
import mmap
import os
import stat
import zlib
from pathlib import Path

import numpy as np

from helper.errors import UserError
from helper.files import locked

HEADER = 4096                       # bytes before the checksums


def values_at(slots: int) -> int:
    """The offset of the cached outputs, after the header and a checksum of each, in whole blocks."""
    return HEADER + -(-4 * slots // HEADER) * HEADER


def file_bytes(slots: int, width: int) -> int:
    """The size of a full file."""
    return values_at(slots) + slots * 4 * width


class CacheFile:
    """One kind of answer to `slots` slots, float32 (slots, width), in a file that processes share.

    The file holds a header, a checksum of each answer (0: not there yet), and the answers. An answer is written once,
    under a lock, and its checksum after it: a process that is killed in between leaves it out. The file is sparse: it
    takes room as it is filled. Answers that are there are read by a memory map. All else goes without one: a full disk
    would end a process that writes into a map, and on some file systems one that reads what was never written.
    """

    def __init__(self, path: Path, facts: dict, slots: int, width: int):
        """Opens the file, or makes an empty one. facts: what must be the same for the answers to be the same.

        Raises UserError for a file that is damaged or holds something else, OSError for one that cannot be made.
        """
        self.path, self.slots, self.width = path, slots, width
        self.values_at, self.bytes = values_at(slots), file_bytes(slots, width)
        self.header = json.dumps({'teacher cache': 1, 'slots': slots, 'width': width, **facts}).encode().ljust(HEADER)
        self.seed = zlib.crc32(self.header)
        self.writable = os.access(path, os.W_OK) or not os.path.exists(path)
        # Made if it is not there, never cut, and without waiting for the other end of a pipe.
        flags = os.O_RDWR | os.O_CREAT if self.writable else os.O_RDONLY
        flags |= getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)
        self.file = os.fdopen(os.open(path, flags, 0o644), 'r+b' if self.writable else 'rb', buffering=0)
        if not stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
            raise UserError(f'--teacher_cache: {path}: is no file; remove it, or give another folder')
        with locked(self.path) if self.writable else contextlib.nullcontext():
            self._check()
        self.map = mmap.mmap(self.file.fileno(), self.bytes, access=mmap.ACCESS_READ)
        if hasattr(mmap, 'MADV_WILLNEED'):      # read it ahead: later accesses are single pages all over the file
            self.map.madvise(mmap.MADV_WILLNEED)
        self.values = np.frombuffer(self.map, np.float32, slots * width, self.values_at).reshape(slots, width)

    def _check(self):
        """Write the header of a new file, compare that of another. Sets `checksums`, as they are now."""
        found = self._read(0, HEADER)
        new = self.writable and not found.strip(b'\0')      # or its process was killed before it wrote the header
        if new:
            self.file.truncate(self.bytes)
        elif found != self.header:
            raise UserError(f'--teacher_cache: {self.path}: {_difference(found, self.header)}; remove it, or give '
                            f'another folder')
        self._check_size()
        self.count()
        if new and self.checksums.any():
            raise UserError(f'--teacher_cache: {self.path}: is damaged, it has answers and no header; remove it')
        if new:
            self._write(0, self.header)

    def _check_size(self):
        size = os.fstat(self.file.fileno()).st_size
        if size != self.bytes:
            raise UserError(f'--teacher_cache: {self.path}: is damaged, it has {size:,} bytes instead of '
                            f'{self.bytes:,}; remove it')

    def count(self) -> int:
        """How many answers are there, also by other processes."""
        self.checksums = np.frombuffer(self._read(HEADER, 4 * self.slots), np.uint32).copy()
        return int(np.count_nonzero(self.checksums))

    def to_come(self) -> int:
        """Bytes of the disk that the file will still take."""
        there = os.fstat(self.file.fileno())
        return max(0, self.bytes - getattr(there, 'st_blocks', 0) * 512)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Which of these answers are there, bool (N,)."""
        for slot in slots[self.checksums[slots] == 0].tolist():     # another process may have written it
            self.checksums[slot] = int.from_bytes(self._read(HEADER + 4 * slot, 4), 'little')
        return self.checksums[slots] != 0

    def read(self, slots: np.ndarray) -> np.ndarray:
        """float32 (N, width) of answers that are there. Raises UserError for one that is not what was written."""
        self._check_size()      # a map of a file that was cut would end the process
        values = self.values[slots]
        for slot, value, checksum in zip(slots.tolist(), values, self.checksums[slots].tolist(), strict=True):
            if self._checksum(slot, value) != checksum:
                raise UserError(f'--teacher_cache: {self.path}: is damaged, answer {slot} is not what was written; '
                                f'remove it')
        return values

    def write(self, slots: np.ndarray, values: np.ndarray) -> None:
        """Keep answers that are not there yet. Raises OSError when the disk is full; what is there stays."""
        values = np.ascontiguousarray(values, np.float32)
        with locked(self.path):
            new = ~self.has(slots)
            for slot, value in zip(slots[new].tolist(), values[new], strict=True):
                checksum = self._checksum(slot, value)
                self._write(self.values_at + slot * 4 * self.width, value.tobytes())
                self._write(HEADER + slot * 4, checksum.to_bytes(4, 'little'))
                self.checksums[slot] = checksum

    def _checksum(self, slot, value) -> int:
        return zlib.crc32(value, self.seed ^ slot) or 1

    def _read(self, offset, count) -> bytes:
        self.file.seek(offset)
        return self.file.read(count)

    def _write(self, offset, content):
        self.file.seek(offset)
        if self.file.write(content) != len(content):        # a disk that became full took only a part
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _difference(found, header):
    """What another header says, for a person."""
    try:
        found, own = json.loads(found), json.loads(header)
        differ = [f'{name} {found[name]}, now {value}' for name, value in own.items() if found[name] != value]
        return f'belongs to something else ({"; ".join(differ)})'
    except (ValueError, TypeError, KeyError):
        return 'is no teacher cache, or its beginning is damaged'
