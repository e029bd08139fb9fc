"""--entropy_weights: weight each image in the loss by the entropy of both nets' predictions."""
import math
from collections.abc import Callable

from torch import Tensor

from helper.cli import number

from .criteria.eakd import entropy_weights
from .spec import Spec

# option -> its value with --entropy_weights, unless the method has another
ENTROPY_OPTIONS = {'entropy_T': 3.0, 'entropy_bound': 'log'}


class EntropyWeights:
    """The weights of the images in a method's loss; none without --entropy_weights."""

    def __init__(self, spec: Spec, opt, num_classes: int):
        self.is_used = opt.entropy_weights and bool(spec.published_entropy_weights)     # not of all methods of a sum
        self.temperature = opt.entropy_T if self.is_used else ENTROPY_OPTIONS['entropy_T']
        self.bound = float(num_classes) if opt.entropy_bound == 'classes' else math.log(num_classes)

    def __call__(self, logits_s: Tensor, logits_t: Tensor, factors: Tensor | None = None) -> Tensor | None:
        """Logits (N, classes) -> weights (N,), multiplied by `factors` (N,) if given. Without the flag: `factors`."""
        if not self.is_used:
            return factors
        weights = entropy_weights(logits_s, logits_t, self.temperature, self.bound)
        return weights if factors is None else weights * factors


def add_arguments(add: Callable) -> None:
    add('--entropy_weights', action='store_true',
        help="EA-KD: weight each image in the method's loss by the entropy of both nets' predictions")
    add('--entropy_T', type=number(float, above=0, high=1e4),
        help='temperature of these entropies; not given: the published one, mostly 3')
    add('--entropy_bound', choices=('classes', 'log'),
        help="divisor of the student's entropy, the number of classes or its logarithm; not given: the published one")
