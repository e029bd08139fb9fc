"""3x3 convolutions and their gradients: torch and cpu_kernels/winograd.py, which --compile uses where `used` is yes."""
import torch
import torch.nn.functional as F
from torch import nn

from cpu_kernels.build import library
from cpu_kernels.winograd import conv3x3, input_gradient, is_faster, weight_gradient
from helper.errors import UserError

from .common import alternate

CONVOLUTIONS = ((16, 32), (32, 16), (64, 8), (128, 8), (128, 16), (256, 8), (512, 7), (512, 4), (256, 4), (128, 4),
                (64, 4), (64, 5), (64, 2))      # channels, pixels of a side


def convolutions(channels, size, opt, device):
    """Yield a row for each pass of a 3x3 convolution, from `channels` to as many, of square images."""
    torch.manual_seed(0)
    conv = nn.Conv2d(channels, channels, 3, padding=1).requires_grad_(False)
    images, grad = torch.randn(2, opt.batch_size, channels, size, size)
    images, grad, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, grad, conv.weight))

    def backward(*needs_gradient):
        torch.ops.aten.convolution_backward(grad, images, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1,
                                            (*needs_gradient, False))
    passes = {'forward': (lambda: F.conv2d(images, weight, padding=1), lambda: conv3x3(images, weight)),
              'gradient of the images': (lambda: backward(True, False), lambda: input_gradient(grad, weight)),
              'gradient of the weights': (lambda: backward(False, True), lambda: weight_gradient(images, grad))}
    for name, (torch_pass, winograd_pass) in passes.items():
        median = alternate({'torch': torch_pass, 'winograd': winograd_pass}, opt.rounds, device)
        yield {'channels, pixels': f'{channels}, {size} x {size}', 'pass': name,
               'torch ms': 1000 * median['torch'], 'winograd ms': 1000 * median['winograd'],
               'ratio': median['torch'] / median['winograd'], 'used': 'yes' if is_faster(conv, images) else 'no'}


def measure(opt, device):
    """The rows of all shapes."""
    try:
        library()
    except OSError as error:
        raise UserError(f'convolutions: {error}') from None
    return [row for shape in CONVOLUTIONS for row in convolutions(*shape, opt, device)]
