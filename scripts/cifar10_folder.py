"""Write CIFAR-10 as an image folder, OUT/{train,test}/CLASS/NUMBER.png, for the tables and scripts that read one.

python scripts/cifar10_folder.py [--data_dir data] [--out data/cifar10]

torchvision downloads CIFAR-10 to --data_dir if it is not there.
"""
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset.cifar import load
from helper.cli import Parser, path
from helper.errors import UserError, run_main
from helper.files import make_folder


def write_split(images, labels, classes: list[str], folder: Path) -> None:
    """Write images uint8 (N, 3, H, W) with labels (N,) as folder/CLASS/NUMBER.png, numbered within each class."""
    for label, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for number, image in enumerate(images[labels == label]):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / name / f'{number:04d}.png')


def main():
    parser = Parser(description=' '.join(__doc__.split('\n\n')[::2]))       # without the command
    parser.add_argument('--data_dir', type=path, default='data', help='the folder with the files of CIFAR-10')
    parser.add_argument('--out', type=path, default='data/cifar10', help='the new folder')
    opt = parser.parse_args()
    out = Path(opt.out)
    if out.exists():
        raise UserError(f'--out {out}: exists already; give a folder that does not')
    train, test, classes = load(Namespace(dataset='cifar10', data_dir=opt.data_dir))
    make_folder(out.parent, f'--out {out}')
    with tempfile.TemporaryDirectory(dir=out.parent, prefix='.cifar10-') as temporary:
        for split, (images, labels) in (('train', train), ('test', test)):
            write_split(images, labels, classes, Path(temporary, 'cifar10', split))
        Path(temporary, 'cifar10').rename(out)      # so that an interruption leaves no half-written folder
    print(f'{out}: {len(train[1])} training images and {len(test[1])} test images in {len(classes)} classes')


if __name__ == '__main__':
    run_main(main)
