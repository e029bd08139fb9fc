"""Run an exported file in a separate process, as its user would."""
import contextlib
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from helper.errors import UserError, printable

from . import runtime


class RuntimeProcess:
    """An exported file in a new process, as a context manager. Raises UserError when the process fails."""

    def __init__(self, file: Path, threads: int | None = None):
        self.file, self.errors = file, tempfile.TemporaryFile()     # noqa: SIM115, until __exit__
        arguments = [sys.executable, runtime.__file__, str(file), *([str(threads)] if threads else [])]
        self.process = subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors)
        self.peak = float('nan')        # peak memory in bytes, after the last run

    def run(self, images: np.ndarray, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """(logits (N, classes), the seconds of each of `count` runs)."""
        try:
            runtime.send(self.process.stdin, np.array(count))
            runtime.send(self.process.stdin, np.ascontiguousarray(images))
            *seconds, self.peak = runtime.receive(self.process.stdout)
            return runtime.receive(self.process.stdout), np.array(seconds)
        except (OSError, ValueError, TypeError, EOFError) as error:     # TypeError: receive() returned None
            raise UserError(f'{self.file.name}: {self._error_text()}') from error

    def _error_text(self):
        self.process.kill()
        self.process.wait()
        self.errors.seek(0)
        lines = self.errors.read().decode(errors='replace').strip().splitlines()
        return printable(lines[-1])[:300] if lines else f'its process ended with exit code {self.process.returncode}'

    def __enter__(self):
        return self

    def __exit__(self, *_):
        with contextlib.suppress(OSError):
            self.process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(10)
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.errors.close()
