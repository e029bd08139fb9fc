"""The ONNX file in 8 bits of a net that was trained for it by --qat: with the net's own ranges, without calibration."""
import copy

import torch
from torch import Tensor

from models.base import Net
from models.fold import fold_batchnorm
from models.quantisation import ActivationPass, RoundedPass, scales_of, weight_scales

LARGEST = 2**30     # of a bias, so that rounding cannot exceed 32 bits


def integer_net(net: Net, image_size: int) -> Net:
    """A copy of a quantised `net` for torch.onnx.export: with integer weights, QuantizeLinear and DequantizeLinear."""
    net = copy.deepcopy(net).eval().requires_grad_(False)
    fold_batchnorm(net, image_size)
    layers = []
    net.new_pass = lambda net: _Collect(net, layers)
    net.outputs(torch.zeros(2, 3, image_size, image_size))
    scales, zero_points = scales_of(net.activation_ranges)
    activations = [*zip(scales.clone().unbind(), zero_points.to(torch.uint8).unbind(), strict=True)]
    net.new_pass = lambda net: _OnnxPass(activations, layers)
    return net


class _Collect(RoundedPass):
    """Keeps (values, scales) of the weight and of the bias of each layer, in integers."""

    def __init__(self, net, layers: list[tuple]):
        super().__init__(net)
        self.layers = layers

    def layer(self, input, weight, bias=None):
        scales, scale_of_input, of_bias = weight_scales(weight), self.scales[self.count], None
        if bias is not None:    # scaled as their product; a channel of tiny weights gets a larger scale for its bias
            scales = torch.maximum(scales, bias.abs() / (LARGEST * scale_of_input))
            of_bias = (bias / (scales * scale_of_input)).round().to(torch.int32), scales * scale_of_input
        integers = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
        self.layers.append(((integers, scales), of_bias))
        return super().layer(input, weight, bias)


class _OnnxPass(ActivationPass):
    """Rounds by operators of ONNX. The integers and scales become constants of the file."""

    def __init__(self, activations: list[tuple[Tensor, Tensor]], layers: list[tuple]):
        super().__init__()
        self.activations, self.layers = activations, iter(layers)
        self.dequantised = {}       # an activation that several functions read is rounded once, as onnxruntime expects

    def activation(self, x, number):
        key = id(x), x._version
        if key not in self.dequantised:
            constants = self.activations[number]
            integers = torch.onnx.ops.symbolic('QuantizeLinear', (x, *constants), dtype=torch.uint8, shape=x.shape)
            self.dequantised[key] = x, _dequantise(integers, *constants)
        return self.dequantised[key][1]

    def layer(self, input, weight, bias=None):
        x, (of_weight, of_bias) = self.replaced(input), next(self.layers)
        return x, _dequantise(*of_weight), None if of_bias is None else _dequantise(*of_bias)


def _dequantise(integers, scale, *zero_point):
    """integers * scale in float32; scale: a scalar, or (C,) for the channels, the first dimension."""
    attributes = {'axis': 0} if scale.dim() else {}
    return torch.onnx.ops.symbolic('DequantizeLinear', (integers, scale, *zero_point), attributes,
                                   dtype=torch.float32, shape=integers.shape)
