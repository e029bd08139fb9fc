"""What the methods of 2021 to 2026, and sums of methods, promise beside the reference numbers."""
import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, build, first_view, options

import distiller_zoo as zoo
import train_student
from dataset import LARGE, Data
from distiller_zoo import distiller_dict, get_method, load_inference_net
from distiller_zoo.base import IMAGENET
from distiller_zoo.criteria.wkdl import transport_cost
from distiller_zoo.dot import DOT
from helper.checkpoint import load_weights, save_checkpoint
from helper.compile import compile_forward
from helper.errors import UserError
from helper.loops import train_epoch, validate
from models import model_dict

# Of each family one net whose last map is not simply the last stage's output, and one where it is.
FAMILIES = ['resnet8', 'wrn_16_1', 'vgg8', 'MobileNetV2', 'ShuffleV1', 'ShuffleV2', 'ResNet18_cifar']
ON_MAPS = [name for name, method in distiller_dict.items() if 'map' in method.spec.needs]


def parse(*flags):
    opt = train_student.student_options(['--path-t', 'x', *flags])
    return opt.gamma, opt.alpha, opt.beta, opt.kd_T, opt.loss_warmup_epochs


@pytest.mark.parametrize('flags, weights', [
    ('dkd', (1, 0, 1, 4, 20)), ('dkd --dataset imagenet', (1, 0, 1, 1, 1)), ('dkd --logit_stand', (1, 0, 9, 2, 20)),
    ('kd --logit_stand', (0.1, 9, 0, 2, None)), ('kd --logit_stand --kd_T 4 -r 1', (1, 9, 0, 4, None)),
    ('dist', (1, 0, 2, 4, None)), ('dist --dataset imagenet', (1, 0, 2, 1, None)), ('nkd', (1, 0, 1, 3, None)),
    ('ttm', (1, 0, 45, 4, None)), ('wttm', (1, 0, 4, 4, None)), ('rld', (1, 0, 1, 4, 20)),
    ('rld --dataset imagenette', (1, 0, 1, 1, 1)), ('ickd', (1, 0, 2.5, 4, None)), ('reviewkd', (1, 0, 5, 4, 20)),
    ('reviewkd --dataset imagenet', (1, 0, 1, 4, 1)),
    ('reviewkd --dataset hf:x/tiny-imagenet', (1, 0, 5, 4, 20)), ('ofd', (1, 0, 0.001, 4, None)),
    ('srrl', (1, 1, 1, 4, None)), ('ofa', (1, 0, 1, 1, None)), ('deit', (0.5, 0, 0.5, 4, None)),
    ('simkd', (0, 0, 1, 4, None)), ('catkd', (1, 0, 15, 4, None)), ('catkd --dataset imagenet', (1, 0, 0.5, 4, None)),
    ('mlld', (0.1, 0, 0.9, 4, None)), ('mlld --logit_stand', (0.1, 0, 9, 2, None)), ('skd', (0.1, 0, 0.9, 4, None)),
    ('ctkd', (0.1, 0.9, 0, 4, None)), ('ctkd --ctkd_base dkd', (1, 0, 1, 4, 20)),
    ('ctkd --dataset imagenet', (1, 1, 0, 4, None)), ('ctkd --logit_stand', (0.1, 9, 0, 4, None)),
    ('sdd', (0.1, 0, 0.9, 4, None)), ('sdd --sdd_base dkd', (1, 0, 1, 4, 20)), ('wkdl', (1, 0, 1, 8, None)),
    ('wkdl --dataset imagenet', (1, 0, 1, 2, None)), ('rkd+crd', (1, 0, [1, 0.8], 4, None)),
    ('dist+nkd', (1, 0, [2, 1], None, None)),
    ('dkd+rld', (1, 0, [1, 1], 4, 20)), ('kd+dkd', (1, 0, [1, 1], 4, None)),
    ('kd --opt dot', (0.1, 0.9, 0, 4, None)), ('dist+kd --opt dot', (1, 0, [2, 1], 4, None)),
    ('kd --opt dot --dataset imagenet', (0.5, 0.5, 0, 1, None)),
    ('kd --logit_stand --dataset imagenet', (1, 9, 0, 2, None)),
    ('crd+kd', (1, 0, [0.8, 1], 4, None)), ('wttm+crd', (1, 0, [4, 0.8], 4, None)),
    ('abkd', (1, 0, 32, 4, None)), ('abkd --logit_stand', (0.1, 0, 36, 2, None)),
    ('abkd --abkd_base dkd', (1, 0, 1, 4, 20)), ('abkd --abkd_base dkd --dataset imagenet', (1, 0, 1, 1, 1)),
    ('kd --entropy_weights', (0.1, 0.9, 0, 4, None)), ('dkd --entropy_weights', (1, 0, 1, 4, 20)),
    ('kd --entropy_weights --dataset imagenet', (1, 0.5, 0, 1, None)),
    ('kd --entropy_weights --logit_stand', (0.1, 9, 0, 2, None)),
    ('dkd --entropy_weights --dataset imagenet', (1, 0, 1, 1, 1)),
    ('dkd --entropy_weights --logit_stand --dataset imagenet', (1, 0, 2, 1, 1)),
    ('mlld --entropy_weights', (0.1, 0, 0.9, 4, None)), ('mlld --entropy_weights --logit_stand', (0.1, 0, 4, 2, None)),
    ('reviewkd --entropy_weights', (1, 0, 5, 4, 20)), ('crd+kd --entropy_weights', (1, 0, [0.8, 0.9], 4, None)),
    ('ldrld', (1, 0, 1, 4, None)), ('luminet', (2, 0, 1, 4, 20)),
    ('luminet --dataset imagenet', (1, 0, 1, 0.7, 1)), ('tekap', (0.1, 0, 0.9, 4, None)),
    ('wttm+crd -b 45,0.5', (1, 0, [45, 0.5], 4, None))])
def test_published_options(flags, weights):
    assert parse('--distill', *flags.split()) == weights


BAD = [
    ('dist+kd -b 2', '-b 2.0: --distill dist+kd adds 2 losses; give a weight for each, as -b 2.0,1.0'),
    ('dist+kd -b 1,2,3', '-b 1.0,2.0,3.0: --distill dist+kd adds 2 losses'),
    ('dist -b 2,1', '-b 2.0,1.0: --distill dist has one loss; give one weight'),
    ('dist -b 2,x', '--beta: 2,x: give a number'), ('dist -b 2,', '--beta: 2,: give a number'),
    ('kd --opt dot --dot_delta 0.1', '--dot_delta 0.1: --momentum 0.9 minus it must be at least'),
    ('kd --opt dot --momentum 0.05', '--dot_delta 0.075: --momentum 0.05'), ('skd --skd_tikhonov 1e-9', '1e-9'),
    ('dist+kd -a 1', '-a 1: --distill dist+kd has a weight for each of its methods'),
    ('kd+dist -a 1', '-a 1: --distill kd+dist has a weight for each of its methods, by -b; leave it out'),
    ('dist+kdd', '--distill dist+kdd: no such method, kdd; did you mean'),
    ('dist+dist', '--distill dist+dist: names a method twice'), ('dist+', '--distill dist+: no such method'),
    ('simkd+crd', 'simkd and crd cannot be added: simkd deploys another network than the student'),
    ('fsp+abound', 'fsp and abound cannot be added: both have a first stage'),
    ('reviewkd+attention', 'reviewkd and attention cannot be added: one reads the stages before their ReLU'),
    ('rkd --logit_stand', '--logit_stand: it was not published with --distill rkd; it goes with '),
    ('rkd --logit_stand', ' dkd, '), ('rkd --logit_stand', ' mlld, '),
    ('rkd --entropy_weights', '--entropy_weights: it was not published with --distill rkd; it goes with kd, '
                              'dkd, reviewkd, mlld'),
    ('sdd --entropy_weights --sdd_base dkd', '--entropy_weights: it was not published with --distill sdd'),
    ('ctkd --entropy_weights', '--entropy_weights: it was not published with --distill ctkd'),
    ('kd --entropy_T 2', '--entropy_T 2.0: has no effect without --entropy_weights; leave it out'),
    ('kd --entropy_weights --entropy_bound sum', '--entropy_bound: invalid choice'),
    ('rkd+crd --logit_stand', '--logit_stand: it was not published with --distill rkd+crd'),
    ('simkd --opt dot', '--opt dot: keeps the gradients of two losses apart, but with -r 0'),
    ('kd -a 0 --opt dot', 'with these weights there is no distillation loss'),
    ('kd -r 0 -a 0', '-r 0: all other weights of --distill kd are 0 too'), ('embed -b 0', '-r 0: all other weights'),
    ('rkd+kd -r 0 -b 0,0', '-r 0: all other weights of --distill rkd+kd are 0 too'),
    ('kd -a 0 --entropy_weights', '--entropy_weights: has no effect, because with these weights there is no'),
    ('embed -b auto', '-b auto: compares gradients with those of the cross-entropy'),
    ('embed --kd_T 2', '--kd_T: has no effect with --distill embed'),
    ('abkd --ab_alpha 11', '--ab_alpha: 11'), ('abkd --ab_beta -10.5', '--ab_beta: -10.5'),
    ('ldrld --ldrld_k 0', '--ldrld_k: 0'), ('tekap --tekap_count 0', '--tekap_count: 0'),
    ('tekap --tekap_strength 1.1', '--tekap_strength: 1.1'), ('tekap --tekap_strength -0.1', '--tekap_strength: -0.1'),
    ('ofa --ofa_gamma 0', '--ofa_gamma: 0'), ('kd --kd_T 0', '--kd_T: 0'),
    ('sdd --sdd_scales 2', '--sdd_scales'), ('wkdl --wkdl_cost x', '--wkdl_cost')]


@pytest.mark.parametrize('flags, words', BAD)
def test_bad_options_are_one_line(call, tmp_path, capsys, flags, words):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', 'x.pth', '--save_dir', tmp_path / 's', '--distill', *flags.split())
    done = capsys.readouterr()
    assert caught.value.code == 2 and words in done.err and done.err.count('\n') == 1 and not (tmp_path / 's').exists()


@pytest.mark.parametrize('method, teacher, words', [
    ('simkd', 'vgg11_imagenet', '--path-t: --distill simkd applies the classifier to the map before pooling, but '
                                'vgg11_imagenet has other layers between them'),
    ('sdd', 'vgg11_imagenet', 'vgg11_imagenet has other layers'), ('catkd', 'vgg11_imagenet', 'other layers'),
    ('ofd', 'ShuffleV1', '--path-t: --distill ofd needs the batch norm before the last ReLU of each stage of '
                         'ShuffleV1'),
    ('ofd', 'ShuffleV2_Imagenet', '--distill ofd: needs pre-activations; ShuffleNetV2 has no')])
def test_pairs_that_cannot_be_served(method, teacher, words):
    with torch.device('meta'):
        net = model_dict[teacher](num_classes=10)
    net.to_empty(device='cpu')
    data = Data(None, None, 10, 32, torch.arange(24) % 10)
    with pytest.raises(UserError, match=words.replace('(', r'\(')):
        distiller_dict[method](model_dict['resnet8'](num_classes=10), net, options(method, teacher), data)


@pytest.mark.parametrize('method, changes, words', [
    ('abkd', {'ab_alpha': 0.3, 'ab_beta': -0.295}, '--ab_alpha 0.3 --ab_beta -0.295: each of them, and their sum'),
    ('abkd', {'abkd_base': 'dkd', 'cutmix': 1.0}, '--cutmix 1.0: --abkd_base dkd needs one class for each image'),
    ('ldrld', {'ldrld_k': 11}, '--ldrld_k 11: the data has 10 classes; give at most that')])
def test_options_that_cannot_be_served(method, changes, words):
    """Also in a sum of methods, so they are refused where the method is built."""
    with pytest.raises(UserError, match=words):
        build(method, **changes)


def test_mlld_with_dali(call, tmp_path, capsys, teacher):
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', teacher, '--distill', 'mlld', '--dataset', 'imagenet', '--dali', 'cpu',
             '--save_dir', tmp_path / 's', '--data_dir', tmp_path)
    assert caught.value.code == 2 and not (tmp_path / 's').exists()
    assert '--dali cpu: gives one view of an image, but --distill mlld trains on 2' in capsys.readouterr().err


@pytest.mark.parametrize('student', FAMILIES)
def test_the_maps_are_those_that_pooling_sees(student):
    """For every family the mean of the activation maps is the net's own answer, and the whole image's regional logits
    are it; SimKD, CAT-KD and SDD take that map of both nets."""
    net = model_dict[student](num_classes=10).eval()
    with torch.no_grad():
        out = net.outputs(torch.randn(2, 3, 32, 32))
    classifier = net.get_classifier()
    cam = zoo.activation_maps(out.map, classifier)
    assert torch.allclose(cam.mean((2, 3)) + classifier.bias, out.logits, atol=1e-5)
    assert torch.allclose(zoo.regional_logits(out.map, classifier, [1, 2])[..., 0], out.logits, atol=1e-5)


@pytest.mark.parametrize('student, teacher', [('MobileNetV2', 'wrn_16_1'), ('vgg8', 'MobileNetV2'),
                                              ('wrn_16_1', 'ShuffleV2')])
@pytest.mark.parametrize('method', ON_MAPS)
def test_fed_with_these_maps(method, student, teacher):
    distiller, loader, _ = build(method, teacher, student, size=32)
    images, target, index = next(iter(loader))
    distiller.eval()
    got = distiller(images, target, index)[0]['method'].item()
    map_s, map_t = (net.forward_features(images) for net in (distiller.student, distiller.teacher))
    heads = [net.get_classifier() for net in (distiller.student, distiller.teacher)]
    if method == 'simkd':
        size = min(map_s.shape[-1], map_t.shape[-1])
        want = F.mse_loss(distiller.projector(F.adaptive_avg_pool2d(map_s, size)), F.adaptive_avg_pool2d(map_t, size))
    elif method == 'catkd':
        want = zoo.CATKDLoss(2)(*map(zoo.activation_maps, (map_s, map_t), heads))
    else:
        want = zoo.SDDLoss('kd', 4)(*(zoo.regional_logits(f, head, [1, 2, 4])
                                      for f, head in zip((map_s, map_t), heads, strict=True)), target)
    assert got == pytest.approx(want.item(), rel=1e-4)


def test_scales_of_one_family():
    assert build('sdd')[0].scales == [1, 2] and build('sdd', 'wrn_16_1')[0].scales == [1, 2, 4]


def test_ofd_and_reviewkd_align_from_the_deep_end():
    """MobileNetV2 and VGG have a stage more than the others; the margins are of the batch norms before folding."""
    distiller, _, _ = build('ofd', 'resnet14', 'MobileNetV2', size=32)
    assert [connector.conv.in_channels for connector in distiller.connectors] == [16, 48, 160]
    assert torch.equal(distiller.criterion.margin2.flatten(), zoo.ofd_margin(distiller.teacher.layer3[-1].bn2))
    distiller, _, _ = build('reviewkd', 'resnet14', 'vgg8', size=32)
    assert [abf.reduce.conv.in_channels for abf in distiller.stack.abfs] == [512, 512, 512, 256]
    assert [abf.size_t for abf in distiller.stack.abfs] == [1, 8, 16, 32]


def test_nets_of_imagenet():
    """Torchvision's ResNets give their stages before the ReLU; then ReviewKD's student is taken there too."""
    for method in ('ofd', 'reviewkd'):
        distiller, loader, _ = build(method, 'ResNet18', 'ResNet18', size=64, dataset='imagenet')
        losses, _ = distiller(*next(iter(loader)))
        assert losses['method'].isfinite() and (distiller.preact_s, distiller.preact_t) == (True, True)


def test_what_imagenet_is():
    """Data of another name have the layers of CIFAR, though 'imagenet' is in their name."""
    assert [*LARGE] == [*IMAGENET]
    kernels = [build('ickd', dataset=name)[0].connector.conv.kernel_size for name in ('imagenet', 'hf:x/tiny-imagenet')]
    assert kernels == [(3, 3), (1, 1)]


def test_simkd_deploys_what_it_trained(tmp_path):
    """The projector and the teacher's classifier on the student's body; from the file without a teacher."""
    distiller, loader, opt = build('simkd')
    classifier = distiller.classifier.weight.clone()
    train_epoch(1, loader, distiller, distiller.make_optimizer(0.05, opt), opt)
    assert torch.equal(distiller.classifier.weight, classifier)
    assert torch.equal(classifier, distiller.teacher.fc.weight) and distiller.classifier is not distiller.teacher.fc
    images = next(iter(loader))[0]
    distiller.eval()
    answer = distiller(images, torch.zeros(8, dtype=torch.int64))[1]
    assert torch.allclose(distiller.inference_net()(images), answer, atol=1e-6)
    features = distiller.student.forward_features(images)
    by_hand = distiller.teacher.get_classifier()(distiller.projector(features).mean((2, 3)))
    assert torch.allclose(answer, by_hand, atol=1e-6)
    assert not torch.allclose(answer, distiller.student(images), atol=1e-2)
    path = tmp_path / 'simkd.pth'
    save_checkpoint(path, {**distiller.checkpoint(), 'arch': 'resnet8', 'num_classes': 10})
    name, net = load_inference_net(str(path), Data(None, None, 10, 16, torch.zeros(1)), '--evaluate')
    assert name == 'resnet8 by simkd' and torch.equal(net.eval()(images), distiller.inference_net()(images))
    damaged = distiller.checkpoint()
    damaged['model']['map_size'] = torch.tensor(-1)
    save_checkpoint(path, {**damaged, 'arch': 'resnet8', 'num_classes': 10})
    with pytest.raises(UserError, match='as --distill simkd deploys it'):
        load_inference_net(str(path), Data(None, None, 10, 16, torch.zeros(1)), '--evaluate')


def test_simkd_freezes_all_after_the_map():
    """Of a VGG of torchvision two hidden layers too: several processes would wait for their gradients."""
    distiller, loader, opt = build('simkd', 'resnet8', 'vgg11_imagenet', size=32)
    losses, _ = distiller(*next(iter(loader)))
    losses['loss'].backward()
    assert all((p.grad is None) != p.requires_grad for p in distiller.parameters())


def test_reviewkd_activates_the_stages_of_a_wide_resnet():
    distiller, loader, _ = build('reviewkd', 'resnet14', 'wrn_16_1', size=32)
    seen = []
    distiller.stack.register_forward_pre_hook(lambda _, args: seen.extend(args[0][:-1]))
    images, target, index = next(iter(loader))
    distiller.eval()(images, target, index)
    net = distiller.student
    raw = net(images, is_feat=True)[0][1:-1]
    for f, before, bn in zip(seen, raw, net.get_bn_before_relu(), strict=True):
        assert torch.allclose(f, F.relu(bn(before)), atol=1e-6)


def test_reviewkd_takes_the_stages_of_a_net_without_preactivations_as_they_are(capsys):
    distiller, loader, _ = build('reviewkd', 'ShuffleV2_Imagenet', 'resnet8', size=32)
    assert 'has no pre-activations; its stages are taken as they are' in capsys.readouterr().out
    images, target, index = next(iter(loader))
    feats_t = distiller.teacher_outputs(images).feats
    assert all(torch.equal(*pair) for pair in zip(feats_t, distiller.teacher.outputs(images).feats, strict=True))
    losses, _ = distiller(images, target, index)
    assert losses['method'].isfinite() and losses['method'] > 0


def test_one_class():
    nets = [model_dict['resnet8'](num_classes=1) for _ in range(2)]
    with pytest.raises(UserError, match='--distill rld: the data has one class'):
        distiller_dict['rld'](*nets, options('rld'), Data(None, None, 1, 16, torch.zeros(9, dtype=torch.int64)))


def test_simkd_pools_the_larger_map():
    """The student's map of 8 pixels to MobileNetV2's 2, also where it is deployed."""
    distiller, loader, _ = build('simkd', 'MobileNetV2', 'resnet8', size=32)
    images, target, index = next(iter(loader))
    assert distiller.size == 2 and distiller.student_outputs(images).map.shape == (8, 1280, 2, 2)
    distiller.eval()
    assert validate(loader, distiller.inference_net())['test_loss'] > 0


def test_wkdl_cost_of_the_training_set():
    """prepare reads every image as it is, in order; of each class as many as the smallest has."""
    distiller, loader, _ = build('wkdl')
    assert torch.allclose(distiller.criterion.cost.diagonal(), torch.zeros(10), atol=1e-6)
    by_classifier = distiller.criterion.cost.clone()
    data = SimpleNamespace(labels=loader.target, num_classes=10, unaugmented_loader=None)
    images = torch.randint(0, 256, (24, 3, 16, 16), dtype=torch.uint8)
    plain = type(loader)(images, loader.target, 5, CPU)
    data.unaugmented_loader = lambda: plain
    distiller.prepare(data)
    whole, target, _ = next(iter(type(loader)(images, loader.target, 24, CPU)))
    maps = distiller.teacher.outputs(whole).map.flatten(2).transpose(1, 2)
    features = torch.stack([maps[target == c][:2].flatten(0, 1) for c in range(10)])        # 24 images of 10 classes
    assert torch.allclose(distiller.criterion.cost, transport_cost(zoo.cka_cost(features)), atol=1e-5)
    assert not torch.allclose(distiller.criterion.cost, by_classifier, atol=1e-3)
    assert 'criterion.cost' in distiller.state_dict()
    other, _, _ = build('wkdl', wkdl_cost='classifier')
    other.prepare(data)
    assert torch.equal(other.criterion.cost, by_classifier)
    nets = [model_dict['resnet8'](num_classes=10) for _ in range(2)]
    lacking = Data(None, None, 10, 16, loader.target.clamp(max=8))
    with pytest.raises(UserError, match='--wkdl_cost cka: class 9, counted from 0, has no training image'):
        distiller_dict['wkdl'](*nets, options('wkdl'), lacking)
    distiller_dict['wkdl'](*nets, options('wkdl', wkdl_cost='classifier'), lacking)


def test_wkdl_reads_the_logits_of_imagenet():
    distiller, loader, _ = build('wkdl', dataset='imagenet')
    data = SimpleNamespace(labels=loader.target, num_classes=10, unaugmented_loader=lambda: [next(iter(loader))])
    assert distiller.class_features(data).shape == (10, 2, 10)


def test_prepared_once(call, small, teacher, tmp_path, monkeypatch):
    """Before the first epoch; a resumed run has the cost in its state."""
    calls = []
    prepare = distiller_dict['wkdl'].prepare
    monkeypatch.setattr(distiller_dict['wkdl'], 'prepare', lambda self, data: calls.append(prepare(self, data)))
    flags = ['--path-t', teacher, '--distill', 'wkdl', *small, '--save_dir', tmp_path, '--wkdl_weight', 1]
    call(train_student.main, *flags)
    call(train_student.main, *flags, '--resume', 'auto')
    assert len(calls) == 1


def test_the_temperature_learns_against_the_student():
    """Its gradient is that of descent, reversed; the student's is not."""
    distiller, loader, opt = build('ctkd')
    images, target, index = next(iter(loader))
    theta, found = distiller.global_temperature.theta, []
    for epoch in (10, 5):
        distiller.begin_epoch(epoch, 240)
        loss = distiller(images, target, index)[0]['loss']
        found.append(torch.autograd.grad(loss, [theta, distiller.student.fc.weight]))
    distiller.strength.fill_(1.0)
    plain = torch.autograd.grad(distiller(images, target, index)[0]['loss'], [theta, distiller.student.fc.weight])
    assert found[0][0] == -plain[0] and found[1][0].item() == pytest.approx(-plain[0].item() / 2, rel=1e-4)
    assert torch.allclose(found[0][1], plain[1]) and any(p is theta for p in distiller.parameters())


def close_to_zero(*shape):
    return torch.zeros(shape, requires_grad=True)


LOGITS = {      # criteria of (student's logits, teacher's logits, target)
    'rld': lambda s, t, y: zoo.RLDLoss()(s, t, y), 'nkd': lambda s, t, y: zoo.NKDLoss(3.5, 3)(s, t, y),
    'skd': lambda s, t, y: zoo.SKDLoss()(s, t), 'dist': lambda s, t, y: zoo.DISTLoss(1, 1, 4)(s, t),
    'dkd': lambda s, t, y: zoo.dkd_loss(s, t, y, 1, 8, 4), 'ttm': lambda s, t, y: zoo.TTMLoss(0.1)(s, t),
    'wttm': lambda s, t, y: zoo.WTTMLoss(0.2)(s, t),
    'abkd': lambda s, t, y: zoo.ABKDLoss()(s, t), 'abkd, negative': lambda s, t, y: zoo.ABKDLoss(-10, -10, 1)(s, t),
    'abkd, reverse': lambda s, t, y: zoo.ABKDLoss(0, 1)(s, t),
    'abkd, opposite': lambda s, t, y: zoo.ABKDLoss(10, -10, 1)(s, t),
    'abkd in dkd': lambda s, t, y: zoo.ABDKDLoss(ab_alpha=0.8, ab_beta=-0.2)(s, t, y),
    'ldrld': lambda s, t, y: zoo.LDRLDLoss(k=min(7, s.shape[1]))(s, t),
    'luminet': lambda s, t, y: zoo.LumiNetLoss()(s, t), 'tekap': lambda s, t, y: zoo.TeKAPLoss()(s, t),
    'weighted kd': lambda s, t, y: zoo.DistillKL(4)(s, t, zoo.entropy_weights(s, t)),
    'weighted dkd': lambda s, t, y: zoo.dkd_loss(s, t, y, 1, 8, 4, zoo.entropy_weights(s, t, 3, 0.69)),
    'weighted mlld': lambda s, t, y: zoo.MLLDLoss(2, True, True)(s, t, s, t),
    'ofa': lambda s, t, y: zoo.ofa_loss(s, t, y, 1.5) + zoo.ofa_loss(s, t, y, 0.5),
    'standardised kd': lambda s, t, y: zoo.DistillKL(2)(zoo.standardize_logits(s), zoo.standardize_logits(t)),
    'mlld': lambda s, t, y: zoo.MLLDLoss(2, True)(s, t, s, t), 'sdd': lambda s, t, y: zoo.SDDLoss('dkd')(
        s[..., None].repeat(1, 1, 5), t[..., None].repeat(1, 1, 5), y),
    'wkdl': lambda s, t, y: zoo.WKDLogitLoss(1 - torch.eye(s.shape[1]), 8, 600)(s, t, y)}
HARD = {        # (student's logits, teacher's)
    'equal logits of all classes': lambda n: (close_to_zero(6, n), torch.zeros(6, n)),
    'equal nets': lambda n: (torch.arange(6.0 * n).reshape(6, n).sin().requires_grad_(),
                             torch.arange(6.0 * n).reshape(6, n).sin()),
    'certain': lambda n: ((200 * F.one_hot(torch.arange(6) % n, n).float()).requires_grad_(),
                          200 * F.one_hot((torch.arange(6) + 1) % n, n).float()),
    'the true class last': lambda n: (torch.arange(6.0 * n).reshape(6, n).sin().requires_grad_(),
                                      -50 * F.one_hot(torch.arange(6) % n, n).float())}


@pytest.mark.parametrize('classes', [2, 10])
@pytest.mark.parametrize('case', HARD)
@pytest.mark.parametrize('name', LOGITS)
def test_losses_stay_finite(name, case, classes):
    """Where something is divided by, or a logarithm or a root is taken of, what can be zero."""
    logits_s, logits_t = HARD[case](classes)
    loss = LOGITS[name](logits_s, logits_t, torch.arange(6) % classes)
    loss.backward()
    assert loss.isfinite() and logits_s.grad.isfinite().all()
    if name == 'nkd' and classes == 2 and case == 'equal nets':
        p = F.softmax(logits_t, 1).gather(1, torch.arange(6)[:, None] % 2)
        assert loss.item() == pytest.approx(-(p * p.log()).mean().item(), rel=1e-5)     # the other part is 0


@pytest.mark.parametrize('dataset, values', [
    ('cifar100', {'kd': (3, 'classes'), 'dkd': (3, 'classes'), 'mlld': (3, 'log'), 'reviewkd': (3, 'log')}),
    ('imagenet', {'kd': (2, 'log'), 'dkd': (3, 'log'), 'mlld': (3, 'log'), 'reviewkd': (2, 'log')})])
def test_published_entropies(dataset, values):
    for method, want in values.items():
        opt = train_student.student_options(['--path-t', 'x', '--distill', method, '--entropy_weights', '--dataset',
                                             dataset])
        assert (opt.entropy_T, opt.entropy_bound) == want


def test_ofa_of_an_older_version():
    """Its heads had one depthwise and one pointwise convolution a block: --resume refuses them by their names."""
    distiller, _, _ = build('ofa')
    state = distiller.state_dict()
    state['heads.0.1.conv.weight'] = state.pop('heads.0.0.1.conv.weight')
    with pytest.raises(UserError, match=r'^--resume: heads.0.0.1.conv.weight \(16, 16, 1, 1\) is missing, and 1 more$'):
        load_weights(distiller, state, '--resume')


def test_weights_of_the_images():
    """They apply to the methods of the flag alone, also in a sum, and to what these add to the cross-entropy."""
    distiller, loader, opt = build('kd', entropy_weights=True, entropy_T=2.0, entropy_bound='log')
    batch = next(iter(loader))
    losses, logits = distiller(*batch)
    logits_t = distiller.teacher(batch[0])
    weights = zoo.entropy_weights(logits, logits_t, 2, math.log(10))
    want = (weights * F.kl_div((logits / 4).log_softmax(1), (logits_t / 4).softmax(1), reduction='none').sum(1)).mean()
    assert losses['kl'].item() == pytest.approx(16 * want.item(), rel=1e-5)
    assert losses['ce'].item() == pytest.approx(F.cross_entropy(logits, batch[1]).item())
    in_sum, _, _ = build('sdd+kd', beta=[1.0, 1.0], sdd_base='dkd', entropy_weights=True, entropy_T=2.0,
                         entropy_bound='log')
    sums, _ = in_sum(*batch)
    assert sums['kd'].item() == pytest.approx(losses['kl'].item(), rel=1e-5)
    assert [part.entropy_weights.is_used for part in in_sum.parts.values()] == [False, True]


def test_tekap_draws_new_noise_in_each_step():
    """From the generator of the device, whose state a run saves; also where the step is traced for --compile."""
    s, t = HARD['equal nets'](10)
    criterion = zoo.TeKAPLoss()
    for function in (criterion, torch.compile(criterion, backend='eager')):
        torch.manual_seed(0)
        first, second = function(s, t).item(), function(s, t).item()
        torch.manual_seed(0)
        assert function(s, t).item() == first != second


def test_maps_of_zeros_stay_finite():
    for loss in (zoo.ICKDLoss(), zoo.CATKDLoss(2, True), zoo.CATKDLoss(2), lambda s, t: zoo.HCLLoss()([s], [t]),
                 lambda s, t: zoo.OFDLoss([torch.zeros(4)])([s], [t])):
        f_s = close_to_zero(2, 4, 8, 8)
        value = loss(f_s, torch.zeros(2, 4, 8, 8))
        value.backward()
        assert value.isfinite() and f_s.grad.isfinite().all()
    assert torch.equal(zoo.cka_cost(torch.zeros(3, 4, 5)), torch.ones(3, 3))
    norm = torch.nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.zero_()
        norm.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
    assert zoo.ofd_margin(norm).tolist() == [-1, 0, 0]


# Sums of methods

@pytest.mark.parametrize('names, betas', [('rkd+crd', [1.5, 0.5]), ('dist+kd', [2.0, 0.25]), ('mlld+pkt', [0.9, 3.0]),
                                          ('dkd+ickd+crd', [1.0, 2.5, 0.8])])
def test_a_sum_of_methods(names, betas):
    """Each term is the method's own; the first view alone for a method that has one."""
    distiller, loader, opt = build(names, beta=betas)
    images, target, index = next(iter(loader))
    distiller.begin_epoch(20, 240)
    torch.manual_seed(5)
    losses, logits = distiller(images, target, index)
    assert [*losses] == ['loss', 'ce', *names.split('+')] and len(logits) == 8
    want = opt.gamma * losses['ce'] + sum(beta * losses[name] for beta, name in
                                          zip(betas, names.split('+'), strict=True))
    assert losses['loss'].item() == pytest.approx(want.item(), rel=1e-5)
    for name in ('rkd', 'dist', 'pkt', 'mlld', 'dkd'):
        if name in losses:
            alone, _, _ = build(name)
            alone.student.load_state_dict(build(names, beta=betas)[0].student.state_dict())
            alone.begin_epoch(20, 240)
            batch = images if len(alone.spec.views) > 1 else first_view(images)
            assert alone(batch, target, index)[0]['method'].item() == pytest.approx(losses[name].item(), rel=1e-4)
    if 'crd' not in losses:     # whose memories have changed
        out_t = distiller.teacher_outputs(images) if images.dim() == 4 else [*map(distiller.teacher_outputs, images)]
        stored, _ = distiller(images, target, index, out_t)
        assert torch.stack([*stored.values()]).tolist() == pytest.approx(torch.stack([*losses.values()]).tolist())
    if 'kd' in losses:
        want = zoo.distill_kl(logits, distiller.teacher(images), 4.0)
        assert losses['kd'].item() == pytest.approx(want.item(), rel=1e-5)
    parts = [key for key in distiller.state_dict() if not key.startswith('student.')]
    assert not any('student' in key or 'teacher' in key for key in parts)
    assert len({id(p) for p in distiller.parameters()}) == len([*distiller.parameters()])


def test_a_sum_with_a_first_stage(call, small, teacher, tmp_path):
    call(train_student.main, '--path-t', teacher, '--distill', 'factor+kd', *small, '--save_dir', tmp_path, '-b', '1,2',
         '--init_epochs', 1)
    folder, = tmp_path.glob('student_model/*')
    assert folder.name == 'S:resnet8_T:resnet14_folder_factor+kd_r:1.0_a:0.0_b:1.0,2.0_1'
    assert (folder / 'test_best_metrics.json').exists()


def test_parts_keep_their_own_temperature_and_warm_up():
    distiller, _, _ = build('dist+nkd+rld')
    distiller.begin_epoch(5, 240)
    dist, nkd, rld = distiller.parts.values()
    assert (dist.criterion.tau, nkd.criterion.temperature, rld.schedule_factor.item()) == (4.0, 3.0, 0.25)
    assert [weight if isinstance(weight, float) else weight.item() for weight in distiller.weights().values()] == \
        [1.0, 2.0, 1.0, 0.25]
    assert (options('dist+nkd').nkd_gamma, options('dist+nkd').kd_T, options('dkd+nkd').dkd_beta) == (3.5, None, 8)
    assert build('dist+nkd', kd_T=2.0)[0].parts['nkd'].criterion.temperature == 2.0
    assert get_method('kd+crd').spec.title == 'KD+CRD' and get_method('semckd+kd').spec.drop_last


def test_a_sum_has_the_part_s_buffers_and_pictures():
    distiller, loader, opt = build('semckd+kd', beta=[1.0, 1.0])
    assert {*distiller.spec.own_buffers} <= {name for name, _ in distiller.named_buffers()}
    train_epoch(1, loader, distiller, distiller.make_optimizer(1e-3, opt), opt)
    assert len(distiller.pictures()['attention']) == 3


# Two momenta

def gradients(distiller, batch):
    """{parameter name: (has a gradient of the task, of the distillation)} in a plain step."""
    losses, _ = distiller(*batch)
    names, parameters = zip(*((k, p) for k, p in distiller.named_parameters() if p.requires_grad), strict=True)
    task_loss, *others = distiller.weighted(losses).values()
    sides = task_loss, sum(others)
    found = [torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True) for loss in sides]
    return {name: tuple(g is not None for g in grads) for name, *grads in zip(names, *found, strict=True)}


@pytest.mark.parametrize('method', ['kd', 'hint', 'rkd+crd'])
@pytest.mark.parametrize('compiled', [False, True])
def test_dot_knows_which_gradients_there_are(method, compiled):
    """A projector has no gradient of the task, and with alpha 0 the classifier none of the distillation: neither gets
    the other's momentum, compiled too."""
    if compiled and method != 'hint':
        pytest.skip('one is enough')
    flags = {'opt': 'dot', 'dot_delta': 0.075, **({'alpha': 0.0} if method == 'hint' else {})}
    distiller, loader, opt = build(method, **flags)
    want = gradients(build(method, **flags)[0], next(iter(loader)))
    if compiled:
        compile_forward(distiller, 8, CPU)
    optimizer = distiller.make_optimizer(0.001, opt)
    assert isinstance(optimizer, DOT) and distiller.own_backward
    train_epoch(1, loader, distiller, optimizer, opt)
    for name, p in distiller.named_parameters():
        has = tuple(side in optimizer.state[p] for side in ('task', 'distillation'))
        assert has == want[name], name
    if method == 'hint':
        assert want['student.fc.weight'] == (True, False) and want['regressor.conv.weight'] == (False, True)


def test_dot_is_sgd_where_there_is_one_loss():
    """In a first stage."""
    nets = [torch.nn.Linear(4, 2) for _ in range(2)]
    nets[1].load_state_dict(nets[0].state_dict())
    dot, sgd = DOT(nets[0].parameters(), 0.1), torch.optim.SGD(nets[1].parameters(), 0.1, 0.9, weight_decay=5e-4)
    for step in range(3):
        for net, optimizer in zip(nets, (dot, sgd), strict=True):
            optimizer.zero_grad()
            net(torch.full((3, 4), float(step))).pow(2).sum().backward()
            optimizer.step()
    assert torch.allclose(nets[0].weight, nets[1].weight, atol=1e-7)
