"""The C++ kernels as one library: built within seconds when first needed, and saved for later runs."""
import contextlib
import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from torch import Tensor

HERE = Path(__file__).parent
HEADER, SOURCES = 'vector.h', ('winograd.cpp', 'batchnorm.cpp')
FLAGS = ('-std=c++17', '-O3', '-march=native', '-fPIC')
OPENMP = '-fopenmp'


def compiler() -> tuple[str, str]:
    """(the C++ compiler that torch.compile uses for the CPU too, its version). Raises OSError if there is none."""
    name = os.environ.get('CXX', {'darwin': 'clang++', 'win32': 'cl'}.get(sys.platform, 'g++'))
    if not shutil.which(name):
        raise OSError(f"there is no C++ compiler '{name}'; install it, or set CXX to one")
    version = _run(name, *([] if name == 'cl' else ['--version']))
    if version.returncode:
        raise OSError(f"'{name}' does not compile C++; set CXX to a compiler that does")
    return name, version.stdout


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions, for this processor. Raises OSError if they cannot be built.

    `library().was_built` tells whether this call built them or loaded a saved file.
    """
    saved = _saved_file()
    with contextlib.suppress(OSError):
        if _is_trusted(saved):
            loaded = ctypes.CDLL(str(saved))
            loaded.was_built = False
            return loaded
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / saved.name
        built = _build(file)
        built.was_built = True
        with contextlib.suppress(OSError):      # without a writable folder, every run builds the library
            _save(file, saved)
    return built


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call a function of the library; None stands for a tensor that is not given."""
    getattr(library(), function)(*map(_as_c, arguments))


def _as_c(value):
    if isinstance(value, int):
        return ctypes.c_int64(value)
    if isinstance(value, float):
        return ctypes.c_double(value)
    return ctypes.c_void_p(value if value is None else value.data_ptr())


def _run(*command) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, errors='replace')


def _build(file: Path) -> ctypes.CDLL:
    """Build the library as `file`, and load it."""
    name, _ = compiler()
    objects = [file.with_name(f'{source}.o') for source in SOURCES]
    compiling = [subprocess.Popen([name, *FLAGS, OPENMP, '-c', HERE / source, '-o', target], stderr=subprocess.PIPE,
                                  text=True, errors='replace') for source, target in zip(SOURCES, objects, strict=True)]
    for source, process in zip(SOURCES, compiling, strict=True):
        errors = process.communicate()[1]
        if process.returncode:
            raise OSError(f'{name} could not build {source}: {" ".join(errors.split())[:200]}')
    # Linked without OpenMP, the library uses the runtime that torch has loaded, and its waiting threads. If torch does
    # not export that runtime, the library is linked with its own.
    for flags in ([], [OPENMP]):
        linking = _run(name, '-shared', *objects, *flags, '-o', file)
        if linking.returncode:
            error = OSError(f'{name} could not link the kernels: {" ".join(linking.stderr.split())[:200]}')
            continue
        try:
            return ctypes.CDLL(str(file))
        except OSError as undefined_symbol:
            error = undefined_symbol
    raise error


# The library is saved for this user alone: a file that others can write is not loaded.

def _saved_file() -> Path:
    """The file for the library of these sources, this compiler and this processor."""
    name, version = compiler()
    # The predefined macros tell which instructions -march=native allows on this processor.
    macros = _run(name, *FLAGS, '-dM', '-E', '-x', 'c++', os.devnull).stdout
    parts = [*((HERE / source).read_text() for source in (HEADER, *SOURCES)), *FLAGS, OPENMP, name, version, macros]
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(folder) / 'semckd-kernels' / f'{_checksum(chr(0).join(parts).encode())[:32]}.so'


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _is_trusted(saved: Path) -> bool:
    """Whether the file is complete and only this user can write it. Raises OSError if it does not exist."""
    if hasattr(os, 'getuid'):
        for path in (saved.parent, saved):
            status = path.stat()
            if status.st_uid != os.getuid() or status.st_mode & 0o022:
                return False
    return saved.with_suffix('.sha256').read_bytes() == _checksum(saved.read_bytes()).encode()


def _save(file: Path, saved: Path) -> None:
    """Copy the library, so that no other process ever sees an incomplete file."""
    saved.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = file.read_bytes()
    for path, content in ((saved, data), (saved.with_suffix('.sha256'), _checksum(data).encode())):
        handle, temporary = tempfile.mkstemp(dir=saved.parent)
        try:
            with os.fdopen(handle, 'wb') as new:
                new.write(content)
            os.replace(temporary, path)
        except OSError:
            os.unlink(temporary)
            raise
