"""Prepare a --qat student for an 8-bit ONNX file, with the ranges of its training instead of a new calibration."""
import copy

import torch
from torch import Tensor

from models.base import Net
from models.fold import fold_batchnorm
from models.quantisation import ActivationPass, RoundedPass, scales_of, weight_scales

LARGEST_BIAS = 2**30        # as an integer; rounding then cannot exceed 32 bits


def integer_net(net: Net, image_size: int) -> Net:
    """Return a copy of a quantised `net` that torch.onnx.export writes with QuantizeLinear and DequantizeLinear."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    fold_batchnorm(net, image_size)
    layers = []
    net.new_pass = lambda net: _CollectIntegers(net, layers)
    net.outputs(torch.zeros(2, 3, image_size, image_size))
    scales, zero_points = scales_of(net.activation_ranges)
    activations = [*zip(scales.clone().unbind(), zero_points.to(torch.uint8).unbind(), strict=True)]
    net.new_pass = lambda net: _OnnxPass(activations, layers)
    return net


class _CollectIntegers(RoundedPass):
    """Appends for each layer (integers, scales) of its weight, and of its bias if it has one, to `layers`."""

    def __init__(self, net, layers: list[tuple]):
        super().__init__(net)
        self.layers = layers

    def layer_inputs(self, input, weight, bias=None):
        scales, input_scale, integer_bias = weight_scales(weight), self.scales[self.count], None
        if bias is not None:
            # In ONNX a bias has the scale of weight * input. A channel of tiny weights needs a larger one for its bias.
            scales = torch.maximum(scales, bias.abs() / (LARGEST_BIAS * input_scale))
            integer_bias = (bias / (scales * input_scale)).round().to(torch.int32), scales * input_scale
        integers = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
        self.layers.append(((integers, scales), integer_bias))
        return super().layer_inputs(input, weight, bias)


class _OnnxPass(ActivationPass):
    """Rounds with operators of ONNX; integers and scales become constants of the file."""

    def __init__(self, activations: list[tuple[Tensor, Tensor]], layers: list[tuple]):
        super().__init__()
        self.activations, self.layers = activations, iter(layers)
        self.dequantised = {}       # onnxruntime expects one rounding of an activation, even if two functions read it

    def activation(self, x, number):
        key = id(x), x._version
        if key not in self.dequantised:
            constants = self.activations[number]
            integers = torch.onnx.ops.symbolic('QuantizeLinear', (x, *constants), dtype=torch.uint8, shape=x.shape)
            self.dequantised[key] = x, _dequantise(integers, *constants)
        return self.dequantised[key][1]

    def layer_inputs(self, input, weight, bias=None):
        x, (integer_weight, integer_bias) = self.argument(input), next(self.layers)
        return x, _dequantise(*integer_weight), None if integer_bias is None else _dequantise(*integer_bias)


def _dequantise(integers, scale, *zero_point):
    """(integers - zero_point) * scale in float32. scale: a scalar, or (C,) for the first dimension."""
    attributes = {'axis': 0} if scale.dim() else {}
    return torch.onnx.ops.symbolic('DequantizeLinear', (integers, scale, *zero_point), attributes,
                                   dtype=torch.float32, shape=integers.shape)
