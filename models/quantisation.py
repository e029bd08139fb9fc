"""--qat: a net that computes with weights and activations rounded to 8 bits, as its exported file does.

Each output channel of a weight has a scale, which follows from its largest absolute value. Each activation has a fixed
range, which `calibrate` measures. Gradients pass the rounding unchanged; a value outside its range gets none.
Wu et al., Integer Quantization for Deep Learning Inference, 2020, arXiv:2004.09602.
"""
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from helper.errors import UserError

from .base import Net, probe

RANGES = 'activation_ranges'    # the name of Quantised.activation_ranges in a state_dict
# Functions whose inputs are rounded. Batch norms and ReLUs are not among them: an export folds a batch norm into the
# convolution before it, and a ReLU into the range of its output.
LAYERS = {'conv2d', 'linear'}
OTHERS = {'add', 'mul', 'cat', 'concat', 'mean', 'adaptive_avg_pool2d', 'avg_pool2d', 'max_pool2d', 'hardswish',
          'hardsigmoid', 'sigmoid', 'silu', 'gelu'}
IN_PLACE = {'add_': torch.add, 'mul_': torch.mul}
IMAGES = 512                    # training images that give the ranges
OUTSIDE = 1e-4                  # share of the values of an activation beyond each end of its range
KEPT = 2**14                    # values of an activation that `calibrate` keeps of each batch


class RoundedPass(TorchFunctionMode):
    """A forward pass that rounds the inputs of LAYERS, OTHERS and IN_PLACE. A subclass defines `activation`."""

    def __init__(self):
        super().__init__()
        self.count = 0      # of activations so far

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, '__name__', ''), kwargs or {}
        if name in LAYERS:
            return func(*self.layer(*args), **kwargs)
        if name in OTHERS:
            return func(*tree_map(self.rounded, args), **kwargs)
        if name in IN_PLACE:
            return args[0].copy_(IN_PLACE[name](*tree_map(self.rounded, args), **kwargs))
        return func(*args, **kwargs)

    def rounded(self, x):
        """The argument of a function; rounded if it is an activation."""
        if not isinstance(x, Tensor) or isinstance(x, nn.Parameter) or x.dim() < 2 or not x.is_floating_point():
            return x
        self.count += 1
        return self.activation(x, self.count - 1)

    def activation(self, x: Tensor, number: int) -> Tensor:
        """x, the activation `number` of this pass from 0, rounded."""
        raise NotImplementedError

    def layer(self, x: Tensor, weight: Tensor, *rest) -> tuple:
        """The arguments of a convolution or linear layer, rounded."""
        return (self.rounded(x), round_weight(weight), *rest)


class _Unrounded(RoundedPass):
    """Counts the activations, and keeps some values of each in `values`, if given. Rounds nothing."""

    def __init__(self, values: list[list[Tensor]] | None = None):
        super().__init__()
        self.values = values

    def activation(self, x, number):
        if self.values is not None:
            flat = x.detach().flatten()
            step = -(-len(flat) // KEPT)
            # A copy, because an activation function may overwrite x.
            self.values[number].append(flat[::step].to('cpu', torch.float32, copy=True))
        return x

    def layer(self, x, *rest):
        return (self.rounded(x), *rest)


class FakeQuantisedPass(RoundedPass):
    """Rounds to the 256 values of each range."""

    def __init__(self, net: 'Quantised'):
        super().__init__()
        scales, zero_points = scales_of(net.activation_ranges)
        self.scales, self.zero_points = scales.unbind(), zero_points.unbind()

    def activation(self, x, number):
        if number >= len(self.scales):
            raise UserError('--qat: the student has layers that only compute in training, such as stochastic depth; '
                            'give a student without them')
        return FakeQuantise.apply(x, self.scales[number], self.zero_points[number], 0, 255)


class FakeQuantise(torch.autograd.Function):
    """x -> (integer - zero_point) * scale, for the integer from `low` to `high` that is nearest to x.

    Computed as by ONNX; on a CPU about six times as fast as torch.fake_quantize_per_tensor_affine.
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
    """Comes before the class of a base.Net that `quantise` changed."""

    activation_ranges: Tensor       # (activations, 2): the ends of each range, in the order of computation
    new_pass = FakeQuantisedPass

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


def quantise(net: Net, image_size: int) -> None:
    """Let `net` compute with rounded values, in place. Its ranges are zero until `calibrate` or load_state_dict."""
    with (unrounded := _Unrounded()):
        probe(net, image_size)
    net.register_buffer(RANGES, torch.zeros(unrounded.count, 2))
    net.__class__ = type(type(net).__name__, (Quantised, type(net)), {})


def remove_rounding(net: Quantised) -> None:
    """Undo `quantise`, in place."""
    del net.activation_ranges
    net.__class__ = type(net).__bases__[1]


@torch.no_grad()
def calibrate(net: Quantised, batches: Iterable[Tensor]) -> None:
    """Set the ranges of a quantised net, in eval mode, from batches of images (N, 3, H, W).

    A range contains 0, and leaves OUTSIDE of the values beyond each end.
    """
    values = [[] for _ in net.activation_ranges]
    net.eval()
    net.new_pass = lambda net: _Unrounded(values)
    for images in batches:
        net.outputs(images)
    del net.new_pass
    for ends, parts in zip(net.activation_ranges, values, strict=True):
        low, high = torch.cat(parts).quantile(torch.tensor([OUTSIDE, 1 - OUTSIDE]))
        ends.copy_(torch.stack([low.clamp_max(0), high.clamp_min(0)]))


def calibration_images(data) -> Iterator[Tensor]:
    """Batches of IMAGES training images of a dataset.Data, without augmentation; always the same images."""
    indices = torch.randperm(data.n_train, generator=torch.Generator().manual_seed(0))[:IMAGES].sort()[0].tolist()
    for images, *_ in data.unaugmented_loader(indices):
        yield images
