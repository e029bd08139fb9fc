"""Images in tar shards of webdataset's layout, from a folder or a URL: --dataset wds:FOLDER_OR_URL[/PATTERN.tar]."""
import os
import tempfile
import zlib
from dataclasses import replace
from pathlib import Path

import torch

from helper.cli import comma_list
from helper.errors import UserError, counted, import_optional, listed

from .shard_files import LocalShards, RemoteShards, download, is_remote
from .shard_index import INDEX, WHOLE, Index, Shard, number_classes, read_index, read_shard
from .source import TEST_SPLITS, Source, val_split

PREFIX = 'wds:'
CACHE = 'shards'        # the folder in --data_dir for shards that are fetched
MOST_NAMED = 5      # shards that a message lists


class ShardSplit(Source):
    """The images of the shards of one split, in the order of the shards. files: opens a shard."""

    def __init__(self, files: LocalShards | RemoteShards, shards: list[Shard], name: str):
        self.files, self.name = files, name
        self.labels, self.offsets, self.sizes = (
            torch.tensor([number for shard in shards for number in getattr(shard, field)], dtype=torch.int64)
            for field in ('labels', 'offsets', 'sizes'))
        self.shards = torch.arange(len(shards)).repeat_interleave(torch.tensor([len(s.members) for s in shards]))
        self.members = [member for shard in shards for member in shard.members]
        self.tars = [replace(shard, members=[], labels=[], offsets=[], sizes=[]) for shard in shards]

    @property
    def names(self) -> list[str]:
        """The names of the images' files, as those of the folder from which scripts/make_shards.py wrote them."""
        return self.members if self.name == WHOLE else [f'{self.name}/{member}' for member in self.members]

    def content(self, i):
        shard, size = self.tars[int(self.shards[i])], int(self.sizes[i])
        with self.files.open(shard) as file:
            file.seek(int(self.offsets[i]))
            return f'{shard.name}: {self.members[i]}', file.read(size)

    def checksum(self) -> int:
        """CRC-32 of the names, sizes and checksums of all shards: no shard is read for it."""
        return zlib.crc32('\n'.join(f'{tar.name} {tar.bytes} {tar.crc32}' for tar in self.tars).encode())


def open_sources(opt) -> tuple[dict[str, ShardSplit], list[str]]:
    """({'train', 'test', maybe 'val'} -> split, classes) of opt.dataset. Raises UserError."""
    files, index = _open(opt.dataset, f'--dataset {opt.dataset}', opt)
    shards = by_split(index.shards)
    present = [name for name in TEST_SPLITS if name in shards]
    if 'train' not in shards or not present:
        shown = listed([shard.name for shard in index.shards], MOST_NAMED)
        raise UserError(f'--dataset {opt.dataset}: needs shards whose names contain train and one of '
                        f'{", ".join(TEST_SPLITS)}; it has {shown}; --split 0.8,0.2 divides the images of one split')
    names = {'train': 'train', 'test': present[0], 'val': val_split(present[0], present)}
    return {part: ShardSplit(files, shards[name], name) for part, name in names.items() if name}, index.classes


def open_whole(opt) -> tuple[ShardSplit, list[str]]:
    """(source, classes) of the only split of opt.dataset, for --split. Raises UserError."""
    files, index = _open(opt.dataset, f'--dataset {opt.dataset}', opt)
    shards = by_split(index.shards)
    if len(shards) > 1:
        raise UserError(f'--split {comma_list(opt.split)}: --dataset {opt.dataset} has the splits '
                        f'{", ".join(sorted(shards))} already; leave it out')
    (name, members), = shards.items()
    return ShardSplit(files, members, name), index.classes


def open_all(text: str, flag: str, opt) -> ShardSplit:
    """All images of the shards that wds:FOLDER_OR_URL names, whatever their split. Raises UserError that names `flag`.
    """
    files, index = _open(text, flag, opt)
    return ShardSplit(files, index.shards, WHOLE)


def by_split(shards: list[Shard]) -> dict[str, list[Shard]]:
    """The split -> its shards, in their order."""
    names = dict.fromkeys(shard.split for shard in shards)
    return {name: [shard for shard in shards if shard.split == name] for name in names}


def parse_location(text: str, flag: str) -> tuple[str, list[str] | None]:
    """(folder or URL, names of shards) of 'FOLDER/train-{000..009}.tar'; None for all shards of 'FOLDER'.

    Raises UserError that begins with `flag`.
    """
    if not text:
        raise UserError(f'{flag}: give a folder or URL, or FOLDER_OR_URL/train-{{000000..000009}}.tar')
    if '{' not in text and not text.endswith('.tar'):
        return text.rstrip('/') or '/', None
    paths = [text]
    if '{' in text:
        try:
            paths = [*import_optional('braceexpand', flag).braceexpand(text)]
        except ValueError as error:
            raise UserError(f'{flag}: its braces do not match ({error}); as train-{{000000..000099}}.tar') from error
    folders = sorted({os.path.dirname(path) or '.' for path in paths})
    if len(folders) > 1:
        raise UserError(f'{flag}: names shards of {listed(folders, MOST_NAMED)}; give shards of one folder')
    return folders[0], [os.path.basename(path) for path in paths]


def _open(text, flag, opt):
    """(LocalShards or RemoteShards, Index of the shards that wds:FOLDER_OR_URL names). Raises UserError."""
    index = open_index(text.removeprefix(PREFIX), flag)
    files = RemoteShards(index.location, Path(opt.data_dir, CACHE), opt.shard_cache_gb) if is_remote(index.location) \
        else LocalShards(Path(index.location))
    files.check(index.shards)
    return files, index


def open_index(text: str, flag: str) -> Index:
    """The Index of FOLDER_OR_URL[/PATTERN.tar], of the shards that match, with its `location`.

    Raises UserError that begins with `flag`.
    """
    location, names = parse_location(text, flag)
    index = _fetch_index(location, flag) if is_remote(location) else _open_local(Path(location), names, flag)
    if missing := sorted({*(names or ())} - {shard.name for shard in index.shards}):
        raise UserError(f'{flag}: no shard {listed(missing, MOST_NAMED)}; there are '
                        f'{listed([shard.name for shard in index.shards], MOST_NAMED)}')
    shards = [shard for shard in index.shards if names is None or shard.name in names]
    return Index(index.classes, shards, index.location or location)


def _open_local(folder, names, flag):
    """The folder's Index, from its file or by reading the shards. Raises UserError."""
    if not folder.is_dir():
        raise UserError(f'{flag}: {folder}: no such folder; give one with tar files, or a URL')
    if (folder / INDEX).is_file():
        return read_index(folder / INDEX, f'{flag}: {folder / INDEX}')
    names = list_shards(folder, flag) if names is None else names
    print(f'{flag}: {folder} has no {INDEX}, so {counted(len(names), "shard")} will be read through at each start; '
          f'python scripts/make_shards.py --index {folder} writes it', flush=True)
    shards = [read_shard(folder / name) for name in names]
    return Index(number_classes(shards), shards)


def list_shards(folder: Path, flag: str) -> list[str]:
    """The names of the tar files of a folder, sorted. Raises UserError if there is none."""
    names = sorted(file.name for file in folder.glob('[!.]*.tar'))
    if not names:
        raise UserError(f'{flag}: {folder}: holds no tar file; python scripts/make_shards.py --data_dir FOLDER --out '
                        f'{folder} writes them from a folder of images')
    return names


def _fetch_index(url, flag):
    """The Index of a URL. Raises UserError that names the command for a missing one."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, INDEX)
        try:
            with open(path, 'wb') as file:
                download(f'{url}/{INDEX}', file)
        except UserError as error:
            raise UserError(f"{error}; if the server has shards without an index: python scripts/make_shards.py "
                            f"--index '{url}/train-{{000000..000009}}.tar' --out DIR, then --dataset wds:DIR"
                            ) from error
        return read_index(path, f'{flag}: {url}/{INDEX}')
