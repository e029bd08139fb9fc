"""The parts of today's recipes against timm's own objects, fed the same numbers."""
import copy
import io
import json
import os
import signal
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CPU, ROOT, assert_same, build, data_options, free_port, outcome
from PIL import Image
from torch import nn

import train_student
import train_teacher
from dataset import get_dataloaders
from dataset.augment import AutoAugment, BatchAugment, posterize
from dataset.normalise import CIFAR_MEAN as MEAN
from distiller_zoo import Vanilla
from helper.errors import UserError
from helper.loops import train_epoch
from helper.optim import adjust_learning_rate, new_optimizer
from helper.run import Run
from helper.state import check_optimizer, load_optimizer
from models.find import build as build_net
from options import student_options, teacher_options

timm = pytest.importorskip('timm')
VIT = 'timm:vit_tiny_patch16_224,patch_size=4,embed_dim=24,num_heads=2,depth=2'
ALL = ['--opt', 'adamw', '--learning_rate', 1e-3, '--sched', 'cosine', '--warmup_epochs', 1, '--clip_grad', 1,
       '--aa', 'rand-m9-mstd0.5-inc1', '--reprob', 0.25,
       '--smoothing', 0.1, '--mixup', 0.2, '--cutmix', 1, '--grad_accum', 2, '--model_ema', 0.9, '--drop_path', 0.2]


def options(*flags):
    return student_options(['--path-t', 'x', *map(str, flags)])


@pytest.mark.parametrize('sched', ['cosine', 'tanh', 'poly', 'step'])
def test_rates(sched):
    """Those of timm's scheduler over 100 epochs, whatever epoch is asked for first."""
    from timm.scheduler import create_scheduler_v2
    own = {'step': ['--lr_decay_epochs', '40,70', '--lr_decay_rate', 0.2],
           'poly': ['--min_lr', 1e-4, '--poly_power', 1.5]}.get(sched, ['--min_lr', 1e-4])
    opt = options('--sched', sched, '--warmup_epochs', 5, '--epochs', 100, '--warmup_lr', 1e-3, *own)
    first = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    scheduler, _ = create_scheduler_v2(first, 'multistep' if sched == 'step' else sched, 100, warmup_epochs=5,
                                       min_lr=1e-4, warmup_lr=1e-3, decay_milestones=[41, 71],
                                       decay_rate=1.5 if sched == 'poly' else 0.2)
    expected = []
    for epoch in range(100):
        scheduler.step(epoch)
        expected.append(first.param_groups[0]['lr'])
    ours = torch.optim.SGD([nn.Parameter(torch.zeros(1))], 0.1)
    found = {epoch: adjust_learning_rate(epoch, ours, opt) for epoch in [60, *range(1, 101)]}
    assert [found[epoch] for epoch in range(1, 101)] == expected and len({*expected}) >= 8
    if sched == 'step':         # after the warm-up it falls as it does without one
        plain = options('--epochs', 100, '--learning_rate', 0.1, '--lr_decay_epochs', '40,70', '--lr_decay_rate', 0.2)
        assert [adjust_learning_rate(e, ours, plain) for e in range(6, 101)] == pytest.approx(expected[5:])


@pytest.mark.parametrize('name', ['adamw', 'lamb', 'rmsproptf'])
def test_optimisers(name):
    """The weights after three steps are those of timm's own optimiser: biases and norms without decay."""
    from timm.optim import create_optimizer_v2
    torch.manual_seed(0)
    ours = Vanilla(build_net('resnet8', 10, 16))
    theirs = copy.deepcopy(ours)
    opt = options('--opt', name, '--weight_decay', 0.1)
    a = new_optimizer(ours, 0.01, opt)
    b = create_optimizer_v2(theirs, name, lr=0.01, weight_decay=0.1, momentum=0.9)
    for seed in range(3):
        images = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(seed))
        for module, optimizer in ((ours, a), (theirs, b)):
            optimizer.zero_grad()
            module(images, torch.arange(4))[0]['loss'].backward()
            optimizer.step()
    assert_same(dict(ours.state_dict()), dict(theirs.state_dict()))


@pytest.mark.filterwarnings('ignore:It is highly recommended')       # opt_einsum, for kron
def test_every_optimiser_resumes(monkeypatch):
    """Each that --opt takes here goes on from its saved state to the bit, with the rate of the options."""
    from timm.optim import list_optimizers
    monkeypatch.setattr(torch, 'compile', lambda function, **_: function)       # kron compiles a step for each shape
    optimisers = {*list_optimizers()} - {'adahessian'}
    opt, resumed = options('--weight_decay', 0.1), set()
    for name in sorted(optimisers):
        opt.opt = name
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), *([nn.Conv2d(2, 2, 2)] if 'muon' in name else []))
        try:
            optimizer = new_optimizer(net, 0.01, opt)
        except UserError:       # those of libraries that need a GPU
            continue
        for seed in range(2):
            _step(net, optimizer, seed)
        file = io.BytesIO()
        torch.save([net.state_dict(), optimizer.state_dict(), torch.get_rng_state()], file)
        file.seek(0)
        weights, saved, random_numbers = torch.load(file, weights_only=True)
        _step(net, optimizer, 2)
        other = copy.deepcopy(net)
        other.load_state_dict(weights)
        check_optimizer(new_optimizer(other, 0.01, opt), saved)
        again = new_optimizer(other, 0.01, opt)
        load_optimizer(again, saved)
        torch.set_rng_state(random_numbers)
        _step(other, again, 2)
        assert_same(dict(other.state_dict()), dict(net.state_dict()))
        resumed.add(name)
    assert {'sgd', 'adamw', 'lamb', 'adan', 'kron', 'muon', 'adafactorbv'} <= resumed and len(resumed) > 70


def _step(net, optimizer, seed):
    generator = torch.Generator().manual_seed(seed)
    for p in net.parameters():
        p.grad = torch.randn(p.shape, generator=generator)
    optimizer.step()


def test_losses():
    """Smoothing and the binary cross-entropy are timm's."""
    from timm.loss import BinaryCrossEntropy, LabelSmoothingCrossEntropy
    logits, target = torch.randn(6, 5), torch.arange(6) % 5
    net = build_net('resnet8', 5, 16)
    smoothed = Vanilla(net, options('--smoothing', 0.2)).label_loss
    torch.testing.assert_close(smoothed(logits, target), LabelSmoothingCrossEntropy(0.2)(logits, target))
    binary = Vanilla(net, options('--smoothing', 0.2, '--bce_loss')).label_loss
    assert binary(logits, target).equal(BinaryCrossEntropy(0.2)(logits, target))
    counts = torch.tensor([1, 2, 3, 0, 2])
    data = types.SimpleNamespace(labels=torch.arange(5).repeat_interleave(counts), num_classes=5)
    balanced = Vanilla(net, options('--balance_classes'), data).label_loss
    assert balanced.weight.tolist() == pytest.approx([8 / 5, 8 / 10, 8 / 15, 0, 8 / 10])
    assert sum(balanced.weight[data.labels]) == pytest.approx(8 * 4 / 5)        # of the classes that there are
    losses = nn.functional.cross_entropy(logits, target, reduction='none')
    torch.testing.assert_close(balanced(logits, target), (losses * balanced.weight[target]).mean())
    mixed = torch.rand(6, 5).softmax(1)
    plain = Vanilla(net, options('--smoothing', 0.2, '--mixup', 1)).label_loss       # smoothed already
    torch.testing.assert_close(plain(logits, mixed), -(mixed * logits.log_softmax(1)).sum(1).mean())


def test_the_same_mixed_images_for_teacher_and_student():
    """Those of timm's Mixup with the same random numbers; student, teacher and both losses see them."""
    from timm.data import Mixup
    distiller, loader, opt = build('kd', mixup=0.5, cutmix=1.0, smoothing=0.1)
    images, target, index = batch = next(iter(loader))
    mixed = BatchAugment([batch], opt, 10, CPU)
    expected = images.clone(), target.clone()
    np.random.seed(3)
    expected = Mixup(0.5, 1.0, label_smoothing=0.1, num_classes=10)(*expected)
    np.random.seed(3)
    found, soft, _ = next(iter(mixed))
    assert found.equal(expected[0]) and soft.equal(expected[1]) and not soft.equal(target)
    seen = []
    for net in (distiller.student, distiller.teacher):
        outputs = net.outputs
        net.outputs = lambda x, preact=False, outputs=outputs: (seen.append(x), outputs(x, preact))[1]
    losses, _ = distiller(found, soft, index)
    assert len(seen) == 2 and all(x is found for x in seen) and losses['ce'].isfinite()


def test_erased_images():
    """timm's RandomErasing with the same random numbers, in every view."""
    import random

    from timm.data.random_erasing import RandomErasing
    opt = options('--reprob', 0.8)
    images, target = torch.randn(6, 3, 16, 16), torch.arange(6)
    for batch in (images, torch.stack([images, images + 1])):
        found = []
        for change in (lambda x: RandomErasing(0.8, mode='pixel', device=CPU)(x.flatten(0, -4)).view_as(x),
                       lambda x: next(iter(BatchAugment([(x, target, target)], opt, 10, CPU)))[0]):
            random.seed(1)
            torch.manual_seed(1)
            found.append(change(batch.clone()))
        assert found[0].equal(found[1]) and not found[0].equal(batch)


def test_augmented_images(tree):
    """timm's RandAugment after the crop and the flip: the same for the same seed, whatever has been drawn before."""
    import random

    from timm.data.auto_augment import rand_augment_transform
    policy = 'rand-m9-mstd0.5-inc1'
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
    augment, results = AutoAugment(policy, 16, MEAN), []
    for _ in range(2):
        torch.manual_seed(4)
        before = random.getstate(), np.random.get_state()[1].tolist()
        results.append(np.array(augment(image)))
        assert before == (random.getstate(), np.random.get_state()[1].tolist())
        random.random()
        np.random.rand()
    torch.manual_seed(4)
    seed = int(torch.randint(2**31, ()))
    random.seed(seed)
    np.random.seed(seed)
    theirs = rand_augment_transform(policy, {'translate_const': 7, 'img_mean': tuple(round(255 * m) for m in MEAN)})
    assert (results[0] == results[1]).all() and (results[0] == np.array(theirs(image))).all()
    for policy in ('v0', 'rand-m0', 'rand-m1', 'augmix-m3', 'rand-m100-mmax100-inc1-n10', 'rand-n10-tweights'):
        augment = AutoAugment(policy, 8, MEAN)
        small = image.resize((8, 8))
        for _ in range(200):
            assert augment(small).size == (8, 8)
    policy = 'rand-m9-mstd0.5-inc1'
    loaders = [get_dataloaders(data_options(data_dir=str(tree), aa=aa), CPU).train_loader for aa in (None, policy)]
    plain, changed = (next(iter(loader)) for loader in loaders)
    assert changed[2].equal(plain[2]) and not changed[0].equal(plain[0])
    again = get_dataloaders(data_options(data_dir=str(tree), aa=policy), CPU).train_loader
    assert changed[0].equal(next(iter(again))[0])


def test_posterised_images():
    """With no bits an image is black, as Pillow before 13 has it; else Pillow's."""
    pixels = np.random.default_rng(0).integers(1, 256, (8, 8, 3), dtype=np.uint8)
    image = Image.fromarray(pixels)
    for bits in (-4, 0):
        assert not np.array(posterize(image, bits)).any()
    for bits in (1, 4, 8, 9):
        assert (np.array(posterize(image, bits, fillcolor=0)) == pixels & (256 - 2 ** (8 - min(bits, 8)))).all()


def test_the_average_of_the_weights():
    """timm's ModelEmaV3 of the same steps; it is what is measured and kept."""
    from timm.utils import ModelEmaV3
    distiller, loader, opt = build('kd', model_ema=0.8, model_ema_warmup=True)
    reference = ModelEmaV3(distiller.student, 0.8, use_warmup=True)
    optimizer = distiller.make_optimizer(0.1, opt)
    number = 0
    step = distiller.after_step

    def after_step(self):
        nonlocal number
        step()
        number += 1
        reference.update(distiller.student, number)
    distiller.after_step = types.MethodType(after_step, distiller)
    train_epoch(1, loader, distiller, optimizer, opt)
    net = distiller.inference_net()
    assert number == 3 and net is distiller.average.module and not net.state_dict()['conv1.weight'].equal(
        distiller.student.conv1.weight)
    assert_same(dict(net.state_dict()), dict(reference.module.state_dict()))
    assert_same(dict(distiller.checkpoint()['model']), dict(net.state_dict()))
    assert all(p not in {*net.parameters()} for group in optimizer.param_groups for p in group['params'])


def test_the_average_begins_after_a_first_stage():
    """Its first step takes the student as it is, and its warm-up counts from there."""
    distiller, loader, opt = build('fsp', model_ema=0.9, model_ema_warmup=True)
    first = distiller.average.module.conv1.weight.clone()
    for stage in (1, 2):
        train_epoch(1, loader, distiller, distiller.make_optimizer(0.05, opt), opt)
        if stage == 1:
            assert distiller.average.module.conv1.weight.equal(first) and distiller.averaged_steps == 0
            if distiller.in_first_stage:
                distiller.end_first_stage()
    assert distiller.averaged_steps == 3 and not distiller.average.module.conv1.weight.equal(first)


def test_accumulated_gradients_and_their_norm():
    """--grad_accum 2 of batches of 4 makes the step of a batch of 8; --clip_grad bounds the norm of all together."""
    torch.manual_seed(0)
    net = build_net(VIT, 10, 16)
    images, target, index = torch.randn(8, 3, 16, 16), torch.arange(8), torch.arange(8)
    stepped = []
    for accumulate, clip in ((1, None), (2, None), (1, 0.01), (2, 0.01)):
        opt = options('--grad_accum', accumulate, '--weight_decay', 0, '--momentum', 0,
                      *(['--clip_grad', clip] if clip else []))
        module = Vanilla(copy.deepcopy(net), opt)
        size = 8 // accumulate
        batches = [(images[i:i + size], target[i:i + size], index[i:i + size]) for i in range(0, 8, size)]
        train_epoch(1, Batches(batches), module, module.make_optimizer(1.0, opt), opt)
        stepped.append([p - q for p, q in zip(net.parameters(), module.student.parameters(), strict=True)])
    for a, b in ((0, 1), (2, 3)):
        for x, y in zip(stepped[a], stepped[b], strict=True):
            torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-6)
    assert torch.cat([x.flatten() for x in stepped[2]]).norm().item() == pytest.approx(0.01, rel=1e-3)
    assert torch.cat([x.flatten() for x in stepped[0]]).norm() > 0.1


class Batches(list):
    """A loader of these batches."""

    batch_size = 4

    @property
    def n_samples(self):
        return sum(len(batch[1]) for batch in self)


def test_drop_path():
    assert build_net(VIT, 10, 16, drop_path=0.3).net.blocks[-1].drop_path1.drop_prob == pytest.approx(0.3)
    with pytest.raises(UserError, match='--drop_path 0.3: resnet8 has no paths to drop'):
        build_net('resnet8', 10, 16, drop_path=0.3)


def test_all_of_it_resumed_within_an_epoch(call, teacher, small, tmp_path, monkeypatch):
    """To the bit, and between two steps of gradients that are accumulated."""
    flags = ['--path-t', teacher, '--model_s', VIT, '--distill', 'kd', *small, '--batch_size', 4, '--epochs', 3, *ALL,
             '--skip-validation']
    call(train_student.main, *flags, '--save_dir', tmp_path / 'whole')
    end_step = Run.end_step

    def stopped(self, batches):
        if self.epoch == 2 and self.step == 4:
            self.signals.on_signal(signal.SIGTERM, None)
        end_step(self, batches)
    monkeypatch.setattr(Run, 'end_step', stopped)
    with pytest.raises(SystemExit):
        call(train_student.main, *flags, '--save_dir', tmp_path / 'parts')
    monkeypatch.undo()
    call(train_student.main, *flags, '--save_dir', tmp_path / 'parts', '--resume')
    assert_same(outcome(tmp_path / 'parts'), outcome(tmp_path / 'whole'))
    history = json.loads(next(tmp_path.glob('whole/student_model/*/history.json')).read_text())
    assert [epoch['lr'] for epoch in history] == [1e-5, pytest.approx(7.5e-4), pytest.approx(2.5e-4)]


@pytest.mark.parametrize('flags, words', [
    (['--opt', 'adamx'], '--opt adamx: no such optimiser; did you mean'),
    (['--nesterov', '--opt', 'adamw'], '--nesterov: changes the momentum of --opt sgd, so it does not go with --opt a'),
    (['--nesterov', '--opt', 'dot'], '--nesterov: changes the momentum of --opt sgd, so it does not go with --opt dot'),
    (['--nesterov', '--momentum', 0], 'so it does not go with --momentum 0; leave one of the two out'),
    (['--balance_classes', '--bce_loss'], '--balance_classes: weights the cross-entropy, but --bce_loss has none'),
    (['--normalise', 'measure', '--dataset', 'imagenet'], '--normalise measure: not for --dataset imagenet'),
    (['--warmup_epochs', 240], '--warmup_epochs 240: --epochs 240 must be more'),
    (['--mixup', 1, '--distill', 'dkd'], '--mixup 1: --distill dkd needs one class for each image; it goes with '),
    (['--mixup', 1, '--distill', 'dkd'], ' hint, '), (['--mixup', 1, '--distill', 'dkd'], ' similarity, '),
    (['--cutmix', 1, '--distill', 'kd+crd', '-b', '1,1'], '--cutmix 1: --distill kd+crd needs one class'),
    (['--cutmix', 1, '--distill', 'mlld'], '--cutmix 1: --distill mlld uses several views'),
    (['--mixup', 1, '--teacher_cache'], '--mixup 1: --teacher_cache only stores outputs for crops and flips'),
    (['--grad_accum', 2, '--opt', 'dot'], '--grad_accum 2: --opt dot computes its gradients'),
    (['--clip_grad', 2, '--opt', 'dot'], '--clip_grad 2: --opt dot computes'),
    (['--model_ema', '--distill', 'simkd'], '--model_ema 0.9998: --distill simkd deploys more than the student'),
    (['--aa', 'rand-m9', '--teacher_cache'], '--aa rand-m9: --teacher_cache only stores outputs for crops'),
    (['--aa', ''], "--aa '': timm has rand, augmix, original"), (['--aa', 'x-m9'], '--aa x-m9: timm has rand, augmix'),
    (['--aa', 'rand-n100000'], '--aa rand-n100000: n100000: n is a whole number from 1 to 10; give rand-m9-mstd0.5'),
    (['--aa', 'augmix-m3-a0'], '--aa augmix-m3-a0: a0: a is a number from 0.5 to 100'),
    (['--aa', 'rand-m9-m5'], 'm is there twice'), (['--aa', 'rand-tfoo'], 'tfoo: rand takes m, n, p, mmax, inc, mstd'),
    (['--aa', 'v0-m9'], '--aa v0-m9: m9: v0 takes mstd, each with a number'), (['--aa', 'rand--m9'], 'an empty word: '),
    (['--min_lr', 0.05, '--sched', 'poly'], '--min_lr 0.05: the rate falls from --learning_rate 0.05 to it; give less'),
    (['--warmup_lr', 1, '--warmup_epochs', 3], '--warmup_lr 1: a warm-up begins below --learning_rate 0.05'),
    (['--model_ema', 1], '--model_ema 1: the average would be the first weights; give a decay between 0 and 1'),
    (['--model_ema', 0], '--model_ema 0: the average would be the last weights'),
    (['--sched', 'linear'], "--sched: invalid choice: 'linear'"),
    (['--recipe', 'nowhere.txt'], '--recipe nowhere.txt: cannot be read'),
])
def test_bad_input(flags, words):
    with pytest.raises(UserError) as caught:
        options(*flags)
    assert words in str(caught.value)


@pytest.mark.parametrize('flags, words', [
    (['--model_ema_warmup'], '--model_ema_warmup: has no effect without --model_ema; leave it out'),
    (['--warmup_lr', 1e-4], '--warmup_lr 0.0001: has no effect without --warmup_epochs'),
    (['--min_lr', 1e-5], '--min_lr 1e-05: has no effect without --sched cosine, tanh or poly'),
    (['--poly_power', 1, '--sched', 'cosine'], '--poly_power 1.0: has no effect without --sched poly'),
    (['--lr_decay_epochs', '5,7', '--sched', 'cosine'], '--lr_decay_epochs 5,7: has no effect without --sched step'),
    (['--lr_decay_rate', 0.2, '--sched', 'poly'], '--lr_decay_rate 0.2: has no effect without --sched step'),
    (['--momentum', 0.8, '--opt', 'adamw'], '--momentum 0.8: has no effect without an --opt that has one: '),
    (['--image_size', 16, '--dataset', 'digits'], '--image_size 16: has no effect without --dataset folder, hf: or '
     'wds:'),
    (['--dot_delta', 0.05], '--dot_delta 0.05: has no effect without --opt dot'),
    (['--dist-url', 'tcp://a:1'], '--dist_url tcp://a:1: has no effect without --multiprocessing-distributed'),
    (['--evaluate', '--resume'], '--resume: has no effect with --evaluate, which only measures'),
])
def test_flags_without_effect(tmp_path, flags, words):
    """A flag that is given and changes nothing is refused, of a recipe too, where it has another value than without."""
    file = tmp_path / 'mine.txt'
    file.write_text(' '.join(map(str, flags)))
    assert options('--momentum', 0.8, '--opt', 'lars').momentum == 0.8
    with pytest.raises(UserError) as caught:
        options(*flags)
    assert words in str(caught.value)
    with pytest.raises(UserError) as of_recipe:
        options('--recipe', file)
    assert str(of_recipe.value) == str(caught.value)


def test_a_recipe_s_flags_taken_back(tmp_path):
    file = tmp_path / 'mine.txt'
    with pytest.raises(UserError, match='--min_lr 0.0: has no effect'):
        options('--min_lr', 0)
    file.write_text('--sched cosine --min_lr 1e-5')
    with pytest.raises(UserError, match='--min_lr 1e-05: has no effect'):
        options('--recipe', file, '--sched', 'step')
    assert options('--recipe', file, '--sched', 'step', '--min_lr', 0).sched == 'step'
    assert options('--recipe', ROOT / 'recipes' / 'cifar_semckd.txt', '--sched', 'cosine').sched == 'cosine'


def test_timm_is_not_installed(monkeypatch):
    monkeypatch.setattr('option_checks.find_spec', lambda name: None)
    for flags in (['--opt', 'adamw'], ['--sched', 'cosine'], ['--mixup', 1], ['--model_ema'], ['--bce_loss']):
        with pytest.raises(UserError, match='timm is not installed; pip install timm'):
            options(*flags)
    options('--smoothing', 0.1, '--clip_grad', 1, '--grad_accum', 2)


def test_a_file_of_flags(tmp_path):
    """--recipe: its flags come first, so that the command line has the last word."""
    file = tmp_path / 'mine.txt'
    file.write_text('# my recipe\n--epochs 7 --opt adamw   # and so on\n--lr_decay_epochs 3,5\n')
    opt = teacher_options(['--recipe', str(file), '--epochs', '9'])
    assert (opt.epochs, opt.opt, opt.lr_decay_epochs) == (9, 'adamw', [3, 5])
    with pytest.raises(UserError, match=f'--recipe b: --recipe {file} is given too, but only one file is read'):
        options(f'--recipe={file}', '--recipe', 'b')
    file.write_text('\ufeff--epochs 3', encoding='utf-8')       # as some editors begin a file
    assert options('--recipe', file).epochs == 3
    os.mkfifo(tmp_path / 'pipe')
    for name, words in (('/dev/zero', 'is no file'), (tmp_path / 'pipe', 'is no file'),
                        (tmp_path / 'large', 'more than 1048576 bytes'), (tmp_path / 'latin', 'no text that can be')):
        (tmp_path / 'large').write_bytes(b' ' * (2**20 + 1))
        (tmp_path / 'latin').write_bytes(b'--trial \xe9')
        with pytest.raises(UserError, match=f'--recipe {name}: .*{words}'):
            options('--recipe', name)
    file.write_text('--recipe other.txt')
    with pytest.raises(UserError, match='contains --recipe; leave it out'):
        options(f'--recipe={file}')


@pytest.mark.parametrize('file', sorted(Path(ROOT, 'recipes').glob('*.txt')), ids=lambda file: file.stem)
def test_provided_recipes(file):
    """Each is accepted by both scripts; that of CIFAR says the defaults."""
    flags = ['--recipe', file]
    found, plain = vars(options(*flags)), vars(options())
    teacher_options(list(map(str, flags)))
    differ = {name for name in plain if found[name] != plain[name]} - {'recipe', 'flags', 'seed'}
    assert bool(differ) == (file.stem != 'cifar_semckd'), differ


def test_a_teacher_with_a_recipe(call, small, tmp_path):
    call(train_teacher.main, '--model', VIT, *small, *ALL, '--epochs', 2, '--save_dir', tmp_path)
    assert len(json.loads(next(tmp_path.glob('models/*/history.json')).read_text())) == 2


@pytest.mark.slow
def test_two_processes(call, teacher, small, tmp_path):
    """Accumulated, clipped and weighted gradients, and the average of the weights, as one process has them."""
    flags = ['--path-t', teacher, '--model_s', VIT, '--distill', 'kd', *small, '--batch_size', 8, '--opt', 'adamw',
             '--learning_rate', 1e-3, '--grad_accum', 2, '--clip_grad', 0.5, '--model_ema', 0.9, '--balance_classes',
             '--smoothing', 0.1, '--skip-validation']
    call(train_student.main, *flags, '--save_dir', tmp_path / 'one')
    call(train_student.main, *flags, '--save_dir', tmp_path / 'two', '--gpu_id', 'cpu,cpu',
         '--multiprocessing-distributed', '--dist-url', f'tcp://127.0.0.1:{free_port()}')
    one, two = (outcome(tmp_path / name) for name in ('one', 'two'))
    for part in ('best', 'last'):
        for key, value in one[part].items():
            torch.testing.assert_close(value, two[part][key], rtol=1e-3, atol=1e-4)
    assert not one['best']['head.weight'].equal(one['last']['student.head.weight'])
