"""Training with several real processes, connected by gloo on this machine."""
import functools
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import CPU, assert_same, forked, forked_processes, free_port, options, outcome, wait_for_text
from torch.distributed import run as torchrun
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.distributed.launcher.api import elastic_launch

import helper.launch
import helper.signals
import train_student
import train_teacher
from dataset import Data, get_dataloaders
from dataset.memory import MemoryLoader
from dataset.order import AccompanyingOrder, EpochOrder, batch_ranges
from dataset.teacher_head import add_head
from dataset.unlabelled import WithUnlabelled
from distiller_zoo import distiller_dict, get_method, make_distiller
from helper import distributed
from helper.checkpoint import load_checkpoint
from helper.class_metrics import class_report
from helper.cli import Flags
from helper.cluster import explain_failed_meeting, first_host
from helper.compile import compile_forward
from helper.device import Precision
from helper.errors import UserError
from helper.files import FolderLock
from helper.launch import launch
from helper.loops import train_epoch, validate
from helper.meter import Progress
from helper.run import Run
from models import model_dict
from models.ensemble import Ensemble
from models.grad_checkpointing import turn_on_grad_checkpointing
from models.sync_batchnorm import synchronise_batchnorm
from options import student_options, teacher_options

ROOT = Path(__file__).resolve().parents[1]
WORLD = 2
TWO_TEACHERS = 'semckd, two teachers'


def two(entries='cpu,cpu'):
    """The flags of a run with two processes."""
    return ['--multiprocessing-distributed', '--gpu_id', entries, '--dist-url', f'tcp://127.0.0.1:{free_port()}']


def test_batch_ranges():
    """Each part of each batch occurs once; all processes get equal parts; an indivisible rest is left out."""
    for n, batch, world, drop in ((48, 8, 2, 0), (50, 8, 2, 0), (53, 8, 2, 0), (17, 4, 4, 0), (31, 4, 2, 1),
                                  (17, 8, 1, 0), (19, 8, 2, 0), (3, 1, 2, 0)):
        parts = [batch_ranges(n, batch, drop, rank, world) for rank in range(world)]
        assert len({len(p) for p in parts}) == 1
        seen = sorted(i for own in parts for start, end in own for i in range(start, end))
        rest = n % (batch * world)
        used = 0 if drop else rest // world
        assert seen == list(range(n - rest + used * world))
        for together in zip(*parts, strict=True):
            sizes = {end - start for start, end in together}
            assert len(sizes) == 1 and (sizes != {1} or batch == 1)     # a lone image joins the batch before


@pytest.mark.parametrize('train', [True, False])
def test_loaders_divide_what_one_process_sees(train):
    images, target = torch.randint(0, 256, (45, 3, 8, 8), dtype=torch.uint8), torch.arange(45)
    one = list(MemoryLoader(images, target, 8, CPU, train=train, seed=3))
    parts = [list(MemoryLoader(images, target, 4, CPU, train=train, seed=3, rank=r, world_size=2)) for r in (0, 1)]
    if train:
        for whole, a, b in zip(one, *parts, strict=True):
            n = len(a[1]) + len(b[1])       # 5 in the last batch: one is left out
            assert n in (8, 4)
            assert all(torch.equal(w[:n], torch.cat(pair)) for w, *pair in zip(whole, a, b, strict=True))
    else:
        seen = torch.cat([index for part in parts for _, _, index in part])
        assert sorted(seen.tolist()) == list(range(45))


def test_sampler_divides_what_one_process_sees():
    one = list(EpochOrder(21, 8, True, False, seed=3))
    parts = [list(EpochOrder(21, 4, True, False, 3, rank, 2)) for rank in (0, 1)]
    assert [a + b for a, b in zip(*parts, strict=True)] == [*one[:2], one[2][:4]]
    held_out = [i for rank in (0, 1) for batch in EpochOrder(21, 4, False, False, 3, rank, 2) for i, _ in batch]
    assert sorted(held_out) == list(range(21))


@functools.cache
def teacher_net():
    torch.manual_seed(1)
    return model_dict['resnet14'](num_classes=10)


def make(method, rank, world, images=24, teachers=1, **changes):
    """(distiller, loader, options), the same in every process except for its part of the batches of 8."""
    cls, teacher = get_method(method), teacher_net()
    torch.manual_seed(0)
    opt = options(method, batch=8 // world, sync_bn=False, seed=0, save_every=0, **changes)
    pixels = torch.randint(0, 256, (images, 3, 16, 16), dtype=torch.uint8)
    loader = MemoryLoader(pixels, torch.arange(images) % 10, opt.batch_size, CPU, train=True, rank=rank,
                          world_size=world, drop_last=cls.spec.drop_last, views=cls.spec.views)
    data = Data(loader, loader, 10, 16, loader.target)
    student = model_dict['resnet8'](num_classes=10)
    if teachers > 1:
        opt.path_t = opt.model_t = teachers * ['resnet14']
        distiller = make_distiller(student, Ensemble(teachers * [teacher]), opt, data)
    else:
        distiller = cls(student, teacher, opt, data)
    distributed.seed_this_process(opt.seed)
    return distiller, loader, opt


def steps(distiller, loader, opt, sgd=0.01, amp=None, grad_accum=1):
    """Train the first stage, if there is one, for an epoch, and two more: ([averages], optimiser).

    The averages of the last two say whether the student's first layer moved. grad_accum: of the first stage and of the
    last epoch; if it is the number of batches, the averages say whether the one update had the right gradients.
    """
    found, passes = [], sum_passes(distiller)
    opt.grad_accum = grad_accum
    if distiller.in_first_stage:
        module = distributed.wrap(distiller, CPU, find_unused_parameters=True)
        optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-4, momentum=0.9, weight_decay=5e-4)
        averages = train_epoch(1, loader, module, optimizer, opt)
        found.append({**averages, 'gradients': grad_accum == 1 or are_means(passes, distiller)})
        distiller.end_first_stage()
    module = distributed.wrap(distiller, CPU)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=sgd, momentum=0.9, weight_decay=5e-4)
    if distiller.own_backward:
        optimizer = distiller.make_optimizer(sgd, opt)
    precision = Precision(amp, CPU)
    for epoch in (1, 2):
        distiller.begin_epoch(epoch, 2)
        module, before = distributed.rewrap(module, CPU), distiller.student.conv1.weight.clone()
        opt.grad_accum = grad_accum if epoch == 2 else 1
        passes.clear()
        averages = train_epoch(epoch, loader, module, optimizer, opt, precision=precision)
        distiller.end_epoch()
        found.append({**averages, 'moved': not distiller.student.conv1.weight.equal(before),
                      'gradients': opt.grad_accum == 1 or are_means(passes, distiller)})
    return found, optimizer


def sum_passes(module):
    """parameter -> the sum of the gradients of all backward passes of this process from now on."""
    sums = {}
    for p in module.parameters():
        if p.requires_grad:
            p.register_hook(lambda grad, p=p: sums.update({p: sums[p] + grad if p in sums else grad.clone()}))
    return sums


def are_means(sums, module):
    """Whether each gradient is, to the bit, the mean of these sums over the processes."""
    learning = [p for p in module.parameters() if p.grad is not None]
    means = distributed.mean(torch.cat([sums[p].flatten() for p in learning]))
    return len(sums) == len(learning) and means.equal(torch.cat([p.grad.flatten() for p in learning]))


def with_unlabelled(rank, world):
    """The averages of two epochs with 4 unlabelled images beside 8 labelled ones, with --sync_bn."""
    distiller, loader, opt = make('kd', rank, world)
    pixels = torch.randint(0, 256, (10, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    beside = MemoryLoader(pixels, torch.zeros(10, dtype=torch.int64), 4 // world, CPU, train=True, rank=rank,
                          world_size=world, make_order=functools.partial(AccompanyingOrder, main=loader.order))
    synchronise_batchnorm(distiller)
    return steps(distiller, WithUnlabelled(loader, beside), opt)[0]


def measure(loader, net):
    """[what validate returns and the means over the classes, the metrics of each class]."""
    test = validate(loader, net)
    report = class_report(test.pop('predictions'), [*'0123456789'])
    classes = report.pop('classes')
    return [{**test, **report}, classes]


def accumulated(rank, world):
    """(averages, a part of the weights, number of gradient exchanges) of an epoch of three batches, --grad_accum 2."""
    distiller, loader, opt = make('kd', rank, world, grad_accum=2)
    synchronise_batchnorm(distiller)
    module, buckets = distributed.wrap(distiller, CPU), []

    def count(state, bucket):
        buckets.append(bucket.index())
        return allreduce_hook(state, bucket)
    if world > 1:
        module.register_comm_hook(None, count)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
    averages = train_epoch(1, loader, module, optimizer, opt)
    return averages, distiller.student.fc.weight.flatten()[:20].tolist(), buckets.count(0)


def teacher_head(loader, save_dir):
    """[the checksum, the classifier's weights] of --teacher_head in each process."""
    torch.manual_seed(0)
    teacher = model_dict['resnet8'](num_classes=10)
    opt = SimpleNamespace(teacher_head='linear', teacher_cache=None, save_dir=str(save_dir), model_t='resnet8',
                          dataset='x', split=None, val_fraction=None, train_fraction=1.0, estimate=False,
                          channels_last=True, path_t='x')
    add_head(opt, teacher, Data(loader, loader, 10, 16, loader.target, lambda: loader), CPU)
    return distributed.gather([teacher.head_checksum, teacher.fc.weight.tolist()])


def measured_weights(rank, world):
    """The weights of -b auto after six batches."""
    distiller, loader, opt = make('hint+dkd', rank, world, beta=['auto', 'auto'])
    synchronise_batchnorm(distiller)
    steps(distiller, loader, opt)
    return distiller.measured_weights()


def checkpointed(rank, world, is_on):
    """(losses, weights) of a method with a first stage, in which DDP looks for unused parameters, and --sync_bn."""
    distiller, loader, opt = make('fsp', rank, world, images=16)
    synchronise_batchnorm(distiller)
    if is_on:
        turn_on_grad_checkpointing(distiller.student, 16, 'resnet8')
    averages, _ = steps(distiller, loader, opt)
    return [a['loss'] for a in averages], [value.tolist() for value in distiller.student.state_dict().values()]


def same(*states) -> list:
    """Whether each state is bit-identical in all processes."""
    by_process = distributed.gather([checksum(state) for state in states])
    return [len(set(checksums)) == 1 for checksums in zip(*by_process, strict=True)]


def checksum(state) -> int:
    crc = 0
    for value in flat(state):
        is_tensor = isinstance(value, torch.Tensor)
        crc = zlib.crc32(value.detach().numpy().tobytes() if is_tensor else repr(value).encode(), crc)
    return crc


def flat(value):
    if isinstance(value, dict):
        return [x for v in value.values() for x in flat(v)]
    return [x for v in value for x in flat(v)] if isinstance(value, (list, tuple)) else [value]


def every_method(opt, device):
    """Runs in each process: collect what the tests below check, and write it as JSON."""
    rank, world = distributed.rank(), distributed.world_size()
    found = {}
    from fixtures.every_part import EveryPartDistiller  # several backward passes
    distiller_dict['every_part'] = EveryPartDistiller       # another test may have removed it before this fork
    for method in (*distiller_dict, 'rkd+crd', TWO_TEACHERS):
        name, teachers = ('semckd', 2) if method == TWO_TEACHERS else (method, 1)
        freezes = not get_method(name).spec.own_backward
        distiller, loader, method_opt = make(name, rank, world, 16, teachers, freeze_epochs=int(freezes))
        averages, optimizer = steps(distiller, loader, method_opt, grad_accum=1 + freezes)
        state = dict(distiller.state_dict())
        for name in distiller.spec.own_buffers:
            state.pop(name, None)
        numbers = [[v for k, v in a.items() if k != 'images_per_second'] for a in averages]
        found[method] = {
            **dict(zip(('weights', 'optimizer', 'averages'), same(state, optimizer.state_dict()['state'], numbers),
                       strict=True)),
            'moved': [epoch['moved'] for epoch in averages[-2:]] == [not freezes, True],
            'gradients': all(a['gradients'] for a in averages)}
        if method == 'gkl':
            found['class means'] = distiller.class_means.table.tolist()
        if method == 'crd':
            before = make(method, rank, world, images=16)[0].criterion.contrast.memory_v1
            found['memory rows'] = int((distiller.criterion.contrast.memory_v1 != before).any(1).sum())
    for name, opt_here in (('alike', opt), ('other', SimpleNamespace(**vars(opt), kd_T=4.0 + rank)),
                           ('drawn', SimpleNamespace(**{**vars(opt), 'seed': rank + 5,
                                                         'flags': Flags({}, set(), ['seed'])}))):
        try:
            distributed.agree_on_options(opt_here)
            found[f'options {name}'] = distributed.gather(getattr(opt_here, 'seed', None))
        except UserError as error:
            found[f'options {name}'] = distributed.gather(str(error))
    distiller, loader, method_opt = make('kd', rank, world)
    synchronise_batchnorm(distiller)
    found['sync_bn'] = steps(distiller, loader, method_opt, sgd=0.05)[0]
    found['sync_bn weight'] = distiller.student.fc.weight.flatten()[:20].tolist()
    found['unlabelled'] = with_unlabelled(rank, world)
    found['accumulated'] = accumulated(rank, world)
    found['measured weights'] = distributed.gather(measured_weights(rank, world))
    found['compiled'] = []
    for sync_bn, compiled in itertools.product((False, True), repeat=2):
        distiller, loader, method_opt = make('kd', rank, world, images=16)
        if sync_bn:
            synchronise_batchnorm(distiller)
        if compiled:
            compile_forward(distiller, method_opt.batch_size, CPU)
        averages, _ = steps(distiller, loader, method_opt)
        found['compiled'].append([a['loss'] for a in averages])
    found['grad_checkpointing'] = [checkpointed(rank, world, is_on) for is_on in (False, True)]
    half, loader, method_opt = make('kd', rank, world)
    synchronise_batchnorm(half)
    found['sync_bn in 16 bits'] = steps(half, loader, method_opt, sgd=0.05, amp='bfloat16')[0]
    images, target = torch.randint(0, 256, (45, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator()
                                   .manual_seed(7)), torch.arange(45) % 10
    held_out = MemoryLoader(images, target, 8, device, rank=rank, world_size=world)
    found['validate'] = measure(held_out, make('kd', rank, world)[0].student)
    found['teacher head'] = teacher_head(held_out, Path(opt.out).parent)
    one = MemoryLoader(images[:1], target[:1], 8, device, rank=rank, world_size=world)
    found['one image'] = measure(one, make('kd', rank, world)[0].student)
    net = make('kd', rank, world)[0].student
    net.fc.bias.data.fill_(float('nan') if rank else 0)     # in one process alone
    try:
        validate(held_out, net)
    except UserError as error:
        found['not finite'] = distributed.gather(str(error))
    if rank == 0:
        Path(opt.out).write_text(json.dumps(found))


@pytest.fixture(scope='module')
def together(tmp_path_factory):
    """The results of every_method in two processes."""
    out = tmp_path_factory.mktemp('together') / 'found.json'
    with forked_processes():
        launch(every_method, of_two(out=str(out)))
    return json.loads(out.read_text())


def of_two(**more):
    """The options that start two processes."""
    return SimpleNamespace(multiprocessing_distributed=True, gpu_id='cpu,cpu', batch_size=8, num_workers=0,
                           flags=Flags({}, set()), dist_url=f'tcp://127.0.0.1:{free_port()}', dist_timeout=600, **more)


def test_options_of_all_processes(together):
    """All use the seed that process 0 drew; all refuse a different option of one process, with the same message."""
    assert together['options alike'] == [None, None] and together['options drawn'] == [5, 5]
    assert together['options other'] == 2 * ['process 0 and process 1 differ: kd_T 4.0 and 5.0; start all of them with '
                                             'the same command, code and torch']


@pytest.mark.parametrize('method', [*distiller_dict, 'every_part', 'rkd+crd', TWO_TEACHERS])
def test_all_processes_hold_the_same(together, method):
    """After an epoch with a frozen backbone and one in which all learns, which accumulates as the first stage does.

    The gradients of these are, to the bit, the means over the processes of the sums over the batches. A method with
    its own backward passes neither freezes nor accumulates.
    """
    assert together[method] == dict.fromkeys(('weights', 'optimizer', 'averages', 'moved', 'gradients'), True)


def test_teacher_head(together, tmp_path):
    """Both processes get the head that one process fits, up to rounding."""
    first, second = together['teacher head']
    images = torch.randint(0, 256, (45, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    alone = teacher_head(MemoryLoader(images, torch.arange(45) % 10, 8, CPU), tmp_path)[0]
    assert first == second
    torch.testing.assert_close(torch.tensor(first[1]), torch.tensor(alone[1]), rtol=1e-3, atol=1e-3)


def test_which_methods_exchange_values():
    """All others compute on the batch of a process, as docs/distributed.md says."""
    files = {str(file.relative_to(ROOT / 'distiller_zoo')) for file in (ROOT / 'distiller_zoo').rglob('*.py')
             if 'distributed' in file.read_text()}
    assert files == {'task.py', 'auto_weight.py', 'semckd.py', 'wkdl.py', 'nd.py', 'ikl.py', 'criteria/crd.py'}


def test_crd_memory_takes_in_the_whole_batch(together):
    assert together['memory rows'] == 16        # each of two processes has seen 8 of the images


def test_class_means_of_all_processes(together):
    """Two processes give those of one: the teacher sees the same images."""
    distiller, loader, opt = make('gkl', 0, 1, images=16)
    steps(distiller, loader, opt)
    torch.testing.assert_close(torch.tensor(together['class means']), distiller.class_means.table)
    assert not torch.allclose(distiller.class_means.table, torch.full((10, 10), 0.1), atol=1e-3)


def test_two_processes_train_as_one(together):
    """With --sync_bn, two processes give the losses and weights of one process with the whole batch."""
    distiller, loader, opt = make('kd', 0, 1)
    averages, _ = steps(distiller, loader, opt, sgd=0.05)
    for a, b in zip(averages, together['sync_bn'], strict=True):
        assert {k: v for k, v in b.items() if k != 'images_per_second'} == pytest.approx(
            {k: v for k, v in a.items() if k != 'images_per_second'}, rel=1e-4)
    for a, b in zip(together['sync_bn'], together['sync_bn in 16 bits'], strict=True):
        assert 0 < abs(a['loss'] - b['loss']) < 0.03 * a['loss']
    assert together['sync_bn weight'] == pytest.approx(distiller.student.fc.weight.flatten()[:20].tolist(), abs=1e-5)


def test_two_processes_with_unlabelled_images(together):
    """Each takes its share of them: the losses are those of one process."""
    for a, b in zip(with_unlabelled(0, 1), together['unlabelled'], strict=True):
        assert {k: v for k, v in b.items() if k != 'images_per_second'} == pytest.approx(
            {k: v for k, v in a.items() if k != 'images_per_second'}, rel=1e-4)


def test_two_processes_accumulate_as_one(together):
    """--grad_accum 2: two processes equal one with the whole batch; two updates exchange the gradients twice."""
    averages, weights, exchanges = together['accumulated']
    expected, expected_weights, _ = accumulated(0, 1)
    for each in (averages, expected):
        del each['images_per_second']
    assert averages == pytest.approx(expected, rel=1e-4) and weights == pytest.approx(expected_weights, abs=1e-5)
    assert exchanges == 2


def test_two_processes_measure_the_weights_of_one(together):
    """-b auto: both have the same weights to the bit, those of one process up to rounding."""
    first, second = together['measured weights']
    assert first == second == pytest.approx(measured_weights(0, 1), rel=1e-3)


def test_two_processes_compiled(together):
    plain, compiled, plain_sync, compiled_sync = together['compiled']
    assert compiled == pytest.approx(plain, rel=1e-5) and compiled != plain
    assert compiled_sync == pytest.approx(plain_sync, rel=1e-5) and compiled_sync != plain_sync


def test_two_processes_with_grad_checkpointing(together):
    without, with_it = together['grad_checkpointing']
    assert with_it == without


def test_validation_is_that_of_one_process(together):
    net = make('kd', 0, 1)[0].student
    images = torch.randint(0, 256, (45, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(7))
    for name, n in (('validate', 45), ('one image', 1)):
        want, classes = measure(MemoryLoader(images[:n], torch.arange(n) % 10, 8, CPU), net)
        assert together[name] == [pytest.approx(want, rel=1e-6), classes]
    assert together['not finite'] == 2 * ['the run diverged in epoch 1: the loss on the test images is nan; lower '
                                          '--learning_rate']


def fails_in_one(opt, device):
    if distributed.rank() == 1:
        if opt.how == 'user error':
            raise UserError('--flag x: wrong')
        if opt.how == 'killed':
            os.kill(os.getpid(), 9)
        raise ZeroDivisionError('a bug')
    distributed.gather(1)       # waits for the other


@pytest.mark.parametrize('how, code, words', [
    ('user error', 2, 'error: --flag x: wrong\n'), ('killed', 137, 'error: process 1 (cpu) was ended by SIGKILL'),
    pytest.param('bug', 1, 'error: ZeroDivisionError: a bug; this is a fault of the program',
                 marks=pytest.mark.slow)])
def test_a_worker_that_dies_ends_the_run(how, code, words, capfd):
    with forked_processes(), pytest.raises(SystemExit) as caught:
        launch(fails_in_one, of_two(how=how))
    error = capfd.readouterr().err
    assert caught.value.code == code and words in error and error.count('\n') == 1 and 'gloo' not in error


def train_and_show(opt, device):
    """Run train_teacher.py; then write the indices of the images that this process gets in an epoch."""
    train_teacher.train(opt, device)
    loader = get_dataloaders(distributed.per_process_options(opt), device).train_loader
    (Path(opt.save_dir) / str(distributed.rank())).write_text(json.dumps([i for *_, index in loader
                                                                          for i in index.tolist()]))


def test_torchrun(small, tmp_path):
    """With torchrun's agent on one node and without --seed, the processes get each image once an epoch."""
    out, seed = tmp_path / 'out', small.index('--seed')

    def worker(*arguments):
        process = forked(lambda: launch(train_and_show, teacher_options()), *arguments, out=out)
        process.join()
        return process.exitcode

    def agent():
        config, _, arguments = torchrun.config_from_args(torchrun.parse_args(sys.argv[1:]))
        config.start_method = 'fork'        # of functions, which takes seconds less than to start scripts
        codes = elastic_launch(config, worker)(*arguments[2:])
        assert codes == {0: 0, 1: 0}, codes
    process = forked(agent, '--nproc_per_node', 2, '--master_port', free_port(), 'train.py', '--model', 'resnet8',
                     '--save_dir', tmp_path, *small[:seed], *small[seed + 2:], out=tmp_path / 'agent')
    process.join()
    assert process.exitcode == 0, Path(f'{out}.err').read_text()
    assert out.read_text().count('epoch 1: ') == 1 and '2 processes, cpu' in out.read_text()
    assert next(tmp_path.glob('models/*/resnet8_best.pth'))
    served = [json.loads((tmp_path / rank).read_text()) for rank in '01']
    assert [len(part) for part in served] == [24, 24] and sorted(sum(served, [])) == list(range(48))


def slurm_task(rank):
    """The environment of a task of a step on two nodes, as Slurm describes it."""
    return {'SLURM_STEP_NUM_TASKS': '2', 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_JOB_ID': str(os.getpid()),
            'SLURM_STEP_ID': '0', 'SLURM_LOCALID': '0', 'SLURM_PROCID': str(rank)}


def test_two_nodes_under_srun(small, tmp_path):
    outs = [tmp_path / f'out{rank}' for rank in (0, 1)]
    started = [forked(train_teacher.main, '--model', 'resnet8', '--save_dir', tmp_path, *small, out=out,
                      **slurm_task(rank)) for rank, out in enumerate(outs)]
    for process, out in zip(started, outs, strict=True):
        process.join()
        assert process.exitcode == 0, Path(f'{out}.err').read_text()
    out, nothing = (out.read_text() for out in outs)
    assert '2 processes, cpu' in out and out.count('epoch 1: ') == 1 and nothing == ''


# Runs train_teacher.py, and takes two seconds to exit.
LEAVES_SLOWLY = '''
import atexit, time
atexit.register(time.sleep, 2)
import train_teacher
from helper.errors import run_main
run_main(train_teacher.main)
'''


@pytest.mark.slow
def test_stopped_processes_keep_their_code(small, tmp_path):
    """srun ends the second process after the first has saved and exited: both return 128 + SIGUSR1."""
    (tmp_path / 'train.py').write_text(LEAVES_SLOWLY)
    command = [sys.executable, tmp_path / 'train.py', '--model', 'resnet8', *small, '--epochs', 2000, '--save_dir',
               tmp_path]
    here = {'PYTHONPATH': str(ROOT)}
    started = [subprocess.Popen(list(map(str, command)), env={**os.environ, **slurm_task(rank), **here},
                                text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for rank in (0, 1)]
    for line in started[0].stdout:
        if line.startswith('epoch 1: '):
            started[1].send_signal(signal.SIGUSR1)
        if line.startswith('SIGUSR1: stopped'):
            break
    time.sleep(1)
    for process in started:
        process.terminate()
    assert [process.communicate()[1] for process in started] == ['', '']
    assert [process.returncode for process in started] == 2 * [128 + signal.SIGUSR1]


def test_progress_counts_the_images_of_all_processes(monkeypatch):
    monkeypatch.setattr(distributed, 'world_size', lambda: 2)
    images = torch.zeros(36, 3, 4, 4, dtype=torch.uint8)
    loader = MemoryLoader(images, torch.arange(36) % 10, 8, CPU, train=True, rank=0, world_size=2)
    with Progress('epoch 1', loader, 10) as progress:
        for _, target, _ in loader:
            progress.step(len(target), None)
        time.sleep(0.01)
    assert progress.images == 36 and 0 < progress.images_per_second < 3600


def test_processes_that_end_at_once_leave_no_warnings(monkeypatch):
    """Only Python's resource tracker, which removes their semaphores, gets the setting against warnings."""
    seen = []
    monkeypatch.setattr(helper.launch.resource_tracker, 'ensure_running',
                        lambda: seen.append(os.environ['PYTHONWARNINGS']))
    monkeypatch.setenv('PYTHONWARNINGS', 'error')
    helper.launch.start_resource_tracker()
    assert seen == ['error,ignore:resource_tracker'] and os.environ['PYTHONWARNINGS'] == 'error'
    monkeypatch.delenv('PYTHONWARNINGS')
    helper.launch.start_resource_tracker()
    assert seen[1] == 'ignore:resource_tracker' and 'PYTHONWARNINGS' not in os.environ


def test_first_host():
    for nodes, host in (('gpu[003-005,9],cpu1', 'gpu003'), ('a1,a2', 'a1'), ('single', 'single'), ('n[7,9]', 'n7')):
        assert first_host(nodes) == host


BAD = {     # arguments, environment, part of the message
    'both launchers': (two(), {'WORLD_SIZE': '2', 'RANK': '0'}, 'WORLD_SIZE is set'),
    'indivisible': ([*two('cpu,cpu,cpu'), '--batch_size', '16'], {}, '--batch_size 16: cannot be divided among 3'),
    'more processes than images': ([*two('cpu,cpu,cpu'), '--batch_size', '2'], {}, 'fewer images than the 3 processes'),
    'no url': ([*two()[:-1], 'here'], {}, '--dist-url here: give tcp://HOST:PORT'),
    'half a bracket': ([*two()[:-1], 'tcp://[::1'], {}, '--dist-url tcp://[::1: give tcp://HOST:PORT'),
    'a query': ([*two()[:-1], 'tcp://127.0.0.1:5000?a=1'], {}, '--dist-url tcp://127.0.0.1:5000?a=1: give tcp://'),
    'foreign address': ([*two()[:-1], 'tcp://192.0.2.1:5000'], {}, '--dist-url tcp://192.0.2.1:5000: cannot be used'),
    'mixed': (two('cpu,0'), {}, '--gpu_id cpu,0: name GPUs, or cpu once for each process'),
    'no number': (two('cpu,x'), {}, '--gpu_id cpu,x: name GPUs'),
    'cpu twice': (['--gpu_id', 'cpu,cpu'], {}, 'add --multiprocessing-distributed'),
    'half an environment': ([], {'WORLD_SIZE': '2'}, 'WORLD_SIZE 2: RANK is not set; start with torchrun'),
    'rank': ([], {'WORLD_SIZE': '2', 'RANK': '2', 'MASTER_ADDR': 'x', 'MASTER_PORT': '1'}, 'RANK 2: WORLD_SIZE is 2'),
    'no world': ([], {'WORLD_SIZE': 'two'}, 'WORLD_SIZE two: give a whole number'),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(call, small, tmp_path, capfd, monkeypatch, case):
    arguments, environment, words = BAD[case]
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit) as caught:
        call(train_teacher.main, '--model', 'resnet8', '--save_dir', tmp_path, *small, *arguments)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and words in error
    assert list(tmp_path.iterdir()) == []


def test_url_in_use(call, small, tmp_path, capfd):
    with socket.socket() as other:
        other.bind(('127.0.0.1', 0))
        other.listen()
        url = f'tcp://127.0.0.1:{other.getsockname()[1]}'
        with pytest.raises(SystemExit) as caught:
            call(train_teacher.main, '--model', 'resnet8', '--save_dir', tmp_path, *small, *two()[:-1], url)
    error = capfd.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and f'--dist-url {url}: cannot be used (Address' in error


@pytest.mark.parametrize('error, seconds, said', [
    ('Gloo connectFullMesh failed with [pair.cc:152] timed out connecting: SO_ERROR: Connection refused, '
     'remote=[127.0.1.1]:4014$1', 1.3,
     'the 2 processes did not meet and gave up after 1 s: one of them cannot be reached at 127.0.1.1, which every '
     'machine has for itself; its host name stands for that address in /etc/hosts; set GLOO_SOCKET_IFNAME, and '
     'NCCL_SOCKET_IFNAME for GPUs, to the network interface that the machines share, as eth0 of `ip addr`, for all '
     'processes'),
    ('timed out connecting: No route to host, remote=[10.0.0.7]:4014$1', 60.2,
     'the 2 processes did not meet within 60 s: one of them cannot be reached at 10.0.0.7; set GLOO_SOCKET_IFNAME'),
    ('The client socket has timed out', 60.2,
     'the 2 processes did not meet within 60 s (The client socket has timed out); is the address that of process 0, '
     'open to all, and does every process start? --dist-timeout SECONDS waits longer'),
    ('Name or service not known', 0.2,
     'the 2 processes did not meet and gave up after 0 s (Name or service not known); is the address that of process '
     '0, open to all, and does every process start?')])
def test_why_processes_did_not_meet(error, seconds, said):
    """The message has the elapsed seconds, and advises a longer timeout only if they reached it."""
    assert explain_failed_meeting(error, 2, seconds, 60).startswith(said)
    assert ('--dist-timeout' in said) == ('--dist-timeout' in explain_failed_meeting(error, 2, seconds, 60))


def test_the_others_do_not_come(small, tmp_path):
    """The wait for processes that never start ends after --dist-timeout, with one line."""
    save = tmp_path / 'save'
    started = [forked(train_teacher.main, '--dist-timeout', 2, '--save_dir', save, *small, out=tmp_path / str(rank),
                      WORLD_SIZE='2', RANK=str(rank), MASTER_ADDR='127.0.0.1', MASTER_PORT=str(free_port()))
               for rank in (0, 1)]
    for rank, process in enumerate(started):        # process 0 waits for process 1, which calls another port
        process.join()
        error = (tmp_path / f'{rank}.err').read_text()
        assert process.exitcode == 2 and error.count('\n') == 1
        assert error.startswith('error: MASTER_ADDR') and 'the 2 processes did not meet within 2 s' in error
    assert not save.exists()


def test_a_signal_stops_all_at_one_step(small, teacher, tmp_path):
    """After SIGTERM to the launching process, all processes stop at the same step and save together."""
    arguments = ['--path_t', teacher, '--distill', 'crd', '--nce_k', 10, *small, '--epochs', 40, '--learning_rate',
                 0.02, '--skip-validation']
    out = tmp_path / 'out'
    process = forked(train_student.main, *arguments, *two(), '--save_dir', tmp_path / 'parts', out=out)
    wait_for_text(out, 'epoch 1: ', process)
    process.terminate()
    process.join()
    assert process.exitcode == 143 and 'SIGTERM: stopped after' in out.read_text()
    assert Path(f'{out}.err').read_text() == ''
    state = load_checkpoint(str(next(tmp_path.glob('parts/student_model/*/last.pth'))), '')
    assert len(state['random']) == 2 and state['epoch'] < 40


# A script whose processes get Ctrl-C before their first import.
INTERRUPTED = '''
import os, signal
if __name__ == '__mp_main__':
    os.kill(os.getpid(), signal.SIGINT)
from helper.errors import run_main
from helper.launch import launch
from options import teacher_options

def train(opt, device):
    raise AssertionError

if __name__ == '__main__':
    run_main(lambda: launch(train, teacher_options()))
'''


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == 'win32', reason='no such signals')
def test_ctrl_c_while_processes_start(tmp_path):
    (tmp_path / 'train.py').write_text(INTERRUPTED)
    done = subprocess.run([sys.executable, tmp_path / 'train.py', '--dataset', 'digits', *two()], capture_output=True,
                          text=True, env={**os.environ, 'PYTHONPATH': str(ROOT)})
    assert (done.returncode, done.stderr) == (130, '')


@pytest.mark.skipif(sys.platform != 'linux', reason='the kernel tells a process that its parent has ended')
def test_a_killed_launcher_takes_its_processes_along(small, tmp_path, monkeypatch):
    """After SIGKILL to the launching process, all save and end, even if SIGINT is ignored as in a background job."""
    others = tuple(number for number in helper.launch.STOP_SIGNALS if number != signal.SIGINT)
    for module in (helper.launch, helper.signals):
        monkeypatch.setattr(module, 'STOP_SIGNALS', others)

    def main():
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        train_teacher.main()
    reading, writing = os.pipe()
    out = tmp_path / 'out'
    process = forked(main, '--model', 'resnet8', *small, *two(), '--epochs', 2000, '--save_dir', tmp_path, out=out)
    os.close(writing)
    wait_for_text(out, 'epoch 1: ', process)
    process.kill()
    assert os.read(reading, 1) == b''       # returns when the last of them has ended
    os.close(reading)
    process.join()
    assert 'SIGTERM: stopped after' in out.read_text()
    lock = FolderLock(next(tmp_path.glob('models/*')))
    assert lock.take()
    lock.release()


def stopped(opt, device):
    """Run train_student.py, which gets a signal in the second step of an epoch."""
    original = Run.end_step

    def end_step(self, batches):
        if self.step == 1:
            self.signals.on_signal(signal.SIGTERM, None)
        original(self, batches)
    Run.end_step = end_step
    train_student.train(opt, device)


def test_two_processes_with_a_validation_set(call, small, tmp_path, capfd):
    """Both stop at the same epoch, and measure the same weights on the test set, as one process does afterwards."""
    arguments = ['--model', 'resnet8', *small, '--val_fraction', 0.25, '--patience', 1, '--epochs', 9, '--save_dir',
                 tmp_path]
    with forked_processes():
        call(train_teacher.main, *arguments, *two())
    folder, = tmp_path.glob('models/*')
    history, metrics, last = (json.loads((folder / f'{name}.json').read_text())
                              for name in ('history', 'test_best_metrics', 'test_last_metrics'))
    assert last['epoch'] == len(history) == metrics['epoch'] + 1 < 9
    before = {file: file.read_bytes() for file in folder.glob('*metrics.json')}
    capfd.readouterr()
    for name, expected in (('resnet8_best', metrics), ('last', last)):
        call(train_teacher.main, *small, '--evaluate', folder / f'{name}.pth')
        assert f'top-1 {expected["test_acc"]:.2f}, top-5' in capfd.readouterr().out
    call(train_teacher.main, *arguments, '--resume', 'auto')
    assert 'epoch 1: ' not in capfd.readouterr().out and before == {file: file.read_bytes() for file in before}


def test_two_processes_from_the_command_line(call, small, teacher, tmp_path, capfd):
    """A run of two processes that stops within an epoch resumes as if it had not, and continues in one process.

    Its state has the memories, the samples and the statistics of each process.
    """
    arguments = ['--path_t', teacher, '--distill', 'crd', '--nce_k', 10, *small, '--batch_size', 8, '--learning_rate',
                 0.02]
    with forked_processes():
        call(train_student.main, *arguments, *two(), '--save_dir', tmp_path / 'whole')
    out = capfd.readouterr().out
    assert out.count('teacher top-1') == 1 and '2 processes, cpu' in out and out.count('epoch 1: ') == 1
    parameters = json.loads(next(tmp_path.glob('whole/student_model/*/parameters.json')).read_text())
    assert (parameters['batch_size'], parameters['multiprocessing_distributed']) == (8, True)
    accuracy = load_checkpoint(str(teacher), '')['best_acc']
    assert f'teacher top-1: {accuracy:.2f}' in out

    arguments += ['--save_dir', tmp_path / 'parts']
    with forked_processes():
        with pytest.raises(SystemExit) as caught:
            launch(stopped, student_options(list(map(str, [*arguments, *two()]))))
        state = load_checkpoint(str(next(tmp_path.glob('parts/student_model/*/last.pth'))), '')
        assert (caught.value.code, state['epoch'], len(state['own'])) == (143, 1, 2) and state['step'] > 1
        call(train_student.main, *arguments, *two(), '--resume')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))

    capfd.readouterr()
    call(train_student.main, *arguments, '--epochs', 2, '--resume', 'auto')
    out = capfd.readouterr().out
    assert 'resumed by 1' in out and 'epoch 2: ' in out and 'epoch 1: ' not in out
