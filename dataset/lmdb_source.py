"""--use-lmdb: images from one LMDB file per split, as folder2lmdb.py writes them."""
import json
import os
import struct
from pathlib import Path

import torch

from helper.errors import UserError, import_optional, reason

from .source import TEST_SPLITS, Source, val_split

FORMAT = 'image files, version 1'
META, LABELS, KEYS = b'__meta__', b'__labels__', b'__keys__'


def record_key(i: int) -> bytes:
    """The key of record i."""
    return f'{i:09d}'.encode()


def pack(label: int, name: str, data: bytes) -> bytes:
    """One record: label, length of the name, name, the image file's bytes."""
    name = name.encode()
    return struct.pack('<IH', label, len(name)) + name + data


def unpack(record: bytes) -> tuple[int, str, bytes]:
    """(label, name, the image file's bytes)."""
    label, length = struct.unpack_from('<IH', record)
    return label, record[6:6 + length].decode(), record[6 + length:]


class LmdbSource(Source):
    """The images of a split. Each process opens the file for itself. Raises UserError for a missing or damaged file."""

    def __init__(self, path: Path):
        self.path, self.name, self.opened = str(path), path.stem, None
        if not os.path.isfile(path):
            raise UserError(f'--use-lmdb: {path}: no such file; python dataset/folder2lmdb.py FOLDER OUT writes it')
        import_optional('lmdb', '--use-lmdb')
        foreign = UserError(f'--use-lmdb: {path}: not written by dataset/folder2lmdb.py; write it with that')
        try:
            env = self._open()
            if os.path.getsize(path) < (env.info()['last_pgno'] + 1) * env.stat()['psize']:
                raise UserError(f'--use-lmdb: {path}: cut short; write it again with dataset/folder2lmdb.py')
            meta, labels = json.loads(self._get(META)), self._get(LABELS)
            self.classes, self.labels = meta['classes'], torch.frombuffer(bytearray(labels), dtype=torch.int64)
            if meta['format'] != FORMAT or len(self.labels) != meta['samples'] or \
                    not all(isinstance(name, str) for name in list(self.classes)):
                raise foreign
        except UserError:
            raise
        except Exception as error:      # whatever a damaged or foreign file makes lmdb or json raise
            raise UserError(f'{foreign} ({reason(error)})') from error
        if not 0 <= self.labels.min() <= self.labels.max() < len(self.classes):
            raise UserError(f'--use-lmdb: {path}: labels {self.labels.min()} to {self.labels.max()}, but '
                            f'{len(self.classes)} classes; write it again with dataset/folder2lmdb.py')

    def _open(self):
        """This process's environment: one that was opened before a fork must not be used after it."""
        import lmdb
        if self.opened is None or self.opened[0] != os.getpid():
            if self.opened is not None:
                self.opened[1].close()      # the parent's: lmdb refuses to open a file a second time beside it
            env = lmdb.open(self.path, subdir=False, readonly=True, lock=False, readahead=False, meminit=False)
            self.opened = os.getpid(), env
        return self.opened[1]

    def __getstate__(self):
        return {**self.__dict__, 'opened': None}

    def _get(self, key):
        with self._open().begin() as transaction:
            return transaction.get(key)

    @property
    def names(self) -> list[str]:
        """Each file's path below the folder that was converted, with / between its parts."""
        return (self._get(KEYS) or b'').decode(errors='replace').split('\n')

    def entries(self):
        """The entries of the converted files, so that the checksum is the same."""
        lengths = [self._length(i) for i in range(len(self.labels))]
        return [f'{name} {length - 6 - len(name.encode())}' for name, length in zip(self.names, lengths)]  # noqa: B905

    def _length(self, i):
        """The size of a record in bytes; 0 if it is missing or damaged."""
        try:
            with self._open().begin(buffers=True) as transaction:
                return len(transaction.get(record_key(i)))
        except Exception:       # whatever a damaged page makes lmdb raise; content() names the record when it is needed
            return 0

    def content(self, i):
        try:
            _, name, data = unpack(self._get(record_key(i)))
        except Exception as error:      # a record that is missing or short, a damaged page
            raise UserError(f'--use-lmdb: {self.path}: record {i} is missing or damaged; write the file again with '
                            f'dataset/folder2lmdb.py') from error
        return f'{self.path}: {name}', data


def open_lmdb_sources(root: Path) -> tuple[dict[str, LmdbSource], list[str]]:
    """({'train', 'test', maybe 'val'} -> source, classes) of the files root/SPLIT.lmdb. Raises UserError.

    test is the first of TEST_SPLITS with a file; for val see dataset.source.val_split.
    """
    present = [name for name in TEST_SPLITS if os.path.isfile(root / f'{name}.lmdb')]
    test = (present or TEST_SPLITS[-1:])[0]
    names = {'train': 'train', 'test': test, 'val': val_split(test, present)}
    sources = {part: LmdbSource(root / f'{name}.lmdb') for part, name in names.items() if name}
    classes = sources['train'].classes
    for source in sources.values():
        if source.classes != classes:
            raise UserError(f'--use-lmdb: {root}: train.lmdb and {source.name}.lmdb were written from different '
                            f'classes')
    return sources, classes
