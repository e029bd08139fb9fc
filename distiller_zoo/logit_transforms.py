"""Transforms of the logits and the temperature that every loss on soft labels reads."""
from collections.abc import Callable

from torch import Tensor, nn

from .criteria.common import standardize_logits


class LogitTransform(nn.Module):
    """A change of both nets' logits, or of the temperature; its parameters learn.

    It applies to the soft labels, and to methods whose loss calls self.soft_labels.

    List a subclass in `transforms`; several apply in that order.
    """

    scheduled_over_epochs = False       # as in Spec

    @classmethod
    def add_arguments(cls, add: Callable) -> None:
        """Add its flags: add('--name', ...), as argparse's add_argument."""

    @classmethod
    def from_options(cls, opt, num_classes: int) -> 'LogitTransform | None':
        """Return the transform that these options ask for, or None."""
        raise NotImplementedError(cls.__name__)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """As a method's."""

    def forward(self, logits_s: Tensor, logits_t: Tensor, temperature):
        """Change the student's and the teacher's logits (N, classes) and the temperature, a number or a scalar.

        The cross-entropy reads the student's logits as they were.
        """
        return logits_s, logits_t, temperature


class LogitStandardization(LogitTransform):
    """Standardise the logits of both nets before the temperature."""

    @classmethod
    def add_arguments(cls, add):
        add('--logit_stand', action='store_true', help='standardise the logits of both nets in the loss on soft labels')

    @classmethod
    def from_options(cls, opt, num_classes):
        return cls() if opt.logit_stand else None

    def forward(self, logits_s, logits_t, temperature):
        return standardize_logits(logits_s), standardize_logits(logits_t), temperature


transforms: list[type[LogitTransform]] = [LogitStandardization]


class LogitTransforms(nn.ModuleList):
    """The transforms that the options ask for; without --logit_stand there are none."""

    def __init__(self, opt, num_classes: int):
        requested = (transform.from_options(opt, num_classes) for transform in transforms)
        super().__init__(transform for transform in requested if transform is not None)

    @property
    def scheduled_over_epochs(self) -> bool:
        """Whether any of them is."""
        return any(transform.scheduled_over_epochs for transform in self)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        for transform in self:
            transform.begin_epoch(epoch, epochs)
