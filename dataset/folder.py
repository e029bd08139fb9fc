"""Folders of images: SPLIT/CLASS/*, or with --split CLASS/*."""
import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import torch

from helper.cli import comma_list
from helper.errors import UserError, counted, listed, printable

from .image import EXTENSIONS, HEIF
from .source import TEST_SPLITS, Source, read_bytes, val_split

SYSTEM_FILES = ('Thumbs.db', 'desktop.ini', '__MACOSX')     # skipped, as are names that begin with a dot
MOST_EXTENSIONS, MOST_NAMED = 10, 5     # extensions and folders that a message lists


@dataclass
class Split(Source):
    """The files of one split and the class of each, int64 (N,). root: the folder to which `names` are relative."""

    files: list[str]
    labels: torch.Tensor
    root: Path = Path()
    name: str = ''

    @property
    def names(self) -> list[str]:
        """Each file's path below the root, with / between its parts."""
        return [file.removeprefix(f'{self.root}{os.sep}').replace(os.sep, '/') for file in self.files]

    def content(self, i):
        return self.files[i], read_bytes(self.files[i])

    def entries(self):
        chunks = [self.files[i:i + 1000] for i in range(0, len(self.files), 1000)]
        with ThreadPoolExecutor() as pool:      # on a network disk each size takes a while
            sizes = [size for part in pool.map(_file_sizes, chunks) for size in part]
        return [f'{name} {size}' for name, size in zip(self.names, sizes, strict=True)]


def _file_sizes(files):
    """The size of each file in bytes; -1 for one that cannot be read, as a broken link."""
    def size(file):
        try:
            return os.path.getsize(file)
        except OSError:
            return -1
    return [size(file) for file in files]


def open_sources(opt) -> tuple[dict[str, Split], list[str]]:
    """({'train', 'test', maybe 'val'} -> split, classes) of --data_dir. Raises UserError."""
    return scan(Path(opt.data_dir), needs_train=not getattr(opt, 'unlabelled', None))


def open_whole(opt) -> tuple[Split, list[str]]:
    """(source, classes) for --split: {data_dir}/CLASS/*, or {data_dir}/train/CLASS/* if `train` is the only folder."""
    root = Path(opt.data_dir)
    if not os.path.isdir(root):
        raise UserError(f'--data_dir: {root}: no such folder; wanted is {root}/CLASS/*')
    folders = sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name))
    splits = [name for name in folders if name.lower() in ('train', 'training', 'testing', *TEST_SPLITS)]
    if len(splits) > 1:     # a class may have the name of one split, for example train
        raise UserError(f'--split {comma_list(opt.split)}: {root} has the splits {" and ".join(splits)} already; leave '
                        f'it out (their names must be train, test, val)')
    return _scan_split(root / 'train' if folders == ['train'] else root)


def scan(root: Path, needs_train: bool = True) -> tuple[dict[str, Split], list[str]]:
    """({'train', 'test', maybe 'val'} -> split, classes) of root/train/CLASS/* and root/NAME/CLASS/*.

    NAME of test is the first of TEST_SPLITS with classes. If that is `test`, val is the first of VAL_SPLITS with
    classes. Unless needs_train, the folder `train` may be missing. Raises UserError for a missing folder, a class
    without training images, and classes that differ.
    """
    wanted = f'{root}/train/CLASS/* and {root}/test/CLASS/*'
    if not os.path.isdir(root):
        raise UserError(f'--data_dir: {root}: no such folder; wanted are {wanted}')
    test_folders = [root / name for name in TEST_SPLITS if os.path.isdir(root / name)]
    has_train = os.path.isdir(root / 'train')
    if (needs_train and not has_train) or not test_folders:
        raise UserError(f'--data_dir: {root}: needs {wanted}; --split 0.8,0.2 divides the images of {root}/CLASS/*')
    train, classes = _scan_split(root, 'train' if has_train else test_folders[0].name)
    # The test set of a competition, as ImageNet's, has no class folders: take the next split.
    labelled = [folder for folder in test_folders if any(os.path.isdir(folder / name) for name in classes)]
    folder = (labelled or test_folders)[0]
    if folder != test_folders[0]:
        print(f'--data_dir: {test_folders[0]}: has no class folders, so the test images are taken from {folder.name}')
    names = {'test': folder.name, 'val': val_split(folder.name, [folder.name for folder in labelled])}
    others = {part: _scan_evaluation_split(root, name, classes) for part, name in names.items() if name}
    return {**({'train': train} if has_train else {}), **others}, classes


def _scan_evaluation_split(root, name, classes):
    """The Split root/NAME. Raises UserError if its classes differ from the training images'."""
    split, split_classes = _scan_split(root, name, may_have_empty_classes=True)
    if classes != split_classes:
        differing = sorted(set(classes) ^ set(split_classes))
        raise UserError(f'--data_dir: {root}: train and {name} must have the same classes; only one of them has: '
                        f'{", ".join(differing[:10])}; keep an empty folder for a class without images there')
    return split


def _scan_split(root, name='', may_have_empty_classes=False):
    """(Split, classes) of root/NAME/CLASS/*, or without a name of root/CLASS/*. Prints how many files it skips."""
    folder = root / name
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not is_hidden(entry.name)), key=lambda e: e.name)
        classes = [entry.name for entry in entries if entry.is_dir()]
        images, others = zip(*(list_images(folder / name) for name in classes), strict=True) if classes else ((), ())
        if len(classes) == 1:
            _check_only_class(folder / classes[0])
    except OSError as error:
        raise UserError(f'--data_dir: {error.filename}: cannot be read ({error.strerror})') from error
    print_skipped(f'--data_dir: {folder}', [file for files in others for file in files],
                  [entry.name for entry in entries if not entry.is_dir()])
    empty = [name for name, files in zip(classes, images, strict=True) if not files]
    if not classes or (empty and not may_have_empty_classes) or len(empty) == len(classes):
        fault = f'no image in the class {", ".join(empty[:10])}' if empty else 'no folder of a class'
        raise UserError(f'--data_dir: {folder}: {fault}; images are {" ".join(EXTENSIONS)}')
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(files) for files in images]))
    return Split([file for files in images for file in files], labels, root, name), classes


def _check_only_class(folder):
    """Raise UserError if the only class has several folders with images, which look like the classes."""
    inner = sorted(entry.name for entry in os.scandir(folder)
                   if entry.is_dir() and not is_hidden(entry.name) and list_images(entry.path)[0])
    if len(inner) > 1:
        raise UserError(f'--data_dir: {folder.parent}: holds one class alone, {folder.name}, with the folders '
                        f'{listed(inner, MOST_NAMED)} in it, which look like the classes; move them into '
                        f'{folder.parent}')


def is_hidden(name: str) -> bool:
    """Whether a file or folder is skipped: its name begins with a dot, or an operating system uses it."""
    return name.startswith('.') or name in SYSTEM_FILES


def list_images(folder) -> tuple[list[str], list[str]]:
    """(image files, other files) below a folder, sorted, without hidden ones. Follows links. Raises OSError."""
    def fail(error):
        raise error

    visited, contents = set(), []
    for parent, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(parent)
        folders[:] = [name for name in folders if not is_hidden(name)]
        if real in visited:     # a link leads back
            folders.clear()
            continue
        visited.add(real)
        contents.append((parent, sorted(name for name in names if not is_hidden(name))))
    files = [os.path.join(parent, name) for parent, names in sorted(contents) for name in names]
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    return images, [file for file in files if not file.lower().endswith(EXTENSIONS)]


def print_skipped(source: str, files: Sequence[str], outside: Sequence[str] = (), to: TextIO | None = None) -> None:
    """Print a line that counts skipped files by extension: other files, and files `outside` the class folders.

    The line says what to install if photographs of phones are among them.
    """
    if files or outside:
        counts = count_extensions(files) + [f'{n} outside the class folders' for n in count_extensions(outside)]
        has_heif = any(file.lower().endswith(HEIF) for file in files)
        advice = '; pip install pillow-heif to read .heic files' if has_heif else ''
        print(f'{source}: {counted(len(files) + len(outside), "file")} left out: {", ".join(counts)}{advice}', file=to)


def count_extensions(files: Sequence[str]) -> list[str]:
    """Counts of files by extension, as '2 .txt': the most frequent first, the rare ones summed up."""
    counts = Counter(os.path.splitext(file)[1].lower() or 'without an ending' for file in files).most_common()
    rest = sum(n for _, n in counts[MOST_EXTENSIONS:])
    return [f'{n} {printable(extension)}' for extension, n in counts[:MOST_EXTENSIONS]] + \
        [f'{rest} of other endings'] * (rest > 0)
