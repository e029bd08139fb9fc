"""The result of get_dataloaders: the loaders, and the properties of the data that a net and a run need."""
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from helper.errors import counted

from .normalise import CIFAR_MEAN, CIFAR_STD


@dataclass
class Data:
    """The loaders, each of batches (images, target, index) on the training device, and the properties of the data."""

    train_loader: Iterable
    test_loader: Iterable
    num_classes: int
    image_size: int         # height and width of an image in pixels
    labels: torch.Tensor    # class of each training sample, int64 (n_train,), on the CPU
    # Returns a loader of the training images, or of some indices, in order and without augmentation.
    unaugmented_loader: Callable[..., Iterable] | None = None
    val_loader: Iterable | None = None          # of the validation set; None without one
    val_labels: torch.Tensor | None = None      # class of each validation sample, int64 (n_val,), on the CPU
    test_labels: torch.Tensor | None = None     # class of each test sample, int64 (n_test,), on the CPU
    classes: tuple[str, ...] = ()               # their names
    mean: tuple[float, ...] = CIFAR_MEAN        # of the colours, for pixels from 0 to 1: both loaders normalise with it
    std: tuple[float, ...] = CIFAR_STD
    normalisation: str = "CIFAR's"       # source of mean and std, for the terminal
    crop_pct: float = 1.0       # test images are the centre of an image whose shorter side is image_size / crop_pct
    interpolation: str = 'bilinear'     # to scale images, of models.inputs.INTERPOLATIONS
    images_in: str | None = None    # 'memory' or 'disk' for data sets that can be read from both
    fit: str = 'crop'               # how oblong images become squares, of models.inputs.FITS
    test_split: str = ''            # the name of the split that is measured, if the data set has several
    split: dict | None = None       # --split, --val_fraction: 'train', 'val' or 'test' -> names of its images
    test_names: Sequence[str] = ()  # of the files of the test images, also of unreadable ones; empty if they have none
    flags: tuple[str, ...] = ()     # flags of a train script that select these data, for messages
    same_classes: bool = False      # --same_classes: do not compare the class names of a checkpoint with `classes`
    has_labels: bool = True         # whether labels are used at all
    n_unlabelled: int = 0           # training images of --unlabelled
    unlabelled_checksum: int | None = None      # of these
    checksum: int | None = None     # of all images, regardless of --val_fraction and --train_fraction

    @property
    def class_count(self) -> str:
        """The number of classes as the start of a text; empty if no class is learnt."""
        return f'{self.num_classes} classes, ' if self.has_labels else ''

    @property
    def sizes(self) -> str:
        """The numbers of training, unlabelled and test images, and the split of the test images."""
        counts = {'training': self.n_train, 'unlabelled': self.n_unlabelled,
                  'validation': 0 if self.val_labels is None else len(self.val_labels), 'test': len(self.test_labels)}
        return ', '.join(counted(count, f'{name} image') for name, count in counts.items() if count) + (
            f' in {self.test_split}' if self.test_split else '')

    @property
    def selection_split(self) -> str:
        """The split on which the best epoch is selected: 'val', or 'test' without a validation set."""
        return 'test' if self.val_loader is None else 'val'

    @property
    def selection_loader(self) -> Iterable:
        """The loader of selection_split."""
        return self.test_loader if self.val_loader is None else self.val_loader

    @property
    def selection_labels(self) -> torch.Tensor:
        """The class of each image of selection_split, int64, on the CPU."""
        return self.test_labels if self.val_loader is None else self.val_labels

    @property
    def selection_note(self) -> str:
        """A sentence for the terminal: on which split the best epoch is selected."""
        if not self.has_labels:
            return 'the best epoch is chosen by the mean cosine similarity of the student\'s and the teacher\'s ' \
                   'embeddings of the test images'
        if self.val_loader is not None:
            return 'the best epoch is chosen on the validation set; the test set is measured once, at the end'
        advice = 'give --val_fraction 0.1 to choose it on held-out training images' if self.n_train else \
            'give a validation set to choose it on that'
        return f'the best epoch is chosen on the test set, as in the papers, so its accuracy is optimistic; {advice}'

    @property
    def preprocessing(self) -> str:
        """The mean and the deviation of the colours, and where they are from."""
        mean, std = (' '.join(f'{value:.4g}' for value in values) for values in (self.mean, self.std))
        return f'{self.normalisation}, mean {mean}, deviation {std}'

    @property
    def description(self) -> str:
        """The preprocessing as text for the terminal; for image files also how test images are scaled."""
        crop = f', crop_pct {self.crop_pct:.4g}' if self.crop_pct < 1 else ''
        return f'colours: {self.preprocessing}' + (
            f'; test images: {self.interpolation}{crop}' if self.images_in and self.test_names else '')

    @property
    def n_train(self) -> int:
        """Training samples with a label."""
        return len(self.labels)

    def test_name(self, number: int) -> str | None:
        """The name of a test image's file, below the folder of the data; None if it is unknown."""
        return self.test_names[number] if len(self.test_names) == len(self.test_labels) else None

    @property
    def inputs(self) -> dict:
        """The preprocessing that a checkpoint stores; see models.inputs.Inputs."""
        return {'mean': [*self.mean], 'std': [*self.std], 'size': self.image_size,
                'interpolation': self.interpolation, 'fit': self.fit, 'crop_pct': self.crop_pct}
