"""Turn weights of torchvision into a checkpoint for --path-t.

python scripts/model_transform.py IN [OUT]                      IN: a state_dict such as resnet34-333f7ec4.pth, or a
                                                                checkpoint with one under 'model' or 'state_dict'
python scripts/model_transform.py --torchvision resnet34 [OUT]  downloads torchvision's weights

The keys and shapes tell which net it is. OUT holds {'model': state_dict, 'arch': name, 'num_classes': n}. If omitted,
it is save/models/ResNet34_vanilla/resnet34_transformed.pth for a ResNet34.
"""
import sys
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helper.checkpoint import load_weights, save_checkpoint
from helper.cli import Parser, path
from helper.errors import UserError, nearest, run_main
from helper.files import make_folder
from models import model_dict
from models.foreign import without_common_prefix
from models.load import open_checkpoint
from models.recognise import recognise
from models.torchvision_net import download

PUBLISHED = 'IMAGENET1K_V1'     # the papers' teachers have these weights: 73.31 % for resnet34


def torchvision_weights(name: str) -> dict:
    """torchvision's published state_dict, downloaded or from torch's cache. Raises UserError."""
    from torchvision import models
    names, flag = models.list_models(module=models), f'--torchvision {name}'
    if name not in names:
        raise UserError(f'{flag}: torchvision has no such classifier; {nearest(name, names)}')
    with torch.device('meta'), warnings.catch_warnings(action='ignore'):
        try:
            state = models.get_model(name, weights=None).state_dict()
        except NotImplementedError:     # a regnet, which needs memory to be built; model_dict has none
            state = {}
        recognise(state, flag)      # before the download
    return download(models.get_model_weights(name)[PUBLISHED], flag, 'IN')


def transform(weights: dict, source: str) -> dict:
    """The checkpoint of a state_dict. Raises UserError if it fits no net."""
    name, num_classes = recognise(weights, source)
    net = model_dict[name](num_classes=num_classes)
    load_weights(net, weights, source)
    return {'model': net.state_dict(), 'arch': name, 'num_classes': num_classes}


def main():
    parser = Parser(description='Turn weights of torchvision into a checkpoint for --path-t.',
                    usage='%(prog)s IN [OUT] | --torchvision NAME [OUT]')
    parser.add_argument('files', nargs='*', type=path, metavar='IN OUT',
                        help='the file to transform, and the file to write')
    parser.add_argument('--torchvision', metavar='NAME', help="use torchvision's weights of this net, such as resnet34")
    parser.add_argument('--checkpoint_key', metavar='KEY',
                        help='the key of the weights in IN, such as model_ema; if omitted, an average is preferred')
    opt = parser.parse_args()
    files = opt.files if opt.torchvision else opt.files[1:]
    if len(files) > 1 or not (opt.files or opt.torchvision):
        raise UserError('give a file IN, or --torchvision NAME, and no more than one OUT')
    if opt.torchvision and opt.checkpoint_key:
        raise UserError(f'--checkpoint_key {opt.checkpoint_key}: has no effect with --torchvision; leave one out')
    if opt.torchvision:
        source, weights = f'--torchvision {opt.torchvision}', torchvision_weights(opt.torchvision)
    else:
        source = f'IN {opt.files[0]}'
        loaded = open_checkpoint(opt.files[0], 'IN', opt.checkpoint_key)
        weights, removed = without_common_prefix(loaded['model'])
        if notes := ', '.join(filter(None, (loaded.get('source'), removed))):
            print(f'{source}: {notes}')
    checkpoint = transform(weights, source)
    arch = checkpoint['arch']
    out = Path(files[0] if files else f'save/models/{arch}_vanilla/{arch.lower()}_transformed.pth')
    make_folder(out.parent, f'OUT {out}')
    save_checkpoint(out, checkpoint)
    print(f'{arch}, {checkpoint["num_classes"]} classes: {out}')


if __name__ == '__main__':
    run_main(main)
