"""Files that are never half-written: written under another name in the same folder, flushed, then renamed."""
import contextlib
import errno
import json
import math
import os
import re
import stat
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from .errors import UserError, reason

UNFINISHED = '.tmp'     # what a file is called until it is whole


def write_atomically(path: Path, write: Callable, keep: str | None = None) -> None:
    """Call write(binary file), then put that file in `path`'s place. The old file stays whole until then.

    keep: the name that the old file gets in the same folder.
    """
    try:
        handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', suffix=UNFINISHED, dir=path.parent)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); what was there before is whole') from error
    try:
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        if keep and path.exists():
            _keep(path, path.with_name(keep))
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        # torch.save says RuntimeError when the disk is full.
        if isinstance(error, (OSError, RuntimeError)):
            reason = ' '.join(str(error).split())[:200]
            raise UserError(f'{path}: cannot be written ({reason}); what was there before is whole') from error
        raise


def _keep(path, older):
    """Give the file at `path` the name `older` too; there is no moment without a file at `path`."""
    link = path.with_name(f'.{older.name}{UNFINISHED}')
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
        os.replace(link, older)
        link.unlink(missing_ok=True)        # renaming one name of a file to another of its names does nothing
    except OSError:             # a file system without hard links
        os.replace(path, older)


def _flush_folder(folder):
    """The new name survives a power failure too, where folders can be flushed."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, value) -> None:
    """`value` as indented JSON; numbers that JSON does not have, as NaN, become null."""
    text = json.dumps(_finite(value), indent=4, allow_nan=False) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def open_regular(path: str | Path, what: str):
    """Open an untrusted file for reading bytes. `what` begins the message of the UserError.

    Raises UserError for what is not there, may not be read, or is no file: a FIFO or a device may never end.
    """
    try:
        # Without waiting: a FIFO that nobody writes into would be waited for already here.
        handle = os.open(path, os.O_RDONLY | getattr(os, 'O_NONBLOCK', 0) | getattr(os, 'O_BINARY', 0))
    except (OSError, ValueError) as error:      # ValueError: a NUL in the name
        raise UserError(f'{what}: cannot be read ({getattr(error, "strerror", None) or error})') from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise UserError(f'{what}: is no file (a folder, a device or a pipe); give a file')
    return os.fdopen(handle, 'rb')


def read_text(path: str | Path, what: str, largest: int = 1 << 20) -> str:
    """The text of an untrusted file, UTF-8 with or without a byte-order mark.

    `what` begins the message of the UserError that is raised for anything else, and for more than `largest` bytes.
    """
    with open_regular(path, what) as file:
        try:
            content = file.read(largest + 1)
            if len(content) > largest:
                raise ValueError(f'more than {largest} bytes')
            return content.decode('utf-8-sig')
        except (OSError, ValueError) as error:
            raise UserError(f'{what}: no text that can be read ({reason(error)})') from error


def read_json(path: str | Path, what: str, largest: int = 1 << 28):
    """The value in an untrusted JSON file; numbers that JSON does not have are refused.

    `what` begins the message of the UserError that is raised for anything else, and for more than `largest` bytes.
    """
    def refuse(constant):
        raise ValueError(f'a number is {constant}')

    with open_regular(path, what) as file:
        try:
            content = file.read(largest + 1)
            if len(content) > largest:
                raise ValueError(f'more than {largest} bytes')
            return json.loads(content, parse_constant=refuse)
        except (OSError, ValueError, RecursionError, MemoryError) as error:
            raise UserError(f'{what}: no JSON that can be read ({reason(error)})') from error


def folder_name(name: str) -> str:
    """The name of a net or data set as a part of a folder's name: nets/mine.py:build -> nets-mine.py:build."""
    file, is_file, function = name.rpartition('.py:')
    if is_file:
        folder = Path(file).parent
        name = f'{Path(file).name}{is_file}{function}'
        name = name if folder == Path() else f'{folder.resolve().name}-{name}'
    return re.sub(r'[^\w.:,=+-]', '_', name)


def run_folder(*parts: str) -> Path:
    """The folder of a run, not made yet. On Windows ':' becomes '~'."""
    *parents, name = parts
    if sys.platform == 'win32':
        name = name.replace(':', '~')
    return Path(*parents, name)


def make_folder(folder: Path, save_dir: Path | None = None) -> None:
    """Make a folder and see that it can be written. save_dir: of the error; not given: folder is that of a run."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        wanted = 'shorter names, of --trial or --save_dir' if error.errno == errno.ENAMETOOLONG else \
            'a folder that you may write'
        raise UserError(f'--save_dir {save_dir or folder.parent.parent}: cannot write {folder} ({error.strerror}); '
                        f'give {wanted}') from error


class Lock:
    """One run at a time writes into a folder. The system drops the lock when its process ends, however it ends."""

    def __init__(self, folder: Path, shared: bool = False):
        """shared: others write there too, so that what is unfinished may be theirs until it is an hour old."""
        self.folder, self.file, self.spared = folder, None, 3600 if shared else 0

    def take(self) -> bool:
        """Whether this process has it now; not when another one does. Raises UserError."""
        if self.file:
            return True
        try:
            file = open(self.folder / '.lock', 'a+b')      # noqa: SIM115, held until release()
        except OSError as error:
            raise UserError(f'{self.folder / ".lock"}: cannot be opened ({error.strerror}); give another --save_dir '
                            f'or --trial') from error
        if not _try_lock(file):
            file.close()
            return False
        self.file = file
        for rest in self.folder.glob(f'.*{UNFINISHED}'):       # of a run that was killed while it wrote
            with contextlib.suppress(OSError):
                if not self.spared or time.time() - rest.stat().st_mtime > self.spared:
                    rest.unlink()
        return True

    def release(self) -> None:
        if self.file:
            self.file.close()
            self.file = None


@contextlib.contextmanager
def locked(file):
    """Within it no other process is within it with the same open file, where the file system has locks."""
    if sys.platform == 'win32':
        import msvcrt
        while not _try_lock(file):
            time.sleep(0.001)
        try:
            yield
        finally:
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
        return
    import fcntl
    with contextlib.suppress(OSError):
        fcntl.lockf(file, fcntl.LOCK_EX)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_UN)


def _try_lock(file) -> bool:
    try:
        if sys.platform == 'win32':
            import msvcrt
            file.seek(0)
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)    # of this process, not of the workers that it forks
    except (BlockingIOError, PermissionError):
        return False
    except OSError:         # a file system without locks
        pass
    return True
