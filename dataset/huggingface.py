"""Image data sets of Hugging Face, from the hub or from disk: --dataset hf:NAME_OR_PATH[,KEY=VALUE...]."""
import io
import os
from pathlib import Path

import torch
from PIL import Image

from helper.cli import comma_list
from helper.errors import UserError, nearest, reason

from .folder import HELD_OUT, list_images
from .identity import file_checksum
from .image import read_rgb

PREFIX = 'hf:'
KEYS = ('config', 'image', 'label', 'train', 'test')
LABELS = ('label', 'labels', 'fine_label')      # the usual names of the column of labels


class HubSplit:
    """The images of one split, by number, and the class of each, int64 (N,)."""

    def __init__(self, rows, column: str, labels: torch.Tensor, source: str, name: str):
        """rows: a datasets.Dataset with a `column` of images. source: begins the errors. name: of the split."""
        import datasets
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.labels, self.source, self.name = column, labels, source, name

    @property
    def names(self) -> list[str]:
        """The numbers of the rows: images have no names of their own."""
        return [str(i) for i in range(len(self.labels))]

    def checksum(self) -> int:
        """See identity.file_checksum."""
        return file_checksum((), self._content, len(self.labels))

    def _content(self, i):
        try:
            image = self.rows[i][self.column]
            return image['bytes'] or Path(image['path']).read_bytes()
        except Exception:       # a damaged row, an empty one, a missing file
            return b''

    def read(self, i: int) -> Image.Image:
        """Image i as RGB. Raises UserError that names it."""
        name = f'{self.source} {self.name}, image {i}'
        try:
            image = self.rows[i][self.column]
        except Exception as error:      # whatever a damaged file makes the library raise
            raise UserError(f'{name}: cannot be read ({reason(error)})') from error
        if not image or image['bytes'] is None and not image['path']:
            raise UserError(f'{name}: its row is empty')
        return read_rgb(image['path']) if image['bytes'] is None else read_rgb(name, io.BytesIO(image['bytes']))


def open_sources(opt) -> tuple[HubSplit, HubSplit, list[str]]:
    """(train, test, classes) of opt.dataset. Raises UserError if it cannot be loaded, or has no images or classes."""
    flag, found = f'--dataset {opt.dataset}', _Splits(opt)
    train, test = found.source(found.train), found.test()
    if train.labels is None or test is None:
        raise UserError(f'{flag}: needs a split to train on and one of {", ".join(HELD_OUT)}, each with labels of the '
                        f'same classes in all rows; it has {", ".join(found.splits)}; give train=SPLIT or test=SPLIT, '
                        f'or --split 0.8,0.2 to divide the training images')
    return train, test, found.classes


def open_whole(opt) -> tuple[HubSplit, list[str]]:
    """(source, classes) of the only split of opt.dataset that has labels, for --split. Raises UserError."""
    found = _Splits(opt)
    train, test = found.source(found.train), found.test()
    if test is not None:
        raise UserError(f'--split {comma_list(opt.split)}: --dataset {opt.dataset} has the splits {found.train} and '
                        f'{test.name} already; leave it out')
    if train.labels is None:
        raise UserError(f'--dataset {opt.dataset}: {found.train} has no label of the same classes in each row; give '
                        f'train=SPLIT or label=COLUMN')
    return train, found.classes


class _Splits:
    """The splits of opt.dataset, the name of the training split, and the classes. Raises UserError."""

    def __init__(self, opt):
        flag = f'--dataset {opt.dataset}'
        self.name, self.given = _settings(opt.dataset, flag)
        self.splits = _load(self.name, self.given.get('config'), flag)
        _say_left_out(self.name, self.splits, flag)
        self.train = self.given.get('train', 'train')
        for key, split in (('train', self.train), ('test', self.given.get('test', self.train))):
            if split not in self.splits:
                raise UserError(f'{flag}: has no split {split}; it has {", ".join(self.splits)}; give {key}=SPLIT')
        self.image, self.label = _columns(self.splits[self.train].features, self.given, flag)
        self.classes, self.numbers = _classes(self.splits[self.train], self.label, flag)

    def source(self, split):
        rows = self.splits[split]
        return HubSplit(rows, self.image, _labels(rows, self.label, self.numbers), f'hf:{self.name}', split)

    def test(self):
        """The test split; None if no split for testing has labels."""
        others = [split for split in HELD_OUT if split in self.splits and split != self.train]
        held_out = [self.given['test']] if 'test' in self.given else others
        return next((found for found in map(self.source, held_out) if found.labels is not None), None)


def _settings(text, flag):
    name, *words = text.partition(':')[2].split(',')
    given = {}
    for word in words:
        key, equals, value = word.partition('=')
        if not equals or key not in KEYS or key in given:
            raise UserError(f'{flag}: {word}: give {", ".join(KEYS)} as KEY=VALUE, each once; '
                            f'{nearest(key, KEYS)}')
        given[key] = value
    if not name:
        raise UserError(f'{flag}: give hf:NAME_OR_PATH, as hf:uoft-cs/cifar100')
    return name, given


def _load(name, config, flag):
    try:
        import datasets
    except ImportError as error:
        raise UserError(f'{flag}: needs the library datasets: pip install datasets') from error
    saved = os.path.exists(Path(name, 'dataset_dict.json'))
    if saved and config is not None:
        raise UserError(f'{flag}: config={config}: a folder of save_to_disk has no configurations; leave it out')
    try:
        return datasets.load_from_disk(name) if saved else datasets.load_dataset(name, config)
    except Exception as error:      # no network, no such data set, files of another kind, a script
        raise UserError(f'{flag}: cannot be loaded ({reason(error)}); give a name of the hub, or a folder that '
                        f'save_to_disk wrote or that holds parquet files or images') from error


def _say_left_out(name, splits, flag):
    """Print a line if `name` is a folder of image files, of which the library reads only some."""
    files, rows = len(list_images(name)[0]) if os.path.isdir(name) else 0, sum(map(len, splits.values()))
    if files > rows:
        print(f'{flag}: the library datasets reads {rows} of {files} image files there; --dataset folder reads all')


def _columns(features, given, flag):
    """The names of the columns of images and labels."""
    import datasets
    images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
    classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    usual = [name for name in LABELS if name in (classes or features)] or (classes if len(classes) == 1 else [])
    image, label = given.get('image', *images[:1]), given.get('label', *usual[:1])
    for key, found, known in (('image', image, images), ('label', label, [*features])):
        if found not in known:
            raise UserError(f'{flag}: {"it is not clear" if found is None else f"{found} is not"} the column of '
                            f'{key}s; its columns are {", ".join(features)}; give {key}=COLUMN')
    return image, label


def _classes(rows, label, flag):
    """(names of the classes, value of a row -> number of its class; for a ClassLabel, its name -> number)."""
    import datasets
    feature = rows.features[label]
    if isinstance(feature, datasets.ClassLabel):
        return list(feature.names), {name: i for i, name in enumerate(feature.names)}
    if not isinstance(feature, datasets.Value) or not {type(value) for value in rows.unique(label)} <= {int, str}:
        raise UserError(f'{flag}: {label} holds no names or numbers of classes; give label=COLUMN')
    values = sorted(rows.unique(label))
    return [str(value) for value in values], {value: i for i, value in enumerate(values)}


def _labels(rows, label, numbers):
    """The class of each row, int64 (N,); None where not every row has one, or there is no row."""
    values = rows[label] if label in rows.features else []
    names = getattr(rows.features.get(label), 'names', None)        # each split may order the names differently
    if names is not None:
        values = [names[value] if value in range(len(names)) else None for value in values]
    found = [numbers.get(value) for value in values]
    return torch.tensor(found, dtype=torch.int64) if found and None not in found else None
