"""A training step of a library's network by itself, and behind the contract of models.base.Net, in turn."""
import torch
import torch.nn.functional as F

from helper.cli import number
from models.find import build

from .common import CLASSES, compare

NETS = 'timm:resnet18 timm:convnext_atto timm:vit_tiny_patch16_224 torchvision:regnet_y_400mf torchvision:resnet18'


def add_arguments(add):
    add('--nets', nargs='+', default=NETS.split(), help='networks of timm and torchvision')
    add('--image_size', type=number(int, low=16), default=64, help='pixels')


def measure(opt, device):
    """A row for each net and side."""
    images = torch.randn(opt.batch_size, 3, opt.image_size, opt.image_size, device=device)
    target = torch.arange(opt.batch_size, device=device) % CLASSES

    def training(net, logits):
        def run():
            for _ in range(opt.steps):
                net.zero_grad()
                F.cross_entropy(logits(images), target).backward()
        return run
    for name in opt.nets:
        adapter = build(name, CLASSES, opt.image_size, '--nets').to(device)
        library = adapter.net
        if name.startswith('torchvision:'):     # its adapter has replaced the net by its trace
            from torchvision import models
            library = models.get_model(name.partition(':')[2], num_classes=CLASSES).to(device)
        sides = {'library': training(library, library),
                 'adapter': training(adapter, lambda x, net=adapter: net.outputs(x).logits)}
        yield from compare('side', sides, opt.batch_size * opt.steps, opt, device, net=name)
