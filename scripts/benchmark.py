"""Images a second of the real training step, alternating between two recipes, and of the loaders.

python scripts/benchmark.py recipes     whole training, loader included: `reference` (fp32, eager, NCHW, one image at a
                                        time through torchvision's transforms in worker processes, the teacher as it was
                                        trained, a loss and an accuracy read back every step) beside `fast` (what
                                        train_student.py does, and with --compile and --amp what these flags do)
python scripts/benchmark.py loader      the loaders alone: batches of CIFAR-size images, augmented on the device, and by
                                        torchvision's per-image transforms in worker processes
python scripts/benchmark.py methods     a step of every method for one pair of nets beside that of kd, without the first
                                        stages of fsp, abound and factor
python scripts/benchmark.py imagenet    the loaders of {data_dir}/imagenet alone at 224 pixels: torchvision's usual
                                        pipeline, the folder, LMDB where train.lmdb lies beside it, DALI where installed
python scripts/benchmark.py scaling     recipes' `fast` with one process and with two on the CPU
python scripts/benchmark.py convolutions    3x3 convolutions and their gradients: torch's and helper/winograd.py's,
                                        which --compile uses on processors with AVX2 where `used` says so
"""
import argparse
import json
import multiprocessing
import re
import statistics
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from dataset import Data, get_dataloaders  # noqa: E402
from dataset.memory import MEAN, STD, MemoryLoader  # noqa: E402
from distiller_zoo import distiller_dict, get_method  # noqa: E402
from helper import distributed  # noqa: E402
from helper.arguments import Parser, number, path  # noqa: E402
from helper.device import select_device  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402
from helper.files import write_json  # noqa: E402
from helper.fold import fold_batchnorm  # noqa: E402
from helper.launch import launch  # noqa: E402
from helper.loops import train_distill  # noqa: E402
from helper.options import student_options  # noqa: E402
from helper.precision import KINDS, Precision  # noqa: E402
from helper.speed import allow_tf32, check_compiler, compile_forward, cores, keep_memory, sgd, turn_on_fast  # noqa: E402
from helper.text import table  # noqa: E402
from helper.winograd import Conv3x3, conv3x3, input_gradient, library, weight_gradient  # noqa: E402
from models import model_dict, resolve  # noqa: E402

CLASSES = 100
N_TRAIN = 50_000        # as CIFAR: the size of CRD's memories
PAIRS = ('resnet20,resnet8,kd', 'resnet110,resnet20,kd', 'wrn_40_2,wrn_16_2,attention', 'resnet32x4,resnet8x4,semckd')
CONVOLUTIONS = ((16, 32), (32, 16), (64, 8), (128, 8), (128, 16), (256, 8), (512, 7), (512, 4), (256, 4), (128, 4),
                (64, 4), (64, 5), (64, 2))      # channels, pixels of a side


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


class OnDevice:
    """A DataLoader whose batches are brought to the device one after the other."""

    def __init__(self, loader, device):
        self.loader, self.device = loader, device
        self.batch_size, self.n_samples = loader.batch_size, len(loader.dataset)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for batch in self.loader:
            yield [t.to(self.device) for t in batch]


class Ready:
    """A loader that gives the same batch again and again."""

    def __init__(self, batch, steps):
        self.batch, self.steps, self.batch_size = batch, steps, len(batch[1])
        self.n_samples = steps * self.batch_size

    def __len__(self):
        return self.steps

    def __iter__(self):
        return iter([self.batch] * self.steps)


class ReadEveryStep:
    """In a Keeper's place: reads the averages after each step, which waits for the device."""

    def begin_epoch(self, meter, watch):
        self.meter = meter
        return 0

    def step_done(self):
        self.meter.averages()


def build(pair, opt, device, fast=True, compiled=False):
    """(distiller, optimiser, options) of (teacher, student, method)."""
    teacher, student, method = pair
    torch.manual_seed(0)
    options = student_options(['--path-t', '-', '--distill', method, '--model_s', student, '-b', '1',
                               '--batch_size', str(opt.batch_size), '--print-freq', str(10**9)])
    options.model_t = teacher
    data = Data(None, None, CLASSES, 32, torch.arange(N_TRAIN) % CLASSES)
    teacher, student = (model_dict[resolve(name, 32)](num_classes=CLASSES) for name in (teacher, student))
    if fast:
        fold_batchnorm(teacher, 32)
    layout = torch.channels_last if fast else torch.contiguous_format
    distiller = get_method(method)(student, teacher, options, data).to(device, memory_format=layout)
    distiller.finish_init()
    if compiled:
        compile_forward(distiller, opt.batch_size, device)
    rate = 1e-9         # the nets are not trained ones: a real rate makes some methods diverge within a few steps
    return distiller, sgd(distiller.parameters(), rate, options), options


def wait(device):
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def timed(run, device, rounds):
    """Median seconds of run(), after one call to warm up."""
    seconds = []
    for _ in range(rounds + 1):
        wait(device)
        start = time.perf_counter()
        run()
        wait(device)
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds[1:])


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
    """(ours, the reference one) over the same random images."""
    generator = torch.Generator().manual_seed(0)
    n = opt.batch_size * opt.steps * distributed.world_size()
    images = torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
    target = torch.randint(0, CLASSES, (n,), generator=generator)
    fork = 'fork' if opt.num_workers and sys.platform == 'linux' else None      # as a script's workers start there
    plain = torch.utils.data.DataLoader(PerImage(images, target), opt.batch_size, shuffle=True,
                                        num_workers=opt.num_workers, persistent_workers=opt.num_workers > 0,
                                        pin_memory=device.type == 'cuda', multiprocessing_context=fork)
    ours = MemoryLoader(images, target, opt.batch_size, device, train=True, rank=distributed.rank(),
                        world_size=distributed.world_size())
    return ours, OnDevice(plain, device)


def exhaust(loader):
    for _ in loader:
        pass


# recipes: each in a process of its own, told by turns to train a round

class Recipe:
    """One side of the comparison, in its process."""

    def __init__(self, fast, pair, opt):
        self.fast, self.pair, self.opt = fast, pair, opt
        self.device = select_device(opt.gpu_id, quiet=True)
        self.precision = Precision(opt.amp if fast else None, self.device)
        if fast:
            keep_memory()
        if fast and opt.fast:
            allow_tf32()
        self.loader = loaders(opt, self.device)[not fast]
        self.distiller, self.optimizer, self.options = self.build(pair)
        self.hook = None if fast else ReadEveryStep()

    def build(self, pair):
        return build(pair, self.opt, self.device, self.fast, self.fast and self.opt.compile)

    def round(self):
        """Seconds of opt.steps training steps."""
        wait(self.device)
        start = time.perf_counter()
        train_distill(1, self.loader, self.distiller, self.optimizer, self.options, self.hook, self.precision)
        wait(self.device)
        return time.perf_counter() - start

    def begin_peak(self):
        """Forget the peak of memory so far, as of compiling."""
        if self.device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats()
        elif sys.platform == 'linux':
            Path('/proc/self/clear_refs').write_text('5')

    def peak(self):
        """MiB: (of tensors on the GPU, or on the CPU of the process; what its loader's workers hold beside it)."""
        if self.device.type == 'cuda':
            return torch.cuda.max_memory_allocated() / 2**20, 0.0
        if sys.platform != 'linux':
            return None, None
        workers = [Path(f'/proc/{worker.pid}/smaps_rollup').read_text() for worker in multiprocessing.active_children()]
        own = sum(int(kib) for text in workers for kib in re.findall(r'^Private_\w+:\s+(\d+)', text, re.M))
        return int(Path('/proc/self/status').read_text().split('VmHWM:')[1].split()[0]) / 1024, own / 1024

    def parts(self):
        """Seconds a step of each part on its own, and the share of the matrix-product ceiling that a step reaches."""
        images, target, index = batch = next(iter(self.loader))
        if not self.fast:
            images = batch[0] = images.contiguous()
        ready, rounds = Ready(batch, self.opt.steps), self.opt.rounds

        def step(distiller, optimizer):
            return timed(lambda: train_distill(1, ready, distiller, optimizer, self.options, self.hook,
                                               self.precision), self.device, rounds) / len(ready)
        whole = step(self.distiller, self.optimizer)
        soft, soft_optimizer, _ = self.build((*self.pair[:2], 'kd'))
        kd = step(soft, soft_optimizer) if self.pair[2] != 'kd' else whole

        teacher = self.distiller.ask_teacher
        if self.fast and self.opt.compile:
            teacher = torch.compile(teacher, dynamic=False)

        def ask():
            with self.precision.autocast():
                teacher(images, preact=self.distiller.preact)
        seconds = {'loader': timed(lambda: exhaust(self.loader), self.device, rounds) / len(self.loader),
                   'teacher': timed(ask, self.device, 4 * rounds),
                   'optimiser': timed(self.optimizer.step, self.device, 4 * rounds)}
        seconds['student'] = max(0.0, kd - seconds['teacher'] - seconds['optimiser'])
        seconds['method'] = max(0.0, whole - kd)
        macs = self.macs(images, target, index)
        return seconds, macs / whole / self.ceiling()

    def macs(self, images, target, index):
        """Multiply-adds of one step, forward and backward, as torch counts them."""
        distiller, _, _ = build(self.pair, self.opt, self.device)
        with FlopCounterMode(display=False) as counter:
            distiller.train()(images, target, index)[0]['loss'].backward()
        return counter.get_total_flops() / 2

    def ceiling(self):
        """Multiply-adds a second of a large square matrix product in this recipe's type."""
        n = 8192 if self.device.type == 'cuda' else 1536
        a = torch.randn(n, n, device=self.device, dtype=self.precision.dtype or torch.float32)
        return n**3 / timed(lambda: a @ a, self.device, 5)


def serve(connection, fast, pair, opt):
    """The process of a recipe: does what it is told."""
    recipe = Recipe(fast, pair, opt)
    while True:
        name = connection.recv()
        if name is None:
            return
        connection.send(getattr(recipe, name)())


def compare_recipes(opt):
    """A row for each recipe of each pair: medians of rounds that alternate between the two processes."""
    rows, context = [], multiprocessing.get_context('spawn')
    for pair in opt.pair or PAIRS:
        ends, processes = {}, []
        for name in ('reference', 'fast'):
            ends[name], other = context.Pipe()
            processes.append(context.Process(target=serve, args=(other, name == 'fast', pair.split(','), opt)))
            processes[-1].start()
            other.close()

        def ask(name, what, ends=ends, pair=pair):
            ends[name].send(what)
            try:
                return ends[name].recv()
            except EOFError:
                raise UserError(f'--pair {pair}: the process of {name} has ended; its message is above') from None
        for what in ('round', 'begin_peak'):        # one to warm up, which compiles
            for name in ends:
                ask(name, what)
        seconds = {name: [] for name in ends}
        for _ in range(opt.rounds):
            for name in ends:
                seconds[name].append(ask(name, 'round'))
        images = opt.steps * opt.batch_size
        for name in ends:
            row = {'pair': pair, 'recipe': name, 'images/s': images / statistics.median(seconds[name]),
                   'all rounds': [images / s for s in seconds[name]]}
            row['peak MiB'], row['workers MiB'] = ask(name, 'peak')
            row['ratio'] = row['images/s'] / (rows[-1]['images/s'] if name == 'fast' else row['images/s'])
            if not opt.brief:
                row['seconds a step'], row['of ceiling'] = ask(name, 'parts')
            rows.append(row)
            print(f'{pair}, {name}: {row["images/s"]:.0f} images/s', file=sys.stderr, flush=True)
        for end, process in zip(ends.values(), processes, strict=True):
            end.send(None)
            process.join()
    return rows


def show_recipes(rows):
    """The rows as a table; the parts as percentages of their sum."""
    names = ('loader', 'teacher', 'student', 'method', 'optimiser')
    cells = []
    for row in rows:
        parts = row.get('seconds a step')
        whole = parts and sum(parts.values())
        shares = [parts[name] / whole for name in names] + [row['of ceiling']] if parts else []
        memory = ['-' if row[name] is None else f'{row[name]:.0f}' for name in ('peak MiB', 'workers MiB')]
        cells.append((row['pair'], row['recipe'], f'{row["images/s"]:.0f}', f'{row["ratio"]:.2f}', *memory,
                      *(f'{100 * share:.0f}' for share in shares)))
    heads = ('pair', 'recipe', 'images/s', 'ratio', 'peak MiB', 'workers MiB')
    if len(cells[0]) > len(heads):
        heads += tuple(f'{name} %' for name in names) + ('of ceiling %',)
    print(table(heads, cells, '<<' + '>' * (len(heads) - 2)))


# scaling

def scaling_round(opt, device):
    """In each process: the medians of its rounds, written by the first."""
    torch.set_num_threads(opt.threads)
    part = distributed.share(opt)
    part.gpu_id = 'cpu'
    recipe = Recipe(True, opt.pair[0].split(','), part)
    recipe.distiller = distributed.wrap(recipe.distiller, device)
    took = [recipe.round() for _ in range(opt.rounds + 1)][1:]
    if distributed.is_main():
        Path(opt.out).write_text(json.dumps(opt.steps * opt.batch_size / statistics.median(took)))


def scaling(opt):
    """images/s of the whole batch with one thread, one process of all threads, and two processes of half of them."""
    threads, rows = max(2, torch.get_num_threads()), []
    opt.pair, opt.num_workers = (opt.pair or ['resnet20,resnet8,kd'])[:1], 0
    with tempfile.TemporaryDirectory() as folder:
        for processes, each in ((1, 1), (1, threads), (2, threads // 2)):
            part = SimpleNamespace(**{
                **vars(opt), 'threads': each, 'out': f'{folder}/out', 'gpu_id': ','.join(['cpu'] * processes),
                'multiprocessing_distributed': True, 'dist_url': 'tcp://127.0.0.1:23999', 'dist_timeout': 60})
            launch(scaling_round, part)
            rows.append({'pair': opt.pair[0], 'processes': processes, 'threads each': each,
                         'images/s': json.loads(Path(part.out).read_text())})
    return rows


def compare_methods(opt, device):
    """A row for each method: ms a step, all methods in turn within every round."""
    batch = next(iter(loaders(opt, device)[0]))
    loader = Ready(batch, opt.steps)
    pair = (opt.pair or ['resnet32x4,resnet8x4'])[0].split(',')[:2]
    runs = {method: build([*pair, method], opt, device) for method in distiller_dict}
    speed = alternate({method: lambda run=run: train_distill(1, loader, *run) for method, run in runs.items()},
                      loader.n_samples, opt, device)
    return [{'pair': ','.join(pair), 'method': method, 'ms a step': opt.batch_size / s * 1000,
             'times kd': speed['kd'] / s} for method, s in speed.items()]


def compare_loaders(opt, device):
    """A row for each loader of CIFAR-size images."""
    ours, reference = loaders(opt, device)
    speed = alternate({'reference': lambda: exhaust(reference), 'fast': lambda: exhaust(ours)},
                      opt.batch_size * opt.steps, opt, device)
    return [{'loader': name, 'images/s': s, 'ratio': s / speed['reference']} for name, s in speed.items()]


def torchvision_loader(opt, device):
    """{data_dir}/imagenet/train as torchvision's own examples read it: floats, normalised in the workers."""
    from torchvision import datasets
    from torchvision.transforms import v2

    from dataset.imagenet import MEAN, SIZE, STD
    steps = v2.Compose([v2.RandomResizedCrop(SIZE), v2.RandomHorizontalFlip(), v2.ToImage(),
                        v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)])
    images = datasets.ImageFolder(Path(opt.data_dir) / 'imagenet' / 'train', steps)
    return OnDevice(torch.utils.data.DataLoader(
        images, opt.batch_size, shuffle=True, num_workers=opt.num_workers, pin_memory=device.type == 'cuda',
        persistent_workers=opt.num_workers > 0), device)


def compare_imagenet(opt, device):
    """A row for each training loader of {data_dir}/imagenet, an epoch of each in turn."""
    found = {}
    for name, flags in (('folder', {}), ('lmdb', {'use_lmdb': True}), ('dali cpu', {'dali': 'cpu'}),
                        ('dali gpu', {'dali': 'gpu'})):
        settings = SimpleNamespace(**{
            'dataset': 'imagenet', 'data_dir': opt.data_dir, 'batch_size': opt.batch_size, 'channels_last': True,
            'num_workers': opt.num_workers, 'seed': 0, 'use_lmdb': False, 'dali': None, 'skip_bad_images': False,
            **flags})
        try:
            found[name] = get_dataloaders(settings, device).train_loader
        except UserError as error:
            print(f'{name}: left out, {error}', file=sys.stderr)
    if not found:
        raise UserError(f'--data_dir {opt.data_dir}: no imagenet there that could be read')
    found = {'torchvision': torchvision_loader(opt, device), **found}
    images = {loader.n_samples for loader in found.values()}
    speed = alternate({name: lambda loader=loader: exhaust(loader) for name, loader in found.items()}, max(images), opt,
                      device)
    return [{'loader': name, 'images/s': s, 'ratio': s / speed['torchvision']} for name, s in speed.items()]


def convolutions(channels, size, opt, device):
    """A row for each pass of a 3x3 convolution, from `channels` to as many, of square images."""
    torch.manual_seed(0)
    conv = Conv3x3(channels, channels, 3, padding=1).requires_grad_(False)
    images, grad = torch.randn(2, opt.batch_size, channels, size, size)
    images, grad, weight = (t.contiguous(memory_format=torch.channels_last) for t in (images, grad, conv.weight))

    def backward(*wanted):
        torch.ops.aten.convolution_backward(grad, images, weight, None, (1, 1), (1, 1), (1, 1), False, (0, 0), 1,
                                            (*wanted, False))
    passes = {'forward': (lambda: F.conv2d(images, weight, padding=1), lambda: conv3x3(images, weight)),
              'gradient of the images': (lambda: backward(True, False), lambda: input_gradient(grad, weight)),
              'gradient of the weights': (lambda: backward(False, True), lambda: weight_gradient(images, grad))}
    sides = {(name, i): side for name, both in passes.items() for i, side in enumerate(both)}
    speed = alternate(sides, 1, opt, device)
    return [{'channels, pixels': f'{channels}, {size} x {size}', 'pass': name, 'torch ms': 1000 / speed[name, 0],
             'winograd ms': 1000 / speed[name, 1], 'ratio': speed[name, 1] / speed[name, 0],
             'used': 'yes' if conv.gains(images) else 'no'} for name in passes]


def compare_convolutions(opt, device):
    """The rows of all shapes."""
    try:
        library()
    except OSError as error:
        raise UserError(f'convolutions: {error}') from None
    return [row for shape in CONVOLUTIONS for row in convolutions(*shape, opt, device)]


def show(rows):
    """Any rows as a table."""
    exact = ('ratio', 'times kd', 'torch ms', 'winograd ms')
    cells = [[f'{v:.2f}' if key in exact else f'{v:.1f}' if key == 'ms a step' else
              f'{v:.0f}' if isinstance(v, float) else str(v) for key, v in row.items()] for row in rows]
    print(table(list(rows[0]), cells, '<' + '>' * (len(rows[0]) - 1)))


def check_pairs(opt):
    """Raises UserError unless each --pair names two nets and, but for `methods`, a method."""
    for pair in opt.pair or []:
        words = pair.split(',')
        if len(words) not in ((2, 3) if opt.what == 'methods' else (3,)):
            raise UserError(f'--pair {pair}: give TEACHER,STUDENT,METHOD; the method may be left out of: methods')
        for name in words[:2]:
            resolve(name, 32, '--pair')
        if len(words) == 3:
            get_method(words[2])


def main():
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add('what', choices=('recipes', 'loader', 'methods', 'imagenet', 'scaling', 'convolutions'))
    add('--pair', action='append', metavar='TEACHER,STUDENT,METHOD', help='may be given several times')
    add('--batch_size', type=number(int, low=1), default=64)
    add('--steps', type=number(int, low=1), default=8, help='batches in a round')
    add('--rounds', type=number(int, low=1), default=5, help='rounds of each side, after one to warm up')
    add('--num_workers', type=number(int, low=0),
        help="processes of the loaders that have some; not given: 8, as in the seed's repository; for imagenet one for "
             "each core")
    add('--gpu_id', default='0')
    add('--data_dir', type=path, default='./data')
    add('--compile', action='store_true', help='the fast recipe compiles its step')
    add('--amp', nargs='?', const='auto', choices=('auto', *KINDS), help='the fast recipe computes in 16 bits')
    add('--fast', action='store_true', help='the fast recipe is that of --fast')
    add('--brief', action='store_true', help='recipes without the shares of the parts and of the ceiling')
    add('--json', type=path, metavar='FILE', help='write what was measured there too')
    opt = parser.parse_args()
    check_pairs(opt)
    turn_on_fast(opt)
    if opt.num_workers is None:
        opt.num_workers = cores() if opt.what == 'imagenet' else 8
    device = select_device('cpu' if opt.what == 'convolutions' else opt.gpu_id)
    if opt.compile:
        check_compiler(device)
    machine = torch.cuda.get_device_name(device) if device.type == 'cuda' else cpu_name()
    unit = {'imagenet': 'an epoch', 'convolutions': 'a pass'}.get(opt.what, f'{opt.steps} steps')
    print(f'{machine}, torch {torch.__version__}, batch {opt.batch_size}, median of {opt.rounds} rounds of '
          f'{unit}')
    if opt.what == 'recipes':
        rows = compare_recipes(opt)
        show_recipes(rows)
    else:
        rows = scaling(opt) if opt.what == 'scaling' else {
            'loader': compare_loaders, 'methods': compare_methods, 'imagenet': compare_imagenet,
            'convolutions': compare_convolutions}[opt.what](opt, device)
        show(rows)
    if opt.json:
        write_json(Path(opt.json), {'machine': machine, 'torch': torch.__version__, 'options': vars(opt), 'rows': rows})


def cpu_name():
    """The processor, as Linux names it, and the threads that torch uses."""
    found = re.search(r'model name\s*:\s*(.+)', Path('/proc/cpuinfo').read_text()) if sys.platform == 'linux' else None
    return f'{found[1] if found else "CPU"}, {torch.get_num_threads()} threads'


if __name__ == '__main__':
    run_main(main)
