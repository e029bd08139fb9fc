"""Shared by the tests: builders of distillers and options, a small tree of images, a teacher, and the scheduler."""
import atexit
import contextlib
import functools
import gc
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

os.environ['HF_HUB_OFFLINE'] = '1'      # no test asks the network
TEMPORARY = []      # this process's folder for what libraries leave behind
# Registered before torch imports multiprocessing, which removes folders of its own in there: this runs after that.
atexit.register(lambda: [shutil.rmtree(folder, ignore_errors=True) for folder in TEMPORARY])

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:       # started in the background by a shell script
    signal.signal(signal.SIGINT, signal.default_int_handler)

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dataset import Data  # noqa: E402
from dataset.crop import DEFAULTS  # noqa: E402
from dataset.image import MAX_PIXELS  # noqa: E402
from dataset.memory import MemoryLoader  # noqa: E402
from dataset.shard_files import CACHE_GB  # noqa: E402
from distiller_zoo import distiller_dict, get_method, make_distiller  # noqa: E402
from helper.checkpoint import load_checkpoint  # noqa: E402
from helper.cli import as_list  # noqa: E402
from helper.files import locked  # noqa: E402
from helper.run import Run  # noqa: E402
from models import model_dict  # noqa: E402
from models.ensemble import as_teacher  # noqa: E402
from options import student_options  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
CPU = torch.device('cpu')
CLASSES = ('ant', 'bee', 'cat', 'dog')
SLURM_CONF = os.environ.get('SLURM_CONF', '/tmp/slurm/slurm.conf')

# Nets that are large, or share their code with a smaller one.
SIMILAR_NETS = ('resnet14', 'resnet20', 'resnet32', 'resnet44', 'resnet56', 'resnet110', 'resnet8x4', 'resnet32x4',
                'resnet8x4_double', 'ResNet34_cifar', 'ResNet50_cifar', 'wrn_16_2', 'wrn_40_1', 'wrn_40_2', 'vgg11',
                'vgg13', 'vgg16', 'vgg19', 'ResNet34', 'ResNet50', 'ResNet18Double', 'resnet34x4', 'resnext50_32x4d',
                'wrn_50_2', 'vgg11_imagenet', 'vgg13_imagenet', 'ShuffleV2_Imagenet', 'shufflenet_v2_x2_0')
NETS = [pytest.param(name, marks=[pytest.mark.slow] * (name in SIMILAR_NETS)) for name in model_dict]


def pytest_configure(config):
    """Use one thread for each process: there is a process for each core, and tests start more."""
    os.environ['OMP_NUM_THREADS'] = '1'
    torch.set_num_threads(1)
    # What libraries leave in the temporary folder, as wandb in a process that is killed, goes with the session. pytest
    # keeps its own folders where they are.
    os.environ.setdefault('PYTEST_DEBUG_TEMPROOT', tempfile.gettempdir())
    os.environ['TMPDIR'] = tempfile.tempdir = tempfile.mkdtemp(prefix='tests-')
    TEMPORARY.append(tempfile.tempdir)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Keep the tests of a file with a module fixture in one process; run all other tests in any free process."""
    from xdist.scheduler import LoadScopeScheduling
    whole = {f'tests/{file.name}' for file in Path(__file__).parent.glob('test_*.py')
             if "scope='module'" in file.read_text()}

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition('::')[0]
            return file if file in whole else nodeid

    return Scheduling(config, log)


def free_port() -> int:
    """A free port of this machine."""
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def write_images(root: Path, per_class: int, size: int = 16, classes=CLASSES) -> None:
    """Write root/CLASS/N.png: noise around a colour of the class."""
    rng = np.random.default_rng(len(str(root.name)))
    for i, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(per_class):
            pixels = rng.normal(60 + 50 * i, 30, (size, size, 3)).clip(0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f'{n}.png')


def options(method, teacher='resnet14', student='resnet8', batch=8, **changes):
    """The options of train_student.py that a distiller and the loops read."""
    opt = student_options(['--path-t', 'x', '--distill', method, '--model_s', student, '--batch_size', str(batch)])
    return SimpleNamespace(**{**vars(opt), 'model_t': teacher, 'nce_k': 10, **changes})


def flags_of_methods() -> set:
    """The options that methods add with add_arguments."""
    found = set()
    for method in distiller_dict.values():
        method.add_arguments(lambda *names, **_: found.add(names[-1].lstrip('-').replace('-', '_')))
    return found


def build(method, teacher='resnet14', student='resnet8', batch=8, size=16, device=CPU, **changes):
    """(distiller on the CPU, training loader, options) on random images. teacher: a net, or a list of several."""
    torch.manual_seed(0)
    opt = options(method, teacher, student, batch, **changes)
    if isinstance(teacher, list):
        opt.path_t = teacher
    images = torch.randint(0, 256, (3 * batch, 3, size, size), dtype=torch.uint8)
    cls = get_method(method)
    loader = MemoryLoader(images, torch.arange(3 * batch) % 10, batch, device, train=True,
                          drop_last=cls.spec.drop_last, views=cls.spec.views)
    data = Data(loader, loader, 10, size, loader.target.cpu(),
                lambda: MemoryLoader(images, torch.arange(3 * batch) % 10, batch, device))
    student = model_dict[student](num_classes=10)
    nets = [model_dict[name](num_classes=10) for name in as_list(teacher)]
    make = make_distiller if isinstance(teacher, list) else cls
    return make(student, as_teacher(opt, nets), opt, data), loader, opt


def losses_of_epoch(distiller, loader, optimizer) -> list[float]:
    """Train for an epoch. Returns the loss of each step."""
    losses = []
    for batch in loader:
        optimizer.zero_grad()
        loss = distiller(*batch)[0]['loss']
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def few(way: str, init_epochs: int = 1, negatives: int = 10) -> list:
    """Flags that make a run of a method, or of a sum of methods, short."""
    names = {*way.split()[0].split('+')}
    return [*(['--nce_k', str(negatives)] if 'crd' in names else []),
            *(['--init_epochs', str(init_epochs)] if any(get_method(name).spec.first_stage for name in names) else [])]


@pytest.fixture
def at_step(monkeypatch):
    """at_step(n, action): action() is called in the n-th training step from now on."""
    def install(steps, action):
        left = [steps]

        def end_step(self, batches):
            left[0] -= 1
            if left[0] == 0:
                action()
            original(self, batches)
        monkeypatch.setattr(Run, 'end_step', end_step)
    original = Run.end_step
    return install


@pytest.fixture
def interrupt(at_step):
    """interrupt(n, signal): that signal really comes to this process in the n-th training step from now on."""
    return lambda steps, number=signal.SIGTERM: at_step(steps, lambda: os.kill(os.getpid(), number))


@functools.cache
def preload() -> None:
    """Import once what DDP and TensorBoard import for seconds in each process that is forked afterwards."""
    import torch._dynamo
    import torch.distributed.tensor
    import torch.utils.tensorboard  # noqa: F401
    gc.freeze()     # these processes need not search all imported modules for garbage


@contextlib.contextmanager
def forked_processes():
    """Let launch() fork the processes of a run, which takes seconds less than to start them."""
    preload()
    start = functools.partial(torch.multiprocessing.start_processes, start_method='fork')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.multiprocessing, 'start_processes', start)
        yield


def forked(main, *arguments, out, err=None, **environment):
    """A process that runs a script's main as `python script.py arguments`, forked from this one.

    It appends its output to the file `out`, and its errors to `err`; default: out.err.
    """
    def run():
        from helper.errors import run_main
        os.environ.update(environment)
        sys.argv = ['script.py', *map(str, arguments)]
        sys.stdout, sys.stderr = (open(file, 'a', buffering=1)      # noqa: SIM115
                                  for file in (out, err or f'{out}.err'))
        with forked_processes():
            run_main(main)
    preload()
    process = multiprocessing.get_context('fork').Process(target=run)
    process.start()
    return process


def wait_for_text(file, text, process):
    """Wait until the process has written the text into its output file."""
    while not file.exists() or text not in file.read_text():
        assert process.is_alive(), file.read_text()
        time.sleep(0.02)


def first_view(images):
    """The images (N, 3, H, W) of a batch, or of its first view if it has two."""
    return images if images.dim() == 4 else images[0]


def data_options(**changes):
    """The options that get_dataloaders reads."""
    return SimpleNamespace(**{'dataset': 'folder', 'data_dir': '.', 'image_size': 16, 'batch_size': 16, 'seed': 0,
                              'train_fraction': 1.0, 'val_fraction': None, 'patience': None, 'num_workers': 2,
                              'no_test': False, 'aa': None, 'normalise': 'usual',
                              'images_in': 'auto', 'shard_cache_gb': CACHE_GB, 'same_classes': False, 'split': None,
                              'fit': 'crop', 'max_pixels': MAX_PIXELS, 'channels_last': True,
                              'use_lmdb': False, 'dali': None, 'skip_bad_images': False, 'mixup': 0, 'cutmix': 0,
                              'reprob': 0, 'crop': None, 'interpolation': None, 'crop_pct': None, **DEFAULTS,
                              **changes})


def outcome(save):
    """The result of the run in `save`: all weights, the numbers of each epoch without times, those of the best one."""
    return outcome_of(next(p.parent for p in sorted(save.glob('*/*/last.pth'))))


def outcome_of(folder):
    """The same for the folder of a run."""
    best = load_checkpoint(str(next(folder.glob('*_best.pth'))), '')
    last = load_checkpoint(str(folder / 'last.pth'), '')
    history = json.loads((folder / 'history.json').read_text())
    for epoch in history:
        del epoch['seconds'], epoch['train']['images_per_second']
    return {'last': last['module'], 'optimizer': last['optimizer']['state'], 'best': best['model'],
            'method': best.get('distiller', {}), 'history': history, 'loader': last['loader'],
            'torch': last['random'][0]['torch'],
            'metrics': json.loads((folder / 'test_best_metrics.json').read_text()),
            'classes': json.loads((folder / 'test_best_classes.json').read_text())}


def assert_same(a, b):
    """Assert that two results are bit-identical."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    else:
        assert a == b


class Cells(HTMLParser):
    """The rows of the first table of a page: [(attributes of a cell, its texts)]."""

    def __init__(self):
        super().__init__()
        self.rows, self.inside = [], False

    def handle_starttag(self, tag, attributes):
        if tag == 'table':
            self.inside = not self.rows
        elif self.inside and tag == 'tr':
            self.rows.append([])
        elif self.inside and tag in ('td', 'th'):
            self.rows[-1].append((dict(attributes), []))

    def handle_endtag(self, tag):
        self.inside = self.inside and tag != 'table'

    def handle_data(self, data):
        if self.inside and self.rows and data.strip():
            self.rows[-1][-1][1].append(data.strip())


def rows_of_table(page: str, start: str) -> list:
    """The rows of the one table of an HTML page that begins with `start`: [[(attributes of a cell, its texts)]]."""
    assert page.count(start) == 1
    reader = Cells()
    reader.feed(page[page.index(start):])
    return reader.rows


def slurm_environment() -> dict:
    """The environment of a process that uses Slurm."""
    return {**os.environ, 'SLURM_CONF': SLURM_CONF, 'OMP_NUM_THREADS': '1',
            'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}


def slurm(*command, timeout=60) -> str:
    """Run a command of Slurm. Returns its stdout."""
    return subprocess.run([*map(str, command)], env=slurm_environment(), check=True, capture_output=True, text=True,
                          timeout=timeout).stdout


@functools.cache
def cluster_is_there() -> bool:
    """Whether Slurm answers with the partitions of tests/slurm. No other cluster gets these jobs."""
    try:
        return os.path.exists(SLURM_CONF) and \
            {'low', 'high'} <= set(slurm('sinfo', '-h', '-o', '%R', timeout=5).split())
    except (OSError, subprocess.SubprocessError):
        return False


def wait_for_slurm(condition, seconds=120):
    """Wait until `condition` returns something true. Returns it."""
    until = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < until, slurm('squeue', '--long')
        time.sleep(0.3)
    return found


class Here:
    """In place of a RuntimeProcess: the runtime in this one, without the seconds that another takes to start."""

    def __init__(self, file, threads=None):
        from export.runtime import open_export
        self.net = open_export(file)

    def run(self, images, count=1):
        return self.net(images), np.zeros(count)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


class Hostile:
    """Runs a shell command when unpickled."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f'touch {self.mark}',)


@pytest.fixture(scope='module')
def cluster():
    """The Slurm of tests/slurm, for the tests of one file at a time. Skips them if it does not run."""
    if not cluster_is_there():
        pytest.skip('no Slurm to test on: sh tests/slurm/start.sh')
    with locked(Path(SLURM_CONF)):
        yield


@pytest.fixture(scope='session')
def tree(tmp_path_factory):
    """A data folder: 4 classes, 12 training and 6 test images each, 16x16."""
    root = tmp_path_factory.mktemp('tree')
    write_images(root / 'train', 12)
    write_images(root / 'test', 6)
    return root


@pytest.fixture(scope='session')
def call():
    """call(main, *arguments): run a script's main in this process, as `python script.py arguments`."""
    def run(main, *arguments):
        from helper.errors import run_main
        before = sys.argv, sys.unraisablehook
        sys.argv = ['script.py', *map(str, arguments)]
        try:
            run_main(main)
        finally:
            sys.argv, sys.unraisablehook = before
    return run


@pytest.fixture(scope='session')
def small(tree):
    """Flags of a run that takes a second."""
    return ['--dataset', 'folder', '--data_dir', tree, '--image_size', 16, '--batch_size', 16, '--epochs', 1,
            '--gpu_id', 'cpu', '--seed', 1, '--num_workers', 2]


@pytest.fixture(scope='session')
def teacher(tmp_path_factory, call, small):
    """The checkpoint of a resnet14 trained for an epoch on the tree."""
    import train_teacher
    save = tmp_path_factory.mktemp('teacher')
    call(train_teacher.main, '--model', 'resnet14', '--save_dir', save, *small)
    return next(save.glob('models/*/resnet14_best.pth'))
