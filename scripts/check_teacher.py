"""Check that a file holds all weights of a model for small images (CIFAR).

python scripts/check_teacher.py FILE MODEL [--num_classes 100]
"""
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helper.cli import Parser, number, path
from helper.errors import run_main
from models.load import load_net, open_checkpoint


def training_notes(checkpoint: dict) -> str:
    """', epoch 240, accuracy 72.34', as far as the checkpoint has them."""
    text = ''
    for name, key in (('epoch', 'epoch'), ('accuracy', 'accuracy'), ('best accuracy', 'best_acc')):
        value = checkpoint.get(key)
        if isinstance(value, torch.Tensor) and value.numel() == 1:      # in checkpoints of PyTorch 1.0
            value = value.item()
        if isinstance(value, int | float):
            text += f', {name} {round(value, 2)}'
    return text


def main():
    parser = Parser(description='Check that a file holds all weights of a model for small images (CIFAR).')
    parser.add_argument('file', type=path, metavar='FILE', help='the checkpoint')
    parser.add_argument('model', metavar='MODEL', help='a name in models.model_dict')
    parser.add_argument('--num_classes', type=number(int, low=1), default=100, help='number of classes of its data')
    parser.add_argument('--checkpoint_key', metavar='KEY',
                        help='the key of the weights in FILE, such as model_ema; if omitted, an average is preferred')
    opt = parser.parse_args()
    checkpoint = open_checkpoint(opt.file, 'teacher', opt.checkpoint_key)
    data = SimpleNamespace(num_classes=opt.num_classes, image_size=32)      # a ResNet50 has the 3x3 stem
    net = load_net(opt.file, checkpoint, opt.model, data, 'teacher')
    params = sum(p.numel() for p in net.parameters())
    print(f'{opt.model} ok: {opt.num_classes} classes, {params:,} parameters{training_notes(checkpoint)}')


if __name__ == '__main__':
    run_main(main)
