"""Files that are whole or not there: written under another name in the same folder, flushed, then renamed."""
import json
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from .errors import UserError


def write_atomically(path: Path, write: Callable) -> None:
    """Call write(binary file), then put that file in `path`'s place. The old file stays whole until then."""
    try:
        handle, temporary = tempfile.mkstemp(prefix=f'.{path.name}.', dir=path.parent)
    except OSError as error:
        raise UserError(f'{path}: cannot be written ({error.strerror}); what was there before is whole') from error
    try:
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as error:
        os.unlink(temporary)
        # torch.save says RuntimeError when the disk is full.
        if isinstance(error, (OSError, RuntimeError)):
            reason = ' '.join(str(error).split())[:200]
            raise UserError(f'{path}: cannot be written ({reason}); what was there before is whole') from error
        raise


def write_json(path: Path, value) -> None:
    """`value` as indented JSON."""
    text = json.dumps(value, indent=4) + '\n'
    write_atomically(path, lambda file: file.write(text.encode()))


def run_folder(*parts: str) -> Path:
    """Make the folder of a run and see that it can be written. On Windows ':' becomes '~'."""
    *parents, name = parts
    if sys.platform == 'win32':
        name = name.replace(':', '~')
    folder = Path(*parents, name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'--save_dir {parents[0]}: cannot write {folder} ({error.strerror}); '
                        f'give a folder that you may write') from error
    return folder
