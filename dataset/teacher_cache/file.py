"""The file format of --teacher_cache: shared by processes, filled little by little, and checked when it is read."""
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

HEADER = 4096       # bytes before the checksums


def values_at(slots: int) -> int:
    """The offset of the outputs: after the header and a checksum of each, rounded up to whole blocks."""
    return HEADER + -(-4 * slots // HEADER) * HEADER


def file_bytes(slots: int, width: int, dtype=np.float32) -> int:
    """The size of a full file."""
    return values_at(slots) + slots * width * np.dtype(dtype).itemsize


class CacheFile:
    """The teacher's outputs for `slots` slots, (slots, width) of a type, in a sparse file that processes share.

    The file holds a header, a checksum of each output (0: not written yet), and the outputs. An output is written once,
    under a lock, and its checksum after it, so that a killed process leaves a valid file. Only outputs that have been
    written are read through the memory map: on a full disk, and on some file systems, other accesses end the process.
    """

    def __init__(self, path: Path, identity: dict, slots: int, width: int, dtype=np.float32):
        """Open or make the file.

        Raises UserError if it is damaged or has another identity, OSError if it is unwritable.
        """
        self.path, self.slots, self.width, self.dtype = path, slots, width, np.dtype(dtype)
        self.values_at, self.bytes = values_at(slots), file_bytes(slots, width, dtype)
        header = {'teacher cache': 1, 'slots': slots, 'width': width, **identity}
        self.header = json.dumps(header).encode().ljust(HEADER)
        self.seed = zlib.crc32(self.header)
        self.writable = os.access(path, os.W_OK) or not os.path.exists(path)
        # Without O_TRUNC, and without waiting for the other end of a pipe.
        flags = os.O_RDWR | os.O_CREAT if self.writable else os.O_RDONLY
        flags |= getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0)
        self.file = os.fdopen(os.open(path, flags, 0o644), 'r+b' if self.writable else 'rb', buffering=0)
        if not stat.S_ISREG(os.fstat(self.file.fileno()).st_mode):
            raise UserError(f'--teacher_cache: {path}: is no file; remove it, or give another folder')
        with locked(self.path) if self.writable else contextlib.nullcontext():
            self._check()
        self.map = mmap.mmap(self.file.fileno(), self.bytes, access=mmap.ACCESS_READ)
        self.values = np.frombuffer(self.map, dtype, slots * width, self.values_at).reshape(slots, width)

    def _check(self):
        """Write the header of a new file, or compare the header of an old one. Sets `checksums`."""
        header = self._read(0, HEADER)
        is_new = self.writable and not header.strip(b'\0')      # or its process was killed before it wrote the header
        if is_new:
            self.file.truncate(self.bytes)
        elif header != self.header:
            raise UserError(f'--teacher_cache: {self.path}: {_difference(header, self.header)}; remove it, or give '
                            f'another folder')
        self._check_size()
        self.count()
        if is_new and self.checksums.any():
            raise UserError(f'--teacher_cache: {self.path}: is damaged, it has outputs and no header; remove it')
        if is_new:
            self._write(0, self.header)

    def _check_size(self):
        size = os.fstat(self.file.fileno()).st_size
        if size != self.bytes:
            raise UserError(f'--teacher_cache: {self.path}: is damaged, it has {size:,} bytes instead of '
                            f'{self.bytes:,}; remove it')

    def count(self) -> int:
        """The number of outputs in the file, also from other processes."""
        self.checksums = np.frombuffer(self._read(HEADER, 4 * self.slots), np.uint32).copy()
        return int(np.count_nonzero(self.checksums))

    def read_ahead(self) -> None:
        """Let the system read the file into memory, because later accesses are single pages all over it."""
        if hasattr(mmap, 'MADV_WILLNEED'):
            self.map.madvise(mmap.MADV_WILLNEED)

    def needed_bytes(self) -> int:
        """Bytes of disk space that the file will still take."""
        return max(0, self.bytes - getattr(os.fstat(self.file.fileno()), 'st_blocks', 0) * 512)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Whether each of these outputs is in the file, bool (N,)."""
        for slot in slots[self.checksums[slots] == 0].tolist():     # another process may have written it
            self.checksums[slot] = int.from_bytes(self._read(HEADER + 4 * slot, 4), 'little')
        return self.checksums[slots] != 0

    def read(self, slots: np.ndarray) -> np.ndarray:
        """float32 (N, width), of outputs that are in the file. Raises UserError if one differs from its checksum."""
        self._check_size()      # reading beyond the end of a file that was cut would end the process
        values = self.values[slots]
        for slot, value, checksum in zip(slots.tolist(), values, self.checksums[slots].tolist(), strict=True):
            if self._checksum(slot, value) != checksum:
                raise UserError(f'--teacher_cache: {self.path}: is damaged, output {slot} is not what was written; '
                                f'remove it')
        return values

    def write(self, slots: np.ndarray, values: np.ndarray) -> None:
        """Write the outputs that are not in the file yet. Raises OSError if the disk is full; older outputs stay."""
        values = np.ascontiguousarray(values, self.dtype)
        with locked(self.path):
            is_new = ~self.has(slots)
            for slot, value in zip(slots[is_new].tolist(), values[is_new], strict=True):
                checksum = self._checksum(slot, value)
                self._write(self.values_at + slot * value.nbytes, value.tobytes())
                self._write(HEADER + slot * 4, checksum.to_bytes(4, 'little'))
                self.checksums[slot] = checksum

    def _checksum(self, slot, value) -> int:
        return zlib.crc32(value, self.seed ^ slot) or 1

    def _read(self, offset, count) -> bytes:
        self.file.seek(offset)
        return self.file.read(count)

    def _write(self, offset, content):
        self.file.seek(offset)
        if self.file.write(content) != len(content):        # the disk became full
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _difference(header, expected):
    """The differences between the header of a file and the expected one, as text."""
    try:
        header, expected = json.loads(header), json.loads(expected)
        differing = [f'{name} {header[name]}, now {value}' for name, value in expected.items() if header[name] != value]
        return f'belongs to something else ({"; ".join(differing)})'
    except (ValueError, TypeError, KeyError):
        return 'is no teacher cache, or its beginning is damaged'
