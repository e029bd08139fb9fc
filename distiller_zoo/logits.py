"""What may be done to the logits before any loss on soft labels reads them."""
from collections.abc import Callable

from torch import Tensor, nn

from .criteria.logits import standardize_logits


class LogitTransform(nn.Module):
    """A change of both nets' logits, or of the temperature, that goes with every method; its parameters learn too.

    A subclass is listed in `transforms`. Where several are asked for, they apply in that order.
    """

    scheduled_over_epochs = False       # as the method's

    @classmethod
    def add_arguments(cls, add: Callable) -> None:
        """Its flags: add('--name', ...) as argparse's add_argument."""

    @classmethod
    def from_options(cls, opt, num_classes: int) -> 'LogitTransform | None':
        """The transform that these options ask for; None where they do not."""
        raise NotImplementedError(cls.__name__)

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        """As the method's."""

    def forward(self, logits_s: Tensor, logits_t: Tensor, temperature):
        """Student's and teacher's logits (N, classes) and the temperature, a number or a scalar -> the three, changed.

        The cross-entropy with the true class keeps the student's own logits.
        """
        return logits_s, logits_t, temperature


class LogitStandardization(LogitTransform):
    """Both nets' logits are standardised before the temperature."""

    @classmethod
    def add_arguments(cls, add):
        add('--logit_stand', action='store_true', help='standardise the logits of both nets in the loss on soft labels')

    @classmethod
    def from_options(cls, opt, num_classes):
        return cls() if opt.logit_stand else None

    def forward(self, logits_s, logits_t, temperature):
        return standardize_logits(logits_s), standardize_logits(logits_t), temperature


transforms: list[type[LogitTransform]] = [LogitStandardization]
