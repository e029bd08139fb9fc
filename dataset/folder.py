"""Folders of images, SPLIT/CLASS/*: find the files, and decode small images once into memory."""
import contextlib
import os
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from helper.cli import comma_list
from helper.errors import UserError, listed, printable

from .identity import file_checksum, file_content, file_sizes
from .image import EXTENSIONS, read_rgb

SYSTEM_FILES = ('Thumbs.db', 'desktop.ini', '__MACOSX')     # skipped, as are names that begin with a dot
HELD_OUT = ('test', 'validation', 'valid', 'val')       # the first that has classes is the test set
MOST_ENDINGS, MOST_NAMED = 10, 5        # endings, and unreadable images or folders, that a line names
SAMPLE = 32     # training images whose shape is checked


@dataclass
class Split:
    """The files of one split and the class of each, int64 (N,): a source of images, see source_dict.

    root: the folder to which the file names are relative. name: of the split.
    """

    files: list[str]
    labels: torch.Tensor
    root: Path = Path()
    name: str = ''

    @property
    def names(self) -> list[str]:
        """Each file's path below the root, with / between its parts."""
        return [file.removeprefix(f'{self.root}{os.sep}').replace(os.sep, '/') for file in self.files]

    def read(self, i: int) -> Image.Image:
        """Image i as RGB. Raises UserError that names its file."""
        return read_rgb(self.files[i])

    def checksum(self) -> int:
        """See identity.file_checksum."""
        entries = (f'{name} {size}' for name, size in zip(self.names, file_sizes(self.files), strict=True))
        return file_checksum(entries, lambda i: file_content(self.files[i]), len(self.files))


def scan(root: Path) -> tuple[Split, Split, list[str]]:
    """(train, test, classes) of root/train/CLASS/* and root/NAME/CLASS/*, NAME the first of HELD_OUT that has classes.

    A class may have no test images. Raises UserError for a missing folder, a class without training images, and
    classes that differ between the two.
    """
    names = ' or '.join(HELD_OUT)
    wanted = f'{root}/train/CLASS/* and {root}/{names}/CLASS/*'
    if not os.path.isdir(root):
        raise UserError(f'--data_dir: {root}: no such folder; wanted are {wanted}')
    held_out = [root / name for name in HELD_OUT if os.path.isdir(root / name)]
    if not os.path.isdir(root / 'train') or not held_out:
        raise UserError(f'--data_dir: {root}: needs the folders train and {names}; wanted are {wanted}; '
                        f'--split 0.8,0.2 divides images that are in one of them, or in {root}/CLASS/*')
    train, classes = _scan_split(root, 'train')
    # The test set of a competition, as ImageNet's, has no class folders: take the next split.
    labelled = [folder for folder in held_out if any(os.path.isdir(folder / name) for name in classes)]
    chosen = (labelled or held_out)[0]
    if chosen != held_out[0]:
        print(f'--data_dir: {held_out[0]}: has no class folders, so the test images are taken from {chosen.name}')
    test, test_classes = _scan_split(root, chosen.name, may_be_empty=True)
    if classes != test_classes:
        odd = sorted(set(classes) ^ set(test_classes))
        raise UserError(f'--data_dir: {root}: train and {chosen.name} must have the same classes; only one of them '
                        f'has: {", ".join(odd[:10])}; keep an empty folder for a class without test images')
    return train, test, classes


def _scan_split(root, name='', may_be_empty=False):
    """(Split, classes) of root/NAME/CLASS/*, or without a name of root/CLASS/*. A line counts the skipped files.

    may_be_empty: some classes may have no image.
    """
    folder = root / name
    try:
        entries = sorted((entry for entry in os.scandir(folder) if not is_hidden(entry.name)), key=lambda e: e.name)
        classes = [entry.name for entry in entries if entry.is_dir()]
        files, others = zip(*(list_images(folder / name) for name in classes), strict=True) if classes else ((), ())
        if len(classes) == 1:
            _check_only_class(folder / classes[0])
    except OSError as error:
        raise UserError(f'--data_dir: {error.filename}: cannot be read ({error.strerror})') from error
    print_skipped(f'--data_dir: {folder}', [file for found in others for file in found],
                 beside=[entry.name for entry in entries if not entry.is_dir()])
    empty = [name for name, found in zip(classes, files, strict=True) if not found]
    if not classes or (empty and not may_be_empty) or len(empty) == len(classes):
        raise UserError(f'--data_dir: {folder}: ' + (f'no image in the class {", ".join(empty[:10])}' if empty else
                        'no folder of a class') + f'; images are {" ".join(EXTENSIONS)}')
    labels = torch.arange(len(classes)).repeat_interleave(torch.tensor([len(found) for found in files]))
    return Split([file for found in files for file in found], labels, root, name), classes


def _check_only_class(folder):
    """Raises UserError if the only class has several folders with images, which look like the classes."""
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
    """(image files, other files) in a folder and its subfolders, sorted, without the hidden ones.

    Links are followed, but to each folder once. Raises OSError for a folder that cannot be read.
    """
    def fail(error):
        raise error

    seen, found = set(), []
    for where, folders, names in os.walk(folder, followlinks=True, onerror=fail):
        real = os.path.realpath(where)
        folders[:] = [name for name in folders if not is_hidden(name)]
        if real in seen:        # a link has led back
            folders.clear()
            continue
        seen.add(real)
        found.append((where, sorted(name for name in names if not is_hidden(name))))
    files = [os.path.join(where, name) for where, names in sorted(found) for name in names]
    images = [file for file in files if file.lower().endswith(EXTENSIONS)]
    return images, [file for file in files if not file.lower().endswith(EXTENSIONS)]


def print_skipped(place: str, others: list[str], beside: Sequence[str] = (), to: TextIO | None = None) -> None:
    """Print one line that counts the skipped files below `place` by their endings; nothing if there are none.

    others: files that are no images. beside: files outside the class folders. to: not given: stdout.
    """
    if others or beside:
        kinds = [*by_ending(others), *(f'{kind} outside the class folders' for kind in by_ending(beside))]
        print(f'{place}: {len(others) + len(beside)} files left out: {", ".join(kinds)}', file=to)


def by_ending(files: Sequence[str]) -> list[str]:
    """Counts of files by ending, as '2 .txt': the most frequent first, the rare ones summed up."""
    counts = Counter(os.path.splitext(file)[1].lower() or 'without an ending' for file in files).most_common()
    rest = sum(n for _, n in counts[MOST_ENDINGS:])
    return [f'{n} {printable(kind)}' for kind, n in counts[:MOST_ENDINGS]] + [f'{rest} of other endings'] * (rest > 0)


def open_sources(opt) -> tuple[Split, Split, list[str]]:
    """(train, test, classes) of --data_dir, as scan finds them."""
    return scan(Path(opt.data_dir))


def open_whole(opt) -> tuple[Split, list[str]]:
    """(source, classes) for --split: {data_dir}/CLASS/*, or {data_dir}/train/CLASS/* if `train` is the only folder.

    Raises UserError as scan does, and for a folder that has a test set.
    """
    root, flag = Path(opt.data_dir), f'--split {comma_list(opt.split)}'
    if not os.path.isdir(root):
        raise UserError(f'--data_dir: {root}: no such folder; wanted is {root}/CLASS/*')
    held_out = [name for name in HELD_OUT if os.path.isdir(root / name)]
    if os.path.isdir(root / 'train') and held_out:
        raise UserError(f'{flag}: {root} has the splits train and {", ".join(held_out)} already; leave it out')
    folders = [entry.name for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name)]
    return _scan_split(root / 'train' if folders == ['train'] else root)


def resize_to_square(image: Image.Image, size: int, fit: str = 'crop') -> Image.Image:
    """The image scaled to size x size pixels. fit: of models.inputs.FITS, for oblong images.

    crop: scale the centre square. squash: scale both sides. pad: scale the longer side, and add black.
    """
    if image.size == (size, size):
        return image
    if fit == 'squash':
        return image.resize((size, size), Image.Resampling.BILINEAR)
    if fit == 'pad':
        inner = [max(1, round(side * size / max(image.size))) for side in image.size]
        square = Image.new('RGB', (size, size))
        square.paste(image.resize(inner, Image.Resampling.BILINEAR), [(size - side) // 2 for side in inner])
        return square
    return ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR)


def say_what_is_cut(source) -> None:
    """Print a line if --fit crop cuts images of this source; checks SAMPLE of them."""
    n, kept = len(source.labels), []
    for i in range(0, n, -(-n // SAMPLE)):
        with contextlib.suppress(UserError):
            width, height = source.read(i).size
            kept.append(min(width, height) / max(width, height))
    oblong = [share for share in kept if share < 1]
    if oblong:
        least, most = f'{min(oblong):.0%}', f'{max(oblong):.0%}'
        print(f'--fit crop: the centre square of each image is used; of {len(kept)} training images checked, '
              f'{len(oblong)} are oblong and keep {least if least == most else f"{least} to {most}"} of their pixels; '
              f'--fit squash or --fit pad keep all')


def decode(source, opt) -> tuple[torch.Tensor, torch.Tensor]:
    """(images uint8 (N, 3, S, S), labels) of a source, S = --image_size: scaled to a square by --fit.

    By --num_workers threads: the decoders release Python's lock. Raises UserError for an unreadable image, which
    --skip_bad_images leaves out instead, with a line that names them.
    """
    size, n = opt.image_size, len(source.labels)
    images = torch.empty(n, 3, size, size, dtype=torch.uint8)
    whole, errors = torch.ones(n, dtype=torch.bool), []

    def read(i):
        try:
            image = source.read(i)
        except UserError as error:
            if not opt.skip_bad_images:
                raise
            whole[i] = False
            errors.append(str(error))
            return
        images[i] = torch.from_numpy(np.array(resize_to_square(image, size, opt.fit))).permute(2, 0, 1)

    with ThreadPoolExecutor(max(1, opt.num_workers)) as pool:
        progress = tqdm(pool.map(read, range(n)), total=n, desc='reading images', unit='img', leave=False,
                        disable=not sys.stderr.isatty())
        try:
            for _ in progress:
                pass
        except UserError:
            pool.shutdown(cancel_futures=True)
            raise
    if whole.all():
        return images, source.labels
    check_some_are_read(int(whole.sum()), errors)
    say_unreadable(errors, 'left out')
    return images[whole], source.labels[whole]


def check_some_are_read(images: int, errors: Collection[str]) -> None:
    """Raises UserError if --skip_bad_images leaves no image. errors: of the unreadable ones."""
    if errors and not images:
        raise UserError(f'--skip_bad_images: none of the {len(errors)} images can be read; the first is {min(errors)}')


def say_unreadable(errors: Collection[str], done: str, to: TextIO | None = None) -> None:
    """Print one line that counts and names unreadable images. done: 'left out' or 'skipped'. to: not given: stdout."""
    named = '; '.join(sorted(errors)[:MOST_NAMED])
    more = f'; and {len(errors) - MOST_NAMED} more' if len(errors) > MOST_NAMED else ''
    print(f'{len(errors)} unreadable images {done}: {printable(named)}{more}', file=to)
