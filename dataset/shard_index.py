"""The index of tar shards: the images of each, where they lie in its file, and their classes. shards.json stores it."""
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from helper.errors import UserError, reason
from helper.files import open_regular, read_json, write_atomically

from .image import EXTENSIONS
from .source import TEST_SPLITS, SourceError

INDEX = 'shards.json'
FORMAT = 'tar shards, version 1'
WHOLE = 'all'       # the split of shards that name none, for --split
MOST_BYTES = 1 << 31        # of an index; one of 1.28 million images has about 75 MB
BLOCK = 512         # bytes; a tar ends with blocks of zeros
CHUNK = 1 << 20     # bytes that are read at a time
NAME = re.compile(r'\w[\w.+-]*\.tar', re.ASCII)     # of a shard, which becomes a part of a URL


@dataclass
class Shard:
    """A tar file and its images: the name, label, offset and size in bytes of each within the tar."""

    name: str
    bytes: int
    crc32: int
    members: list[str] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)

    @property
    def split(self) -> str:
        """The last of train, test, validation, valid and val that is a word of the name; WHOLE if none is."""
        words = [word for word in re.split('[^a-z]+', self.name.lower()) if word in ('train', *TEST_SPLITS)]
        return words[-1] if words else WHOLE


@dataclass
class Index:
    """The class names and all shards. location: the folder or URL of the shards; None if they are beside the index."""

    classes: list[str]
    shards: list[Shard]
    location: str | None = None

    def write(self, path: Path) -> None:
        """Write the file, a line for each shard. Raises UserError."""
        head = json.dumps({'format': FORMAT, 'location': self.location, 'classes': self.classes})
        shards = ',\n'.join(json.dumps(asdict(shard)) for shard in self.shards)
        write_atomically(path, f'{head[:-1]}, "shards": [\n{shards}\n]}}\n'.encode())


def read_index(path: Path, source: str) -> Index:
    """The index in an untrusted file. Raises UserError, which begins with `source`."""
    content = read_json(path, source, MOST_BYTES)
    try:
        if content['format'] != FORMAT:
            raise ValueError(f'its format is not "{FORMAT}"')
        index = Index(content['classes'], [Shard(**shard) for shard in content['shards']], content['location'])
        _check(index)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f'{source}: no index of shards that can be used ({reason(error)}); scripts/make_shards.py '
                        f'--index writes it') from error
    return index


def _check(index):
    """Raise ValueError for values that a written index does not have."""
    if not all(isinstance(name, str) and name for name in (*index.classes, index.location or 'beside')):
        raise ValueError('a class has no name')
    if not index.shards:
        raise ValueError('it lists no shard')
    if repeated := [name for name, count in Counter(shard.name for shard in index.shards).items() if count > 1]:
        raise ValueError(f'{repeated[0]} is listed twice')
    for shard in index.shards:
        numbers = [shard.bytes, shard.crc32, *shard.labels, *shard.offsets, *shard.sizes]
        if not NAME.fullmatch(shard.name) or not all(isinstance(member, str) for member in shard.members):
            raise ValueError(f'{shard.name[:80]}: no name of a shard, as train-000000.tar')
        if not all(type(number) is int and 0 <= number < 1 << 62 for number in numbers) or \
                not 0 < len(shard.members) == len(shard.labels) == len(shard.offsets) == len(shard.sizes) or \
                not all(offset + size <= shard.bytes for offset, size in zip(shard.offsets, shard.sizes, strict=True)):
            raise ValueError(f'{shard.name}: its numbers contradict each other')
    check_labels(index)


def check_labels(index: Index) -> None:
    """Raise ValueError that names an image whose label is no class."""
    for shard in index.shards:
        if max(shard.labels, default=0) >= len(index.classes):
            member, label = next((member, label) for member, label in zip(shard.members, shard.labels, strict=True)
                                 if label >= len(index.classes))
            raise ValueError(f'{shard.name}: {member}: its label is {label}, but there are {len(index.classes)} '
                             f'classes, from 0')


def number_classes(shards: Iterable[Shard]) -> list[str]:
    """The numbers of all classes up to the largest label, as names."""
    return [str(i) for i in range(1 + max((label for shard in shards for label in shard.labels), default=-1))]


def read_shard(path: str | Path, source: str | None = None) -> Shard:
    """Read a tar file through: KEY.jpg or another image, and KEY.cls with the number of its class.

    KEY is the member's name up to the first dot of its file name, as in the library webdataset. source: the path or URL
    of the shard if `path` is a copy. Raises SourceError for a file that is cut short, damaged or no tar, and for an
    image without a class.
    """
    source, crc = source or str(path), 0
    with open_regular(path, source) as file:
        try:
            while chunk := file.read(CHUNK):
                crc = zlib.crc32(chunk, crc)
            size = file.tell()
            file.seek(0)
            images, labels = _read_members(file)
        except (tarfile.TarError, OSError, ValueError) as error:
            raise SourceError(f'{source}: no shard that can be read ({reason(error)}); give a whole tar file, not '
                              f'compressed, with KEY.jpg (or another image) and KEY.cls, the number of its class'
                              ) from error
    members, offsets, sizes = map(list, zip(*images.values(), strict=True))
    return Shard(os.path.basename(source), size, crc, members, [labels[key] for key in images], offsets, sizes)


def _read_members(file):
    """({KEY: (name, offset, size) of its image}, {KEY: label}) of an open tar. Raises TarError, OSError, ValueError."""
    images, labels = {}, {}
    with tarfile.open(fileobj=file, mode='r:') as tar:
        for member in tar:
            key, extension = split_name(member.name)
            if not member.isreg() or member.issparse() or not key:
                continue
            if extension == 'cls':
                labels[key] = _label(member.name, tar.extractfile(member).read(BLOCK))
            elif f'.{extension}' in EXTENSIONS:
                if key in images:
                    raise ValueError(f'{images[key][0]} and {member.name} are images of the same key')
                images[key] = member.name, member.offset_data, member.size
        file.seek(tar.offset)       # tarfile takes a damaged header for the end
        if file.read(BLOCK) != bytes(BLOCK):
            raise ValueError(f'cut short or damaged at byte {tar.offset}')
    if missing := images.keys() - labels.keys():
        raise ValueError(f'{images[min(missing)][0]} has no class: {min(missing)}.cls is missing')
    if not images:
        raise ValueError(f'it holds no image; images are {" ".join(EXTENSIONS)}')
    return images, labels


def split_name(name: str) -> tuple[str, str]:
    """(KEY, extension in small letters) of a member: 'ant/1.seg.PNG' -> ('ant/1', 'seg.png'); no KEY: ''."""
    folder, slash, file = name.rpartition('/')
    stem, _, extension = file.partition('.')
    return (folder + slash + stem if stem else ''), extension.lower()


def _label(name, content):
    text = content.decode(errors='replace').strip()
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        raise ValueError(f'{name} holds "{text[:80]}", which is no number of a class')
    return int(text)
