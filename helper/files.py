"""Files: written atomically, read as untrusted data, and locked."""
import contextlib
import errno
import json
import math
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from .errors import UserError, reason

UNFINISHED = '.tmp'     # the suffix of a file that is being written
NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL}      # from the file system


@contextlib.contextmanager
def replacing(path: Path, backup: str | None = None) -> Iterator[Path]:
    """Yield an empty file in the same folder, which becomes `path` at the end of the block.

    The old file stays whole until then, and after an exception. backup: its new name in the same folder.
    """
    handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=UNFINISHED, dir=path.parent)
    try:
        with open(handle, 'wb'):
            yield Path(temporary)
            os.fsync(handle)
        os.chmod(temporary, 0o644)
        if backup and path.exists():
            _back_up(path, path.with_name(backup))
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    _flush_folder(path.parent)


def write_atomically(path: Path, content: bytes | Callable, backup: str | None = None) -> None:
    """Write `content`, or call content(binary file), as `replacing` does. Raises UserError."""
    try:
        with replacing(path, backup) as temporary, open(temporary, 'wb') as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
    except (OSError, RuntimeError) as error:        # torch.save raises RuntimeError when the disk is full
        text = getattr(error, 'strerror', None) or reason(error)
        raise UserError(f'{path}: cannot be written ({text}); an earlier file is unchanged') from error


def _back_up(path, older):
    """Give the file at `path` the name `older` too, without a moment in which `path` does not exist."""
    link = path.with_name(f'.{older.name}{UNFINISHED}')
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, older)
        link.unlink(missing_ok=True)        # renaming one name of a file to another of its names does nothing
    except OSError:             # a file system without hard links
        os.replace(path, older)


def _flush_folder(folder):
    """Make the new name survive a power failure, on systems that can flush folders."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value) -> None:
    """`value` as indented JSON; numbers that JSON does not have, as NaN, become null."""
    write_atomically(path, f'{json.dumps(_finite(value), indent=4, allow_nan=False)}\n'.encode())


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_regular(path: str | Path, source: str):
    """Open an untrusted file for reading bytes. Raises UserError, also for a FIFO or a device, which may never end."""
    try:
        # Non-blocking: opening a FIFO without a writer would wait.
        handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except (OSError, ValueError) as error:      # ValueError: a NUL in the name
        raise UserError(f'{source}: cannot be read ({getattr(error, "strerror", None) or error})') from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f'{source}: is no file (a folder, a device or a pipe); give a file')
    return os.fdopen(handle, 'rb')


def read_text(path: str | Path, source: str, max_bytes: int = 1 << 20) -> str:
    """The text of an untrusted file, UTF-8 with or without a byte-order mark. Raises UserError: see _parse."""
    return _parse(path, source, max_bytes, 'no text', lambda content: content.decode('utf-8-sig'))


def read_json(path: str | Path, source: str, max_bytes: int = 1 << 28):
    """The value in an untrusted JSON file; NaN and Infinity are refused. Raises UserError: see _parse."""
    def refuse(constant):
        raise ValueError(f'a number is {constant}')

    return _parse(path, source, max_bytes, 'no JSON', lambda content: json.loads(content, parse_constant=refuse))


def _parse(path, source, max_bytes, fault, parse):
    """parse(content). Raises UserError, which begins with `source`, also for more than `max_bytes` bytes."""
    with open_regular(path, source) as file:
        try:
            content = file.read(max_bytes + 1)
            if len(content) > max_bytes:
                raise ValueError(f'more than {max_bytes} bytes')
            return parse(content)
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f'{source}: {fault} that can be read ({reason(error)})') from error


def make_folder(folder: Path, given: str | None = None) -> None:
    """Make a folder and check that it can be written. given: the flag with its value for the error message; None: the
    --save_dir of a run's folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        wanted = 'shorter names, of --trial or --save_dir' if error.errno == errno.ENAMETOOLONG else \
            'a folder that you may write'
        raise UserError(f'{given or f"--save_dir {folder.parent.parent}"}: cannot write {folder} ({error.strerror}); '
                        f'give {wanted}') from error


def remove_unfinished(folder: Path, least_age: float) -> None:
    """Remove unfinished files that killed processes have left; only those older than `least_age` seconds."""
    for file in folder.glob(f'.*{UNFINISHED}'):
        with contextlib.suppress(OSError):
            if not least_age or time.time() - file.stat().st_mtime > least_age:
                file.unlink()


class FolderLock:
    """Lets one run at a time write into a folder. The lock ends with its process.

    On a file system without locks take() always succeeds.
    """

    def __init__(self, folder: Path, shared: bool = False, name: str = '.lock'):
        """shared: others write there too, so an unfinished file counts as left over only after an hour."""
        self.folder, self.least_age = folder, 3600 if shared else 0
        self._lock = FileLock(folder / name, fallback_to_soft=False)

    def take(self) -> bool:
        """Whether this process holds the lock now. Removes unfinished files of killed runs. Raises UserError."""
        if self._lock.is_locked:
            return True
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            return False
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise UserError(f'{self._lock.lock_file}: cannot be opened ({error.strerror}); give another '
                                f'--save_dir or --trial') from error
        remove_unfinished(self.folder, self.least_age)
        return True

    def wait(self) -> None:
        """Take the lock; print a line if another process holds it."""
        if not self.take():
            print(f'{self.folder}: another process is at work there; waiting for it', flush=True)
            while not self.take():
                time.sleep(1)

    def release(self) -> None:
        self._lock.release(force=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep other processes out of their own locked(path), where the file system has locks."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(FileLock(path.with_name(f'.{path.name}.lock'), poll_interval=0.001,
                                         fallback_to_soft=False))
        yield
