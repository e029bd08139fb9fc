"""The weight initialisation that the families of models share."""
import math

from torch import nn


def kaiming_fan_out_(net: nn.Module, linear_std: float | None = None) -> None:
    """Normal weights of variance 2 / fan_out for every convolution (He et al., ICCV 2015, arXiv:1502.01852).

    fan_out is kernel area times output channels, without the division by groups. Convolution biases become 0, batch
    norm 1 and 0; with `linear_std`, linear layers get normal weights of that deviation and bias 0.
    """
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * module.kernel_size[0] * module.kernel_size[1]
            nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear) and linear_std is not None:
            nn.init.normal_(module.weight, std=linear_std)
            nn.init.zeros_(module.bias)
