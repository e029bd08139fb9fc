"""The ONNX file in 8 bits of a net that was trained for it by --qat: with the net's own ranges, without calibration."""
import copy

import torch
from torch import Tensor

from models.base import Net
from models.fold import fold_batchnorm
from models.quantisation import FakeQuantisedPass, RoundedPass, scales_of, weight_scales


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


class _Collect(FakeQuantisedPass):
    """Keeps (values, scales) of the weight and of the bias of each layer, in integers."""

    def __init__(self, net, layers: list[tuple]):
        super().__init__(net)
        self.layers = layers

    def layer(self, x, weight, bias=None, *rest):
        scales, scale_of_x = weight_scales(weight), self.scales[self.count]
        values = (weight / scales.view(-1, *[1] * (weight.dim() - 1))).round().to(torch.int8)
        of_bias = None if bias is None else (_int32(bias / (scales * scale_of_x)), scales * scale_of_x)
        self.layers.append(((values, scales), of_bias))
        return super().layer(x, weight, bias, *rest)


class _OnnxPass(RoundedPass):
    """Rounds by operators of ONNX. The integers and scales become constants of the file."""

    def __init__(self, activations: list[tuple[Tensor, Tensor]], layers: list[tuple]):
        super().__init__()
        self.activations, self.layers = activations, iter(layers)
        self.done = {}      # an activation that several functions read is rounded once, as onnxruntime expects it

    def activation(self, x, number):
        key = id(x), x._version
        if key not in self.done:
            constants = self.activations[number]
            integers = torch.onnx.ops.symbolic('QuantizeLinear', (x, *constants), dtype=torch.uint8, shape=x.shape)
            self.done[key] = x, _dequantise(integers, *constants)
        return self.done[key][1]

    def layer(self, x, weight, bias=None, *rest):
        x, (of_weight, of_bias) = self.rounded(x), next(self.layers)
        return (x, _dequantise(*of_weight), None if of_bias is None else _dequantise(*of_bias), *rest)


def _dequantise(integers, scale, *zero_point):
    """integers * scale in float32; scale: a scalar, or (C,) for the channels, the first dimension."""
    attributes = {'axis': 0} if scale.dim() else {}
    return torch.onnx.ops.symbolic('DequantizeLinear', (integers, scale, *zero_point), attributes,
                                   dtype=torch.float32, shape=integers.shape)


def _int32(x):
    limit = 2**31 - 129     # exact in float32
    return x.round().clamp(-limit, limit).to(torch.int32)
