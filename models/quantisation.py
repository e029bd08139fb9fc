"""--qat: a net that computes with weights and activations rounded to 8 bits, as its exported file does.

The largest absolute value of each output channel of a weight gives its scale. Each activation has a fixed range, which
`calibrate` measures. Gradients pass the rounding unchanged, but are 0 for values outside their range.
Wu et al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602.
"""
import copy
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from helper import distributed
from helper.errors import UserError

from .base import Net

RANGES = 'activation_ranges'    # the name of Quantised.activation_ranges in a state_dict
# Functions whose inputs are rounded. Attention and layer norms stay in float. Batch norms and ReLUs are not listed: an
# export folds a batch norm into its convolution, and a ReLU into the range of its output.
LAYERS = {'conv2d', 'linear'}
WITHOUT_WEIGHTS = {'add', 'mul', 'cat', 'concat', 'mean', 'adaptive_avg_pool2d', 'avg_pool2d', 'max_pool2d',
                   'hardswish', 'hardsigmoid', 'sigmoid', 'silu', 'gelu'}
IN_PLACE = {'add_': torch.add, 'mul_': torch.mul}
CALIBRATION_IMAGES = 512        # training images from which the ranges are measured
CLIPPED = 1e-4                  # share of an activation's values beyond each end of its range
SAMPLES = 2**14                 # values of each activation that `calibrate` keeps of a batch


class ActivationPass(TorchFunctionMode):
    """A forward pass in which a subclass can replace the inputs of LAYERS, WITHOUT_WEIGHTS and IN_PLACE."""

    def __init__(self):
        super().__init__()
        self.count = 0      # activations so far

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, '__name__', ''), {**(kwargs or {})}
        if name in LAYERS:
            named = dict(zip(('input', 'weight', 'bias'), args, strict=False))
            named |= {key: kwargs.pop(key) for key in ('input', 'weight', 'bias') if key in kwargs}
            return func(*self.layer_inputs(**named), *args[3:], **kwargs)
        if name in IN_PLACE:
            return args[0].copy_(IN_PLACE[name](*tree_map(self.argument, args), **kwargs))
        if name in WITHOUT_WEIGHTS:
            args, kwargs = tree_map(self.argument, (args, kwargs))
        return func(*args, **kwargs)

    def argument(self, x):
        """Return `activation` of an argument that is one; any other argument unchanged."""
        if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.dim() < 2 or not x.is_floating_point():
            return x
        self.count += 1
        return self.activation(x, self.count - 1)

    def activation(self, x: Tensor, number: int) -> Tensor:
        """Return the tensor to use instead of x, activation `number` of this pass, counted from 0."""
        return x

    def layer_inputs(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> tuple:
        """Return the (input, weight, bias) to use in a convolution or linear layer."""
        return self.argument(input), weight, bias


class _Samples(ActivationPass):
    """Appends random values of each activation to its list in `values`."""

    def __init__(self, values: list[list[Tensor]]):
        super().__init__()
        self.values = values

    def activation(self, x, number):
        flat = x.detach().flatten()
        # The indices are always the same, so that a feature map has one range even if two layers read it.
        generator = torch.Generator().manual_seed(0)
        indices = torch.randint(len(flat), (min(len(flat), SAMPLES), ), generator=generator)
        self.values[number].append(flat[indices.to(x.device)].float().cpu())
        return x


class RoundedPass(ActivationPass):
    """Rounds each activation to 256 values and each output channel of a weight to 255."""

    def __init__(self, net: 'Quantised'):
        super().__init__()
        scales, zero_points = scales_of(net.activation_ranges)
        self.scales, self.zero_points = scales.unbind(), zero_points.unbind()

    def activation(self, x, number):
        return FakeQuantise.apply(x, self.scales[number], self.zero_points[number], 0, 255)

    def layer_inputs(self, input, weight, bias=None):
        return self.argument(input), round_weight(weight), bias


class FakeQuantise(torch.autograd.Function):
    """x -> (integer - zero_point) * scale, with the integer from `low` to `high` whose value is nearest to x.

    Computes as ONNX does, and is faster on a CPU than torch.fake_quantize_per_tensor_affine.
    """

    @staticmethod
    def forward(ctx, x, scale, zero_point, low, high):
        integers = (x / scale).round_().add_(zero_point)
        clamped = integers.clamp(low, high)
        ctx.save_for_backward(integers == clamped)
        return clamped.sub_(zero_point).mul_(scale)

    @staticmethod
    def backward(ctx, grad):
        is_inside, = ctx.saved_tensors
        return torch.where(is_inside, grad, 0.0), None, None, None, None


class Quantised:
    """Makes `outputs` compute with rounded values. `quantise` adds it to the class of a net as its first base."""

    activation_ranges: Tensor       # (activations, 2): the ends of each range, in the order of computation
    new_pass = RoundedPass

    def outputs(self, x: Tensor, preact: bool = False):
        with self.new_pass(self):
            return super().outputs(x, preact)


def scales_of(ranges: Tensor) -> tuple[Tensor, Tensor]:
    """Ranges (A, 2) -> (scales, zero points), each (A,), for integers from 0 to 255."""
    low, high = ranges.unbind(1)
    scales = ((high - low) / 255).clamp_min(1e-8)
    return scales, (-low / scales).round().clamp(0, 255).int()


def weight_scales(weight: Tensor) -> Tensor:
    """weight (C, ...) -> (C,): the largest absolute value of each output channel becomes 127."""
    return (weight.detach().abs().flatten(1).amax(1) / 127).clamp_min(1e-12)


def round_weight(weight: Tensor) -> Tensor:
    """weight (C, ...), rounded by output channel."""
    scales = weight_scales(weight).view(-1, *[1] * (weight.dim() - 1))
    return FakeQuantise.apply(weight, scales, 0, -127, 127)


def quantise(net: Net, image_size: int, label: str = '') -> None:
    """Make `net` compute with rounded values, in place. Its ranges are zero until `calibrate` or load_state_dict.

    Raises UserError that begins with `label` for a net with another number of activations in training.
    """
    count = _count_activations(net, image_size)
    if _count_activations(copy.deepcopy(net).train(), image_size) != count:
        raise UserError(f'{label}: has layers that only compute in training, such as stochastic depth, so it has no '
                        f'fixed ranges; give a student without them')
    net.register_buffer(RANGES, torch.zeros(count, 2))
    net.__class__ = type(type(net).__name__, (Quantised, type(net)), {})


@torch.no_grad()
def _count_activations(net, image_size):
    with ActivationPass() as activations:
        net.outputs(torch.zeros(2, 3, image_size, image_size))
    return activations.count


def check_ranges(net: Quantised, label: str) -> None:
    """Raise UserError that begins with `label` if the ranges cannot come from `calibrate`."""
    low, high = net.activation_ranges.unbind(1)
    if not net.activation_ranges.isfinite().all() or (low > 0).any() or (high < 0).any():
        raise UserError(f'{label}: its {RANGES} must be finite and contain 0; the file is damaged')


def remove_rounding(net: Quantised) -> None:
    """Undo `quantise`, in place."""
    del net.activation_ranges
    net.__class__ = type(net).__bases__[1]


@torch.no_grad()
def calibrate(net: Quantised, batches: Iterable[Tensor]) -> None:
    """Set the ranges of a quantised net, in eval mode, from batches of images (N, 3, H, W).

    Each range contains 0, and a share CLIPPED of the values is beyond each end. All processes use those of the first.
    """
    values = [[] for _ in net.activation_ranges]
    net.eval()
    net.new_pass = lambda net: _Samples(values)
    for images in batches:
        net.outputs(images)
    del net.new_pass
    ends = torch.stack([torch.cat(parts).quantile(torch.tensor([CLIPPED, 1 - CLIPPED])) for parts in values])
    ranges = torch.stack([ends[:, 0].clamp_max(0), ends[:, 1].clamp_min(0)], 1)
    net.activation_ranges.copy_(torch.tensor(distributed.broadcast(ranges.tolist)))


def calibration_images(data) -> Iterator[Tensor]:
    """Batches of CALIBRATION_IMAGES training images of a dataset.Data, unaugmented and the same in every run."""
    shuffled = torch.randperm(data.n_train, generator=torch.Generator().manual_seed(0))
    indices = shuffled[:CALIBRATION_IMAGES].sort()[0].tolist()
    for images, *_ in data.unaugmented_loader(indices):
        yield images
