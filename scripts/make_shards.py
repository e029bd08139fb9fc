"""Write tar shards for --dataset wds:DIR from a folder of images, or the index of shards that exist, or check them.

python scripts/make_shards.py --data_dir FOLDER --out DIR [--shard_size 1000] [--seed 0]
python scripts/make_shards.py --index FOLDER_OR_URL/train-{000000..000009}.tar [--out DIR] [--classes FILE]
python scripts/make_shards.py --check FOLDER_OR_URL

FOLDER is the --data_dir of --dataset folder. After an interruption the same command continues.
"""
import argparse
import contextlib
import io
import os
import re
import sys
import tarfile
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from tqdm import tqdm

from dataset.folder import Split, open_whole, scan
from dataset.shard_files import download, is_remote
from dataset.shard_index import (
    INDEX,
    WHOLE,
    Index,
    Shard,
    check_labels,
    number_classes,
    read_index,
    read_shard,
    split_name,
)
from dataset.shards import list_shards, open_index, parse_location
from dataset.source import TEST_SPLITS, read_bytes
from helper.cli import Parser, number, path
from helper.errors import UserError, counted, listed, printable, run_main
from helper.files import FolderLock, make_folder, read_text, write_atomically

MOST_NAMED = 5      # files or shards that a message lists


def shard_size(text):
    """A converter for argparse: '1000' -> (1000, inf) images and bytes of a shard at most; '100MB' -> (inf, 1e8)."""
    match = re.fullmatch(r'([1-9]\d{0,8})(MB)?', text)
    if not match:
        raise argparse.ArgumentTypeError(f'{text[:80]}: give a number of images, as 1000, or a size, as 100MB')
    return (float('inf'), int(match[1]) * 10**6) if match[2] else (int(match[1]), float('inf'))


def options():
    parser = Parser(description=' '.join(__doc__.split('\n\n')[::2]))       # without the commands
    add = parser.add_argument
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument('--data_dir', type=path, metavar='FOLDER', help='write the images of this folder into shards')
    task.add_argument('--index', type=path, metavar='FOLDER_OR_URL', help=f'write the {INDEX} of these shards')
    task.add_argument('--check', type=path, metavar='FOLDER_OR_URL', help=f'compare all shards with their {INDEX}')
    add('--out', type=path, metavar='DIR', help='the folder to write to; with --index of a folder not needed')
    add('--shard_size', type=shard_size, default='1000', metavar='N', help='images of a shard, or its size as 100MB')
    add('--seed', type=number(int, low=0), default=0, help='decides which training images a shard holds')
    add('--classes', type=path, metavar='FILE', help='with --index: the name of each class, one a line, from class 0')
    opt = parser.parse_args()
    if opt.data_dir and not opt.out:
        parser.error('--data_dir: give --out DIR, the folder of the shards')
    if opt.classes and not opt.index:
        parser.error('--classes: goes with --index; the classes of --data_dir are its folders')
    return opt


def open_folder(root: Path) -> tuple[list[Split], list[str]]:
    """(splits, classes) of a folder; without a test set one split with the name WHOLE. Raises UserError."""
    if os.path.isdir(root / 'train') and any(os.path.isdir(root / name) for name in TEST_SPLITS):
        splits, classes = scan(root)
        return [*splits.values()], classes
    split, classes = open_whole(argparse.Namespace(data_dir=root))
    split.name = WHOLE
    return [split], classes


def member_names(split: Split) -> list[str]:
    """A name for each file in a tar, CLASS/NAME.jpg: without other dots, and none with the KEY of another."""
    names, keys = [], set()
    for name in split.names:
        folder, file = os.path.split(name if split.name == WHOLE else name.removeprefix(f'{split.name}/'))
        stem, extension = os.path.splitext(file)
        stem = stem.replace('.', '_')
        while (key := split_name(f'{folder}/{stem}{extension}')[0].lower()) in keys:
            stem += '_'
        keys.add(key)
        names.append(f'{folder}/{stem}{extension}')
    return names


def divide(split: Split, most_images: float, most_bytes: float, seed: int) -> list[list[int]]:
    """The indices of the images of each shard. Test and validation images keep their order."""
    n, sizes = len(split.files), [int(entry.rpartition(' ')[2]) for entry in split.entries()]
    is_shuffled = split.name in ('train', WHOLE)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed)).tolist() if is_shuffled else range(n)
    shards, size = [[]], 0
    for i in order:
        if shards[-1] and (len(shards[-1]) >= most_images or size + sizes[i] > most_bytes):
            shards.append([])
            size = 0
        shards[-1].append(i)
        size += sizes[i]
    return shards


def write_shard(file_name: Path, split: Split, members: list[str], indices: list[int]) -> Shard:
    """Write the images of these indices, unless the file has them already. Raises UserError for another file."""
    def write(file):
        with tarfile.open(fileobj=file, mode='w', format=tarfile.PAX_FORMAT) as tar:
            for i in indices:
                add(tar, members[i], read_bytes(split.files[i]))
                add(tar, f'{split_name(members[i])[0]}.cls', str(int(split.labels[i])).encode())

    if not file_name.exists():
        try:
            write_atomically(file_name, write)
        except UserError as error:
            raise UserError(f'{error}; after a remedy the same command continues') from error
    shard = read_shard(file_name)
    if (shard.members, shard.labels) != ([members[i] for i in indices], split.labels[indices].tolist()) or \
            shard.sizes != [os.path.getsize(split.files[i]) for i in indices]:
        raise UserError(f'--out {file_name.parent}: {file_name.name} holds other images, of another folder, --seed or '
                        f'--shard_size; give a new folder, or remove the shards')
    return shard


def add(tar, name, content):
    """Add a member to an open tar."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def make(root: Path, out: Path, most_images: float, most_bytes: float, seed: int) -> None:
    """Write the shards of a folder, and their index. Raises UserError."""
    splits, classes = open_folder(root)
    plans = {split.name: divide(split, most_images, most_bytes, seed) for split in splits}
    with only_process(out):
        index = Index(classes, write_shards(splits, plans, out))
        index.write(out / INDEX)
    for split in splits:
        print(f'{out}: {split.name}: {counted(len(split.files), "image")} in '
              f'{counted(len(plans[split.name]), "shard")}')
    print(f'{out}: {counted(len(classes), "class")}; train with --dataset wds:{out}'
          + (' --split 0.8,0.2' if splits[0].name == WHOLE else ''))


@contextlib.contextmanager
def only_process(out: Path):
    """Make the folder and keep other processes of this script out of it. Raises UserError."""
    make_folder(out, f'--out {out}')
    lock = FolderLock(out)
    if not lock.take():
        raise UserError(f'--out {out}: another process writes there; wait for it')
    try:
        yield
    finally:
        lock.release()


def write_shards(splits: list[Split], plans: dict[str, list[list[int]]], out: Path) -> list[Shard]:
    """Write the shards that `out` lacks. plans: name of a split -> indices of each shard. Raises UserError."""
    planned = {f'{name}-{i:06d}.tar' for name, plan in plans.items() for i in range(len(plan))}
    if others := sorted(name for name in os.listdir(out) if name not in {*planned, INDEX} and name[0] != '.'):
        raise UserError(f'--out {out}: holds other files ({listed(others, MOST_NAMED)}); give a new folder, or another '
                        f'--shard_size if they are its shards')
    shards = []
    with tqdm(total=len(planned), desc='shards', unit='shard', disable=not sys.stderr.isatty()) as bar:
        for split in splits:
            members = member_names(split)
            for i, indices in enumerate(plans[split.name]):
                shards.append(write_shard(out / f'{split.name}-{i:06d}.tar', split, members, indices))
                bar.update()
    return shards


def read_anywhere(location: str, name: str) -> Shard:
    """Read a shard of a folder or URL through. Raises UserError."""
    if not is_remote(location):
        return read_shard(Path(location, name))
    with tempfile.NamedTemporaryFile() as file:
        download(f'{location}/{name}', file)
        file.flush()
        return read_shard(file.name, f'{location}/{name}')


def write_index(text: str, out: Path | None, classes_file: str | None) -> None:
    """Write the index of existing shards, beside them or into `out`. Raises UserError."""
    flag = f'--index {text}'
    location, names = parse_location(text, flag)
    if is_remote(location) and (names is None or out is None):
        raise UserError(f"{flag}: a server does not list its files; give '{location}/train-{{000000..000009}}.tar' and "
                        f"--out DIR")
    names = list_shards(Path(location), flag) if names is None else names
    folder = out or Path(location)
    with kept_if_filled(folder):
        shards = [read_anywhere(location, name)
                  for name in tqdm(names, desc='shards', unit='shard', disable=not sys.stderr.isatty())]
        index = Index(class_names(folder, classes_file, shards), shards, stored_location(location, folder))
        try:
            check_labels(index)
        except ValueError as error:
            raise UserError(f'{flag}: {error}; give --classes FILE with a line for each class') from error
        index.write(folder / INDEX)
    images = sum(len(shard.members) for shard in shards)
    print(f'{folder / INDEX}: {counted(len(shards), "shard")}, {counted(images, "image")}, '
          f'{counted(len(index.classes), "class")}; train with --dataset wds:{folder}')


@contextlib.contextmanager
def kept_if_filled(folder: Path):
    """Make the folder, which is removed again if nothing has been written into it. Raises UserError."""
    is_new = not folder.exists()
    make_folder(folder, f'--out {folder}')
    try:
        yield
    finally:
        if is_new:
            with contextlib.suppress(OSError):      # it holds a file
                folder.rmdir()


def class_names(folder: Path, classes_file: str | None, shards: list[Shard]) -> list[str]:
    """The names in a file, else in an older index in the folder, else numbers. Raises UserError."""
    if classes_file:
        return [line.strip() for line in read_text(classes_file, f'--classes {classes_file}').splitlines()]
    with contextlib.suppress(UserError):
        return read_index(folder / INDEX, '').classes
    return number_classes(shards)


def stored_location(location: str, folder: Path) -> str | None:
    """The location of the shards as an index in `folder` stores it: a URL, an absolute folder, or None for `folder`."""
    if is_remote(location):
        return location
    absolute = Path(location).resolve()
    return None if absolute == folder.resolve() else str(absolute)


def check(text: str) -> None:
    """Read all shards through. Raises UserError that names those that differ from the index."""
    index, faults = open_index(text, f'--check {text}'), []
    for shard in tqdm(index.shards, desc='shards', unit='shard', disable=not sys.stderr.isatty()):
        try:
            if read_anywhere(index.location, shard.name) != shard:
                faults.append(f'{shard.name} differs from {INDEX}')
        except UserError as error:
            faults.append(str(error))
    if faults:
        raise UserError(f'--check {text}: {len(faults)} of {counted(len(index.shards), "shard")}: '
                        f'{printable("; ".join(faults[:MOST_NAMED]))}')
    print(f'{index.location}: {counted(len(index.shards), "shard")}, '
          f'{counted(sum(len(shard.members) for shard in index.shards), "image")}: all as in {INDEX}')


def main():
    opt = options()
    out = Path(opt.out) if opt.out else None
    if opt.check:
        check(opt.check)
    elif opt.index:
        write_index(opt.index, out, opt.classes)
    else:
        make(Path(opt.data_dir), out, *opt.shard_size, opt.seed)


if __name__ == '__main__':
    run_main(main)
