"""Image data sets of Hugging Face, from the hub or from disk: --dataset hf:NAME_OR_PATH[,KEY=VALUE...]."""
import os
from pathlib import Path

import torch

from helper.cli import comma_list
from helper.errors import UserError, import_optional, nearest, reason

from .folder import list_images
from .source import TEST_SPLITS, Source, read_bytes, val_split

PREFIX = 'hf:'
KEYS = ('config', 'image', 'label', 'train', 'val', 'test')
LABELS = ('label', 'labels', 'fine_label')      # the usual names of the label column


class HubSplit(Source):
    """The images of one split, and the class of each, int64 (N,)."""

    def __init__(self, rows, column: str, labels: torch.Tensor, source: str, name: str):
        """rows: a datasets.Dataset with a `column` of images. source: begins the errors. name: of the split."""
        import datasets
        self.rows = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
        self.column, self.labels, self.source, self.name = column, labels, source, name

    @property
    def names(self) -> list[str]:
        """The row numbers: images have no names of their own."""
        return [str(i) for i in range(len(self.labels))]

    def content(self, i):
        name = f'{self.source} {self.name}, image {i}'
        try:
            image = self.rows[i][self.column]
        except Exception as error:      # whatever a damaged file makes the library raise
            raise UserError(f'{name}: cannot be read ({reason(error)})') from error
        if not image or image['bytes'] is None and not image['path']:
            raise UserError(f'{name}: its row is empty')
        return (image['path'], read_bytes(image['path'])) if image['bytes'] is None else (name, image['bytes'])


def open_sources(opt) -> tuple[dict[str, HubSplit], list[str]]:
    """({'train', 'test', maybe 'val'} -> split, classes) of opt.dataset.

    Raises UserError if it cannot be loaded, or has no images or classes.
    """
    splits = _Splits(opt)
    train, test = splits.train, splits.test
    if train.labels is None or test is None:
        raise UserError(f'--dataset {opt.dataset}: needs a split to train on and one of {", ".join(TEST_SPLITS)}, each '
                        f'with labels of the same classes in all rows; it has {", ".join(splits.splits)}; give '
                        f'train=SPLIT or test=SPLIT, or --split 0.8,0.2 to divide the training images')
    return {'train': train, 'test': test, **splits.val()}, splits.classes


def open_whole(opt) -> tuple[HubSplit, list[str]]:
    """(source, classes) of the only split of opt.dataset that has labels, for --split. Raises UserError."""
    splits = _Splits(opt)
    train, test = splits.train, splits.test
    if test is not None:
        raise UserError(f'--split {comma_list(opt.split)}: --dataset {opt.dataset} has the splits {train.name} and '
                        f'{test.name} already; leave it out')
    if train.labels is None:
        raise UserError(f'--dataset {opt.dataset}: {train.name} has no label of the same classes in each row; give '
                        f'train=SPLIT or label=COLUMN')
    return train, splits.classes


class _Splits:
    """The splits of opt.dataset and their classes. test: None if no split for testing has labels. Raises UserError."""

    def __init__(self, opt):
        self.flag = f'--dataset {opt.dataset}'
        self.name, self.settings = self._parse(opt.dataset)
        self.splits = self._load()
        train = self.settings.get('train', 'train')
        for key in ('train', 'val', 'test'):
            split = self.settings.get(key, train)
            if split not in self.splits:
                raise UserError(f'{self.flag}: has no split {split}; it has {", ".join(self.splits)}; give {key}=SPLIT')
        self.image, self.label = self._columns(self.splits[train].features)
        self.classes, self.numbers = self._classes(self.splits[train])
        self.train = self._source(train)
        usual = [split for split in TEST_SPLITS if split in self.splits and split != train]
        names = [self.settings['test']] if 'test' in self.settings else usual
        self.test = next((source for source in map(self._source, names) if source.labels is not None), None)

    def val(self) -> dict[str, HubSplit]:
        """{'val': its split}; empty without one. Raises UserError for a split without labels."""
        unused = [split for split in self.splits if split not in (self.train.name, self.test.name)]
        name = self.settings.get('val', val_split(self.test.name, unused))
        if name is None:
            return {}
        val = self._source(name)
        if val.labels is None:
            if 'val' not in self.settings:      # as some published splits
                return {}
            raise UserError(f'{self.flag}: val={name}: has no label of the same classes in each row; leave it out')
        return {'val': val}

    def _source(self, split):
        return HubSplit(self.splits[split], self.image, self._labels(self.splits[split]), f'hf:{self.name}', split)

    def _parse(self, text):
        """(NAME_OR_PATH, {KEY: VALUE})."""
        name, *words = text.partition(':')[2].split(',')
        settings = {}
        for word in words:
            key, equals, value = word.partition('=')
            if not equals or key not in KEYS or key in settings:
                raise UserError(f'{self.flag}: {word}: give {", ".join(KEYS)} as KEY=VALUE, each once; '
                                f'{nearest(key, KEYS)}')
            settings[key] = value
        if not name:
            raise UserError(f'{self.flag}: give hf:NAME_OR_PATH, as hf:uoft-cs/cifar100')
        return name, settings

    def _load(self):
        """name -> datasets.Dataset of each split. Prints a line if the library reads only some files of a folder."""
        datasets = import_optional('datasets', self.flag)
        name, config = self.name, self.settings.get('config')
        is_saved = os.path.exists(Path(name, 'dataset_dict.json'))
        if is_saved and config is not None:
            raise UserError(f'{self.flag}: config={config}: a folder of save_to_disk has no configurations; leave it '
                            f'out')
        try:
            splits = datasets.load_from_disk(name) if is_saved else datasets.load_dataset(name, config)
        except Exception as error:      # no network, no such data set, files of another kind, a script
            raise UserError(f'{self.flag}: cannot be loaded ({reason(error)}); give a name of the hub, or a folder '
                            f'that save_to_disk wrote or that holds parquet files or images') from error
        n_files, n_rows = len(list_images(name)[0]) if os.path.isdir(name) else 0, sum(map(len, splits.values()))
        if n_files > n_rows:
            print(f'{self.flag}: the library datasets reads {n_rows} of {n_files} image files there; --dataset folder '
                  f'reads all')
        return splits

    def _columns(self, features):
        """The names of the image and label columns."""
        import datasets
        images = [name for name, feature in features.items() if isinstance(feature, datasets.Image)]
        classes = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
        usual = [name for name in LABELS if name in (classes or features)] or (classes if len(classes) == 1 else [])
        columns = {'image': self.settings.get('image', *images[:1]), 'label': self.settings.get('label', *usual[:1])}
        for key, known in (('image', images), ('label', features)):
            if columns[key] not in known:
                fault = 'it is not clear' if columns[key] is None else f'{columns[key]} is not'
                raise UserError(f'{self.flag}: {fault} the column of {key}s; its columns are {", ".join(features)}; '
                                f'give {key}=COLUMN')
        return columns.values()

    def _classes(self, rows):
        """(class names, value in a row -> class number). A value of a ClassLabel column is the name of a class."""
        import datasets
        label, feature = self.label, rows.features[self.label]
        if isinstance(feature, datasets.ClassLabel):
            values = feature.names
        elif isinstance(feature, datasets.Value) and {type(value) for value in rows.unique(label)} <= {int, str}:
            values = sorted(rows.unique(label))
        else:
            raise UserError(f'{self.flag}: {label} holds no names or numbers of classes; give label=COLUMN')
        return [str(value) for value in values], {value: i for i, value in enumerate(values)}

    def _labels(self, rows):
        """The class of each row, int64 (N,); None unless every row has one, and for no rows."""
        values = rows[self.label] if self.label in rows.features else []
        names = getattr(rows.features.get(self.label), 'names', None)       # each split may order the names differently
        if names is not None:
            values = [names[value] if value in range(len(names)) else None for value in values]
        labels = [self.numbers.get(value) for value in values]
        return torch.tensor(labels, dtype=torch.int64) if labels and None not in labels else None
