"""python -m benchmarks.reference: one epoch by the reference recipe as a process of its own, for the subject `whole`.

It does what the original SemCKD script does: images through PIL in worker processes, the teacher validated, an epoch in
which the loss and the accuracies are read back every step, the student validated and saved.
"""
import pickle
from pathlib import Path

import torch
from torch.utils.tensorboard import SummaryWriter

from helper.checkpoint import load_weights
from helper.cli import Parser, number, path
from helper.device import select_device
from helper.errors import run_main
from helper.loops import train_epoch, validate
from models.load import open_checkpoint

from .common import WorkerProcessLoader, build
from .loader import PerImage
from .recipes import ReadEveryStep


def read(folder: Path, split: str):
    """(images uint8 (N, 3, 32, 32), labels (N,)) of one split of CIFAR-100."""
    with open(folder / 'cifar-100-python' / split, 'rb') as file:
        content = pickle.load(file, encoding='latin1')
    return torch.from_numpy(content['data']).view(-1, 3, 32, 32), torch.tensor(content['fine_labels'])


def main():
    parser = Parser(prog='python -m benchmarks.reference', description=__doc__.splitlines()[0])
    add = parser.add_argument
    add('--pair', required=True, metavar='TEACHER,STUDENT,METHOD')
    add('--path_t', type=path, required=True, help="the teacher's checkpoint")
    add('--data_dir', type=path, required=True)
    add('--save_dir', type=path, required=True)
    add('--batch_size', type=number(int, low=2), default=64)
    add('--num_workers', type=number(int, low=0), default=8)
    add('--gpu_id', default='0')
    opt = parser.parse_args()

    device = select_device(opt.gpu_id, only_check=True)
    writer = SummaryWriter(opt.save_dir)
    train_images, test_images = (PerImage(*read(Path(opt.data_dir), split), split == 'train')
                                 for split in ('train', 'test'))
    train_loader = WorkerProcessLoader(train_images, opt.batch_size, opt.num_workers, device)
    test_loader = WorkerProcessLoader(test_images, max(1, opt.batch_size // 2), opt.num_workers // 2, device,
                                      shuffle=False)
    distiller, _, options = build(opt.pair, opt, device, fast=False)
    load_weights(distiller.teacher, open_checkpoint(opt.path_t, '--path_t')['model'], opt.path_t)
    options.print_freq = 100
    optimizer = distiller.make_optimizer(options.learning_rate, options)
    print(f'teacher top-1: {validate(test_loader, distiller.teacher)["test_acc"]:.2f}')
    train = train_epoch(1, train_loader, distiller, optimizer, options, ReadEveryStep())
    test = validate(test_loader, distiller.inference_net())
    print(f'{train}\n{test}')
    for name, value in {**train, **test}.items():
        writer.add_scalar(name, value, 1)
    writer.close()
    torch.save({'epoch': 1, 'model': distiller.student.state_dict()}, Path(opt.save_dir) / 'student.pth')


if __name__ == '__main__':
    run_main(main)
