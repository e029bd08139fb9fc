"""The C++ kernels as one library: built in a few seconds when first needed, and kept for later runs."""
import contextlib
import ctypes
import functools
import hashlib
import os
import platform
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
    """(the C++ compiler for the CPU, the one that torch.compile takes; what it says of its version).

    Raises OSError where there is none.
    """
    name = os.environ.get('CXX', {'darwin': 'clang++', 'win32': 'cl'}.get(sys.platform, 'g++'))
    if not shutil.which(name):
        raise OSError(f"there is no C++ compiler '{name}'; install it, or set CXX to one")
    version = _run(name, *([] if name == 'cl' else ['--version']))
    if version.returncode:
        raise OSError(f"'{name}' does not compile C++; set CXX to a compiler that does")
    return name, version.stdout


@functools.cache
def library() -> ctypes.CDLL:
    """The compiled functions, for this very processor. Raises OSError where they cannot be built.

    `library().was_built` says whether they were built now, not found.
    """
    kept = _kept_file()
    with contextlib.suppress(OSError):
        if _intact(kept):
            found = ctypes.CDLL(str(kept))
            found.was_built = False
            return found
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / kept.name
        built = _build(file)
        built.was_built = True
        with contextlib.suppress(OSError):      # a folder that cannot be written to: built anew by every run
            _keep(file, kept)
    return built


def call(function: str, *arguments: Tensor | int | float | None) -> None:
    """Call a function of the library; None is a tensor that is not given."""
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
        said = process.communicate()[1]
        if process.returncode:
            raise OSError(f'{name} could not build {source}: {" ".join(said.split())[:200]}')
    # Linked without OpenMP, it uses the one that torch has loaded, and with it the threads that wait there. Where torch
    # does not show its own to others, it gets one of its own.
    for flags in ([], [OPENMP]):
        run = _run(name, '-shared', *objects, *flags, '-o', file)
        if run.returncode:
            error = OSError(f'{name} could not link the kernels: {" ".join(run.stderr.split())[:200]}')
            continue
        try:
            return ctypes.CDLL(str(file))
        except OSError as undefined:
            error = undefined
    raise error


# The library is kept for the user alone: code that others could write is not loaded.

def _kept_file() -> Path:
    """Where the library of these sources, for this compiler and this processor, is kept."""
    parts = [*((HERE / name).read_text() for name in (HEADER, *SOURCES)), *FLAGS, OPENMP, *compiler(),
             platform.machine(), _processor()]
    folder = os.environ.get('XDG_CACHE_HOME') or os.path.expanduser('~/.cache')
    return Path(folder) / 'semckd-kernels' / f'{_checksum(chr(0).join(parts).encode())[:32]}.so'


def _processor() -> str:
    """What -march=native depends on."""
    with contextlib.suppress(OSError):
        lines = Path('/proc/cpuinfo').read_text().splitlines()
        return '\n'.join(sorted({line for line in lines if line.startswith(('model name', 'flags', 'Features'))}))
    return platform.processor()


def _checksum(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _intact(kept: Path) -> bool:
    """Whether the library is there, whole, and nobody else's. Raises OSError where it is not there."""
    if hasattr(os, 'getuid'):
        for path in (kept.parent, kept):
            found = path.stat()
            if found.st_uid != os.getuid() or found.st_mode & 0o022:
                return False
    return kept.with_suffix('.sha256').read_bytes() == _checksum(kept.read_bytes()).encode()


def _keep(file: Path, kept: Path) -> None:
    """Copy the library there, so that no other process ever sees a half of it."""
    kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    data = file.read_bytes()
    for path, content in ((kept, data), (kept.with_suffix('.sha256'), _checksum(data).encode())):
        handle, name = tempfile.mkstemp(dir=kept.parent)
        try:
            with os.fdopen(handle, 'wb') as new:
                new.write(content)
            os.replace(name, path)
        except OSError:
            os.unlink(name)
            raise
