"""Images a second, ours beside the plain way, in alternating rounds of one run.

python scripts/benchmark.py loader      batches of CIFAR-size images, augmented on the device, and by torchvision's
                                        per-image transforms in worker processes
python scripts/benchmark.py step        training steps on batches that lie ready: helper/loops.py, and the same step
                                        written plainly (NCHW, every pair of layers on its own, a loss and an accuracy
                                        read back every step)
python scripts/benchmark.py train       both together: each side with its own loader
python scripts/benchmark.py methods     a step of every method for one pair of nets beside that of kd, without the first
                                        stages of fsp, abound and factor
python scripts/benchmark.py imagenet    the loaders of {data_dir}/imagenet alone at 224 pixels: the folder, LMDB where
                                        train.lmdb lies beside it, and DALI on the CPU where it is installed
"""
import argparse
import statistics
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.optim import SGD

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import Data, get_dataloaders  # noqa: E402
from dataset.memory import MEAN, STD, MemoryLoader  # noqa: E402
from distiller_zoo import distiller_dict, get_method  # noqa: E402
from helper.arguments import Parser  # noqa: E402
from helper.device import select_device  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402
from helper.loops import train_distill  # noqa: E402
from helper.options import student_options  # noqa: E402
from helper.text import table  # noqa: E402
from models import model_dict, resolve  # noqa: E402

CLASSES = 100
N_TRAIN = 50_000        # as CIFAR: the size of CRD's memories


class PerImage(torch.utils.data.Dataset):
    """An image at a time through PIL and torchvision's transforms."""

    def __init__(self, images, target):
        from torchvision import transforms
        self.images, self.target = images.permute(0, 2, 3, 1).numpy(), target
        self.transform = transforms.Compose([
            transforms.ToPILImage(), transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(),
            transforms.ToTensor(), transforms.Normalize(MEAN, STD)])

    def __len__(self):
        return len(self.target)

    def __getitem__(self, index):
        return self.transform(self.images[index]), self.target[index], index


class Ready:
    """A loader that gives the same batch again and again."""

    def __init__(self, batch, steps):
        self.batch, self.steps, self.batch_size = batch, steps, len(batch[1])
        self.n_samples = steps * self.batch_size

    def __len__(self):
        return self.steps

    def __iter__(self):
        return iter([self.batch] * self.steps)


def plain_semckd(part, feats_s, feats_t):
    """SemCKD's loss with each pair of layers on its own: what is asked for is pooled where it is asked for."""
    n, s_len, t_len = len(feats_s[0]), len(feats_s), len(feats_t)
    query = [getattr(part, f'query_weight{i}')(f.reshape(n, -1) @ f.reshape(n, -1).t()) for i, f in enumerate(feats_s)]
    key = [getattr(part, f'key_weight{j}')(f.reshape(n, -1) @ f.reshape(n, -1).t()) for j, f in enumerate(feats_t)]
    weight = torch.softmax(torch.bmm(torch.stack(query, 1), torch.stack(key, 1).transpose(1, 2)), -1)
    error = torch.zeros(n, s_len, t_len, device=weight.device)
    for i, f_s in enumerate(feats_s):
        for j, f_t in enumerate(feats_t):
            size = min(f_s.shape[-1], f_t.shape[-1])
            projected = getattr(part, f'regressor{i}{j}')(F.adaptive_avg_pool2d(f_s, size))
            pooled = F.adaptive_avg_pool2d(f_t, size)
            error[:, i, j] = F.mse_loss(projected, pooled, reduction='none').reshape(n, -1).mean(-1)
    return (weight * error).sum() / (n * s_len)


def plain_epoch(loader, distiller, optimizer, device):
    """The loop as it is usually written; the losses of the methods that differ from ours are in this file."""
    distiller.train()
    for images, target, _ in loader:
        images, target = images.to(device), target.to(device)
        feats_s, logit_s = distiller.student(images, is_feat=True)
        with torch.no_grad():
            feats_t, logit_t = distiller.teacher(images, is_feat=True)
        loss = distiller.gamma * F.cross_entropy(logit_s, target) + distiller.alpha * F.kl_div(
            F.log_softmax(logit_s / 4, 1), F.softmax(logit_t / 4, 1), reduction='batchmean') * 16
        if distiller.title == 'SemCKD':
            loss = loss + distiller.beta * plain_semckd(distiller.attention, feats_s[1:-1], feats_t[1:-1])
        loss.item()
        (logit_s.topk(5, 1).indices == target[:, None]).float().sum().item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def build(pair, opt, device, memory_format):
    """(distiller, optimiser) of 'teacher,student,method'."""
    teacher, student, method = pair
    torch.manual_seed(0)
    options = student_options(['--path-t', '-', '--distill', method, '--model_s', student, '-b', '1',
                               '--batch_size', str(opt.batch_size), '--print-freq', str(10**9)])
    options.model_t = teacher
    data = Data(None, None, CLASSES, 32, torch.arange(N_TRAIN) % CLASSES)
    teacher, student = (model_dict[resolve(name, 32)](num_classes=CLASSES) for name in (teacher, student))
    distiller = get_method(method)(student, teacher, options, data).to(device, memory_format=memory_format)
    distiller.finish_init()
    return distiller, SGD(distiller.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4), options


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def alternate(sides, images, opt, device):
    """name -> median images/s of each function in `sides`, one round of each in turn, the first round left out."""
    speeds = {name: [] for name in sides}
    for _ in range(opt.rounds + 1):
        for name, run in sides.items():
            wait(device)
            start = time.perf_counter()
            run()
            wait(device)
            speeds[name].append(images / (time.perf_counter() - start))
    return {name: statistics.median(values[1:]) for name, values in speeds.items()}


def loaders(opt, device):
    """(ours, the plain one) over the same random images."""
    generator = torch.Generator().manual_seed(0)
    n = opt.batch_size * opt.steps
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    target = torch.randint(0, CLASSES, (n,), generator=generator)
    plain = torch.utils.data.DataLoader(PerImage(images, target), opt.batch_size, shuffle=True,
                                        num_workers=opt.num_workers, persistent_workers=opt.num_workers > 0,
                                        pin_memory=device.type == 'cuda')
    return MemoryLoader(images, target, opt.batch_size, device, train=True), plain


def exhaust(loader, device):
    for images, target, _ in loader:
        images.to(device), target.to(device)


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('loader', 'step', 'train', 'methods', 'imagenet'))
    parser.add_argument('--pair', action='append', metavar='TEACHER,STUDENT,METHOD', help='may be given several times')
    parser.add_argument('--batch_size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=8, help='batches in a round')
    parser.add_argument('--rounds', type=int, default=5, help='rounds of each side, after one to warm up')
    parser.add_argument('--num_workers', type=int, default=2, help='processes of the plain loader')
    parser.add_argument('--gpu_id', default='0')
    parser.add_argument('--data_dir', default='./data')
    opt = parser.parse_args()
    for pair in opt.pair or []:
        if len(pair.split(',')) < (2 if opt.what == 'methods' else 3):
            raise UserError(f'--pair {pair}: give TEACHER,STUDENT,METHOD; the method may be left out of: methods')
        if opt.what in ('step', 'train') and pair.split(',')[2] not in ('kd', 'semckd'):
            raise UserError(f'--pair {pair}: the plain step is written for kd and semckd; see methods for the others')
    device = select_device(opt.gpu_id)
    name = torch.cuda.get_device_name(device) if device.type == 'cuda' else f'CPU, {torch.get_num_threads()} threads'
    print(f'{name}, torch {torch.__version__}, batch {opt.batch_size}, '
          f'median of {opt.rounds} rounds of {"an epoch" if opt.what == "imagenet" else f"{opt.steps} steps"}')
    if opt.what == 'imagenet':
        compare_imagenet(opt, device)
        return
    if opt.what == 'methods':
        compare_methods(opt, device)
        return
    print(f'{"images/s":46} {"plain":>9} {"ours":>9} {"ratio":>6}')
    images = opt.batch_size * opt.steps
    ours_loader, plain_loader = loaders(opt, device)
    if opt.what == 'loader':
        report('loader alone', alternate({'plain': lambda: exhaust(plain_loader, device),
                                          'ours': lambda: exhaust(ours_loader, device)}, images, opt, device))
        return
    if opt.what == 'step':
        batch = next(iter(ours_loader))
        ours_loader = Ready(batch, opt.steps)
        plain_loader = Ready((batch[0].contiguous(), *batch[1:]), opt.steps)
    for pair in opt.pair or ['resnet20,resnet8,kd', 'resnet32x4,resnet8x4,semckd']:
        plain, ours = (build(pair.split(','), opt, device, form) for form in (torch.contiguous_format,
                                                                             torch.channels_last))
        report(pair, alternate({
            'plain': lambda plain=plain: plain_epoch(plain_loader, *plain[:2], device),
            'ours': lambda ours=ours: train_distill(1, ours_loader, *ours)}, images, opt, device))


def compare_methods(opt, device):
    """Print each method's step time, all methods in turn within every round."""
    batch = next(iter(loaders(opt, device)[0]))
    loader = Ready(batch, opt.steps)
    pair = (opt.pair or ['resnet32x4,resnet8x4'])[0].split(',')[:2]
    runs = {method: build([*pair, method], opt, device, torch.channels_last) for method in distiller_dict}
    speed = alternate({method: lambda run=run: train_distill(1, loader, *run) for method, run in runs.items()},
                      loader.n_samples, opt, device)
    rows = [(method, f'{opt.batch_size / s * 1000:.1f}', f'{speed["kd"] / s:.2f}') for method, s in speed.items()]
    print(f'{pair[0]} -> {pair[1]}')
    print(table(('method', 'ms a step', 'times kd'), rows, '<>>'))


def compare_imagenet(opt, device):
    """Print images/s of the training loaders of {data_dir}/imagenet, an epoch of each in turn."""
    found = {}
    for name, flags in (('folder', {}), ('lmdb', {'use_lmdb': True}), ('dali cpu', {'dali': 'cpu'})):
        settings = SimpleNamespace(**{
            'dataset': 'imagenet', 'data_dir': opt.data_dir, 'batch_size': opt.batch_size, 'channels_last': True,
            'num_workers': opt.num_workers, 'seed': 0, 'use_lmdb': False, 'dali': None, 'skip_bad_images': False,
            **flags})
        try:
            found[name] = get_dataloaders(settings, device).train_loader
        except UserError as error:
            print(f'{name}: left out, {error}')
    images = {loader.n_samples for loader in found.values()}
    speed = alternate({name: lambda loader=loader: exhaust(loader, device) for name, loader in found.items()},
                      max(images, default=0), opt, device)
    print(table(('loader', 'images/s'), [(name, f'{s:.0f}') for name, s in speed.items()], '<>'))


def report(title, speed):
    print(f'{title:46} {speed["plain"]:9.0f} {speed["ours"]:9.0f} {speed["ours"] / speed["plain"]:6.2f}', flush=True)


if __name__ == '__main__':
    run_main(main)
