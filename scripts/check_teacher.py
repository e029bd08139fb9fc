"""Say whether a file holds the whole weights of a model for small images, CIFAR's.

python scripts/check_teacher.py FILE MODEL [--num_classes 100]
"""
import sys
from pathlib import Path
from types import SimpleNamespace

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helper.cli import Parser, number, path  # noqa: E402
from helper.errors import run_main  # noqa: E402
from models.load import load_net, open_checkpoint  # noqa: E402

IMAGE_SIZE = 32     # ResNet50 and its like are meant in the form with the 3x3 stem


def notes(checkpoint: dict) -> str:
    """', epoch 240, accuracy 72.34', as far as the checkpoint tells them."""
    text = ''
    for word, key in (('epoch', 'epoch'), ('accuracy', 'accuracy'), ('best accuracy', 'best_acc')):
        value = checkpoint.get(key)
        if isinstance(value, torch.Tensor) and value.numel() == 1:      # as torch 1.0's training scripts kept it
            value = value.item()
        if isinstance(value, int | float):
            text += f', {word} {round(value, 2)}'
    return text


def main():
    parser = Parser(description='Check a published teacher.')
    parser.add_argument('file', type=path, metavar='FILE', help='checkpoint')
    parser.add_argument('model', metavar='MODEL', help='a name of models.model_dict')
    parser.add_argument('--num_classes', type=number(int, low=1), default=100, help='of the data it was trained on')
    parser.add_argument('--checkpoint_key', metavar='KEY',
                        help='the key of the weights in FILE, as model_ema; not given: the average if there is one')
    opt = parser.parse_args()
    checkpoint = open_checkpoint(opt.file, 'teacher', opt.checkpoint_key)
    net = load_net(opt.file, checkpoint, opt.model,
                   SimpleNamespace(num_classes=opt.num_classes, image_size=IMAGE_SIZE), 'teacher')
    params = sum(p.numel() for p in net.parameters())
    print(f'{opt.model} ok: {opt.num_classes} classes, {params:,} parameters{notes(checkpoint)}')


if __name__ == '__main__':
    run_main(main)
