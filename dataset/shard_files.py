"""The tar files of shards: in a local folder, or fetched from a URL into a folder of limited size."""
import contextlib
import os
import re
import signal
import threading
import zlib
from pathlib import Path

from helper.cli import readable_bytes
from helper.errors import UserError, import_optional, reason
from helper.files import locked, make_folder, remove_unfinished, write_atomically
from helper.launch import block_ctrl_c

from .order import WINDOW
from .shard_index import CHUNK, Shard
from .source import SourceError

CACHE_GB = 100.0    # default of --shard_cache_gb
SILENCE = 120       # seconds without a byte from a server until a shard counts as lost; curl's own retries take 60
# Only characters that no shell interprets: webdataset can pass an address to a command.
REMOTE = re.compile(r'(https?|s3|gs|hf)://[\w./:@%+=~-]+', re.ASCII)
REWRITE = r"GOPEN_REWRITE='s3://(.*)=pipe:aws s3 cp s3://\1 -'"
FAULTS = {6: 'there is no such server', 7: 'no server answers', 18: 'the server ended the connection',
          22: 'the server has no such file or refuses it', 28: 'the server did not answer in time',
          52: 'the server ended the connection', 56: 'the server ended the connection',     # curl's exit codes
          -signal.SIGTERM: 'nothing came for too long'}     # see _next_bytes


class LocalShards:
    """The shards of a folder."""

    def __init__(self, folder: Path):
        self.folder = folder

    def check(self, shards: list[Shard]) -> None:
        """Raise UserError for a shard that is missing or has another size than the index says."""
        for shard in shards:
            path = self.folder / shard.name
            size = os.path.getsize(path) if os.path.isfile(path) else None
            if size != shard.bytes:
                fault = 'is missing' if size is None else f'has {size} bytes, not {shard.bytes}'
                raise UserError(f'{path}: {fault}; copy it again, or write the index again with scripts/make_shards.py '
                                f'--index {self.folder}')

    def open(self, shard: Shard):
        """The open file of a shard. Raises SourceError."""
        path = self.folder / shard.name
        try:
            return open(path, 'rb', buffering=0)
        except OSError as error:
            raise SourceError(f'{path}: cannot be read ({error.strerror}); copy it again') from error


class RemoteShards:
    """The shards of a URL, each fetched as a whole when it is needed.

    All processes of a machine share the folder. The files that were used least recently make room for others.
    """

    def __init__(self, url: str, folder: Path, most_gb: float):
        self.url, self.folder, self.most_gb = url, folder, most_gb
        make_folder(folder, f'--data_dir {folder.parent}')

    def check(self, shards: list[Shard]) -> None:
        """Raise UserError if the folder cannot hold the shards that an epoch needs at the same time."""
        least = (WINDOW + 1) * max(shard.bytes for shard in shards)
        if self.most_gb * 1e9 < min(least, sum(shard.bytes for shard in shards)):
            raise UserError(f'--shard_cache_gb {self.most_gb:g}: an epoch reads {WINDOW + 1} shards at the same time, '
                            f'which are up to {readable_bytes(least)}; give --shard_cache_gb {least / 1e9:.2g} or more')

    def open(self, shard: Shard):
        """The open file of a shard. Raises SourceError if it cannot be fetched."""
        path = self.folder / f'{Path(shard.name).stem}-{shard.bytes}-{shard.crc32:08x}.tar'
        while True:
            with contextlib.suppress(FileNotFoundError):       # also if another process makes room now
                file = open(path, 'rb', buffering=0)     # noqa: SIM115, the caller closes it
                os.utime(path)
                return file
            with locked(path):
                if not path.exists():
                    self._make_room(shard.bytes)
                    self._fetch(shard, path)

    def _fetch(self, shard, path):
        url = f'{self.url}/{shard.name}'

        def write(file):
            size, crc = download(url, file)
            if (size, crc) != (shard.bytes, shard.crc32):
                fault = f'{size} bytes came of {shard.bytes}' if size != shard.bytes else 'its checksum differs'
                raise SourceError(f'{url}: is not the shard of the index ({fault}); is the connection bad? Else write '
                                  f'the index again with scripts/make_shards.py --index')
        try:
            write_atomically(path, write)
        except SourceError:
            raise
        except UserError as error:
            raise SourceError(f'{error}; free some space, or lower --shard_cache_gb {self.most_gb:g}') from error

    def _make_room(self, needed):
        """Remove files until one of `needed` bytes fits; several that are fetched at once can exceed the limit."""
        with locked(self.folder / 'room'):
            remove_unfinished(self.folder, least_age=3600)
            files = []
            for path in self.folder.glob('*.tar'):
                with contextlib.suppress(FileNotFoundError):
                    files.append((path.stat().st_mtime, path.stat().st_size, path))
            excess = sum(size for _, size, _ in files) + needed - self.most_gb * 1e9
            for _, size, path in sorted(files):
                if excess > 0:
                    path.unlink(missing_ok=True)
                    excess -= size


def is_remote(location: str) -> bool:
    """Whether this is a URL. Raises UserError for one that is not supported."""
    if '://' in location and not REMOTE.fullmatch(location):
        raise UserError(f'{location}: give an address that begins with http://, https://, s3://, gs:// or hf://, of '
                        f'letters, digits and ./:@%+=~-, or a folder')
    return '://' in location


def download(url: str, file) -> tuple[int, int]:
    """Write what `url` holds into an open file, with webdataset's gopen. Returns (bytes, CRC-32).

    Raises SourceError if it cannot be fetched or no byte comes for SILENCE seconds, and OSError if the file cannot be
    written.
    """
    gopen, size, crc = import_optional('webdataset', url).gopen, 0, 0
    try:
        block_ctrl_c(True)      # for the program that gopen starts: a run finishes its step, which may wait for it
        try:
            stream = gopen(url)
        finally:
            block_ctrl_c(False)
        with stream:
            while data := _next_bytes(stream):
                file.write(data)
                size, crc = size + len(data), zlib.crc32(data, crc)
    except FileNotFoundError as error:
        raise SourceError(f'{url}: needs the program {error.filename}, which is not installed') from error
    except (OSError, ValueError) as error:
        if getattr(error, 'errno', None) is not None:       # of the file
            raise
        if isinstance(error, ValueError):
            raise SourceError(f'{url}: webdataset cannot open it ({reason(error)}); for s3:// set {REWRITE}') from error
        code = re.search(r'exit (-?\d+)', str(error))
        fault = FAULTS.get(int(code[1])) if code else None
        raise SourceError(f'{url}: cannot be fetched ({fault or reason(error)}); check the address and the server, '
                          f'then run the same command again') from error
    return size, crc


def _next_bytes(stream):
    """The next bytes of a stream that gopen has opened. Ends its program if none come for SILENCE seconds."""
    if not hasattr(stream, 'proc'):
        return stream.read(CHUNK)       # a file, by GOPEN_REWRITE
    timer = threading.Timer(SILENCE, stream.proc.terminate)
    timer.start()
    try:
        return stream.stream.read1(CHUNK)
    finally:
        timer.cancel()
