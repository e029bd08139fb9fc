"""Teachers without a classifier: the head that --teacher_head fits, and methods that read only features."""
import json
import shutil
import signal
from types import SimpleNamespace

import pytest
import timm
import torch
from conftest import CPU, assert_same, build, outcome
from safetensors.torch import save_file
from sklearn.linear_model import LogisticRegression

import train_student
from analysis.run_checkpoint import RunCheckpoint, data_options
from analysis.runs import read_run
from dataset import get_dataloaders
from dataset.teacher_cache.layout import make_layout
from dataset.teacher_head import _read, embeddings, fit_head
from distiller_zoo import distiller_dict, get_method
from distiller_zoo.checks import why_logits
from experiments import folder_check
from helper.checkpoint import save_checkpoint
from helper.compile import speed_up
from helper.errors import UserError
from helper.loops import validate
from models import logistic_regression, model_dict
from models.load import open_net
from models.logistic_regression import choose_strength, fit, logits
from models.teacher import load_teacher_net
from scripts import export_student, fill_teacher_cache, visualize

HEAD = 'head of the teacher (checksum)'     # in parameters.json


def samples(n=90, width=6, classes=3, spread=1.5, seed=0):
    """(embeddings float64 (n, width) around a centre for each class, labels)."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.arange(n) % classes
    centres = torch.randn(classes, width, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    return centres[target] + spread * torch.randn(n, width, generator=generator, dtype=torch.float64), target


@pytest.mark.parametrize('strength', [0.5, 20.0])
def test_the_weights_minimise_the_loss(strength, monkeypatch):
    """The derivatives are zero, the weights are scikit-learn's, and the images may be divided into parts."""
    x, target = samples()
    weights = fit(x, target, 3, strength).requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits(weights, x), target, reduction='sum') \
        + strength / 2 * weights[:, :-1].square().sum()
    loss.backward()
    assert weights.grad.abs().max() <= 1e-7 * len(x)
    reference = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=1000).fit(x, target)
    torch.testing.assert_close(weights.detach()[:, :-1], torch.from_numpy(reference.coef_), rtol=0, atol=1e-5)
    # Only differences of the biases matter: nothing penalises a constant that is added to all.
    biases, expected = weights.detach()[:, -1], torch.from_numpy(reference.intercept_)
    torch.testing.assert_close(biases - biases.mean(), expected - expected.mean(), rtol=0, atol=1e-5)
    monkeypatch.setattr(logistic_regression, 'CHUNK', 40)
    torch.testing.assert_close(fit(x, target, 3, strength), weights.detach(), rtol=0, atol=1e-6)


def test_the_strength_has_the_least_validation_loss():
    (x, target), (x_val, target_val) = samples(40, 12), samples(40, 12, seed=1)
    losses = {strength: torch.nn.functional.cross_entropy(logits(fit(x, target, 3, strength), x_val), target_val).item()
              for strength in logistic_regression.STRENGTHS}
    best = min(losses, key=losses.get)
    assert losses.keys() > {best} and best not in (max(losses), min(losses))
    strength, weights = choose_strength(x, target, x_val, target_val, 3)
    assert strength == best
    torch.testing.assert_close(weights, fit(x, target, 3, best), rtol=0, atol=0.02)


@pytest.mark.parametrize('has_validation', [True, False])
def test_the_scaling_is_a_part_of_the_head(has_validation):
    """The head of embeddings in other units, with a constant among them, gives the same logits."""
    x, target = samples()
    x_val, target_val = samples(60, seed=1)

    def head_of(scale, shift):
        pairs = [(torch.cat([scale * values + shift, torch.full((len(values), 1), 7.0)], 1).float(), labels)
                 for values, labels in ((x, target), (x_val, target_val))]
        head = fit_head(pairs[0], pairs[1] if has_validation else None, 3)
        return head, pairs[0][0] @ head['weight'].T + head['bias']
    (head, plain), (other, scaled) = head_of(1, 0), head_of(100, 30)
    torch.testing.assert_close(plain, scaled, rtol=0, atol=2e-3)
    assert head['strength'] == other['strength'] and head['weight'].dtype == head['bias'].dtype == torch.float32
    assert head['training_acc'] == pytest.approx(100 * (plain.argmax(1) == target).double().mean().item())
    assert 40 < head['selection_acc'] < 100
    standardised = (x - x.mean(0)) / x.std(0, correction=0)
    weights = fit(standardised, target, 3, head['strength'])        # to all images, also without a validation set
    torch.testing.assert_close(plain.double(), logits(weights, standardised), rtol=0, atol=1e-4)


def test_no_image_to_hold_out():
    with pytest.raises(UserError, match='each class has one training image, so none can be held out'):
        fit_head((torch.randn(3, 4), torch.arange(3)), None, 3)


# Runs: the teacher is resnet8 without its classifier.


@pytest.fixture(scope='module')
def headless(tmp_path_factory):
    """A file with the weights of a resnet8 without a classifier."""
    torch.manual_seed(3)
    weights = model_dict['resnet8'](num_classes=4).state_dict()
    file = tmp_path_factory.mktemp('headless') / 'features.pth'
    torch.save({key: value for key, value in weights.items() if not key.startswith('fc.')}, file)
    return file


def flags_of(headless, small, save, *more):
    return ['--path-t', headless, '--model_t', 'resnet8', *small, '--save_dir', save, '--teacher_head', 'linear',
            '--learning_rate', 0.01, *more]


def head_line(text):
    line, = (line for line in text.splitlines() if line.startswith('--teacher_head linear, '))
    return line


def test_runs_share_the_head(call, headless, small, tmp_path, capsys):
    """A second run, figures and an export read the file. A damaged file is replaced by the same head, with which a run
    resumes.
    """
    first, second, damaged = (tmp_path / name for name in ('first', 'second', 'damaged'))
    call(train_student.main, *flags_of(headless, small, first))
    out = capsys.readouterr().out
    line = head_line(out)
    assert 'fitted in ' in line and '; L2 strength ' in line and line.count('on the held-out images') == 2
    assert f'--path-t {headless}: --teacher_head linear fits a classifier of 4 classes, because the checkpoint' in out
    accuracy = float(line.partition('top-1 ')[2].split()[0])
    assert accuracy > 60 and 'teacher top-1: ' in out
    parameters = json.loads(next(first.glob('student_model/*/parameters.json')).read_text())
    assert parameters['teacher_head'] == 'linear' and type(parameters[HEAD]) is int

    run = RunCheckpoint.find(str(next(first.glob('student_model/*'))), 'RUN')
    options, inputs = data_options(run, SimpleNamespace(dataset=None, same_classes=False))
    data, opt = get_dataloaders(options, CPU, inputs=inputs), SimpleNamespace(path_t=None, model_t=None)
    net, _ = export_student.open_teacher(opt, run, data)
    assert f'teacher top-1: {validate(data.test_loader, net)["test_acc"]:.2f}\n' in out
    student, index, _ = visualize.find_teacher([run])
    assert_same({**student.open_teacher(index, data)[2].state_dict()}, {**net.state_dict()})
    shutil.move(first / 'teacher_heads', second / 'teacher_heads')
    assert export_student.open_teacher(opt, run, data) == (None, None)
    assert 'the head that --teacher_head fitted is not in ' in capsys.readouterr().out
    shutil.copytree(second / 'teacher_heads', first / 'teacher_heads')
    call(train_student.main, *flags_of(headless, small, second))
    file = next(second.glob('teacher_heads/*_head.pth'))
    assert head_line(capsys.readouterr().out).startswith(f'--teacher_head linear, read from {file}: top-1 ')
    assert_same(outcome(second), outcome(first))

    shutil.copytree(first, damaged)
    file, content = damaged / file.relative_to(second), file.read_bytes()
    file.write_bytes(content[:-200])
    call(train_student.main, *flags_of(headless, small, damaged, '--epochs', 2, '--resume', 'auto'))
    out = capsys.readouterr().out
    assert out.count(f'{file}: ') == out.count('; the head is fitted again') == 1 and 'resuming from ' in out
    other = torch.load(file, weights_only=True)
    assert_same(other, torch.load(next(second.glob('teacher_heads/*_head.pth')), weights_only=True))


@pytest.mark.parametrize('change', [
    {'weight': torch.zeros(4, 9)}, {'bias': torch.full((4,), float('nan'))}, {'strength': 'x'}, {'facts': 'other'},
    {'weight': None}, {'training_acc': 3}])
def test_an_untrusted_file(tmp_path, change):
    """A file with other content than a head of this teacher is never used."""
    layer = torch.nn.Linear(8, 4)
    head = {'weight': layer.weight.detach(), 'bias': layer.bias.detach(), 'strength': 1.0, 'training_acc': 3.0,
            'selection_acc': 2.0, 'facts': 'facts'}
    save_checkpoint(tmp_path / 'a_head.pth', head)
    assert _read(tmp_path / 'a_head.pth', 'facts', layer)[0]['strength'] == 1
    save_checkpoint(tmp_path / 'a_head.pth', {**head, **change})
    file = tmp_path / 'a_head.pth'
    assert _read(file, 'facts', layer) == (None, f'{file}: holds no head of this teacher')


def test_a_resumed_run(call, headless, small, tmp_path, interrupt):
    """With a method that reads the teacher's classifier, and a validation set, which chooses the strength."""
    arguments = [*flags_of(headless, small, tmp_path / 'whole', '--distill', 'srrl', '-b', 1e-4, '--epochs', 2),
                 '--val_fraction', 0.2]
    call(train_student.main, *arguments)
    arguments[arguments.index(tmp_path / 'whole')] = tmp_path / 'parts'
    interrupt(4)
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, *arguments, '--resume', 'auto')
    assert caught.value.code == 128 + signal.SIGTERM
    interrupt(10**9)
    call(train_student.main, *arguments, '--resume', 'auto')
    whole, parts = (torch.load(next((tmp_path / name).glob('student_model/*/last.pth')), weights_only=True)
                    for name in ('whole', 'parts'))
    assert_same(parts['module'], whole['module'])
    assert_same(parts['identity'], whole['identity'])


def test_the_cache(call, headless, small, tmp_path, capsys):
    """fill_teacher_cache.py fits the head beside the cache, and a run takes both from there."""
    arguments = flags_of(headless, small, tmp_path, '--teacher_cache', tmp_path / 'cache', '--cache_epochs', 1)
    call(fill_teacher_cache.main, *arguments)
    assert 'fitted in ' in head_line(capsys.readouterr().out)
    call(train_student.main, *arguments)
    out = capsys.readouterr().out
    assert 'read from' in head_line(out) and '_epoch001_logits.cache (100 % of' in out
    assert len([*(tmp_path / 'cache').glob('*_head.pth')]) == 1 and not (tmp_path / 'teacher_heads').exists()


def test_an_estimate_writes_nothing(call, headless, small, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr('analysis.estimate.SECONDS', 0)
    call(train_student.main, *flags_of(headless, small, tmp_path / 'none', '--estimate'))
    assert json.loads(capsys.readouterr().out.splitlines()[-1])['classes'] == 4
    assert not (tmp_path / 'none').exists()


def test_several_teachers(call, headless, teacher, small, tmp_path, capsys):
    """Each has a head or none."""
    call(train_student.main, '--path-t', headless, teacher, '--model_t', 'resnet8', '-', '--teacher_head', 'linear',
         '-', *small, '--save_dir', tmp_path)
    assert 'teacher top-1: resnet8 ' in capsys.readouterr().out
    parameters = json.loads(next(tmp_path.glob('student_model/*/parameters.json')).read_text())
    run = read_run(str(next(tmp_path.glob('student_model/*'))))
    assert run['method'] == 'kd, taught by resnet8 with a linear head + resnet14'
    assert parameters['teacher_head'] == ['linear', '-'] and [*map(type, parameters[HEAD])] == [int, type(None)]


def test_a_table_does_not_compare_the_weights(headless):
    """Only the run knows which weights of such a teacher it leaves out."""
    weights = torch.load(headless, weights_only=True)
    opt = SimpleNamespace(dataset='folder', model_t='resnet8', image_size=16, teacher_head=None)
    assert folder_check._checksum(opt, weights, 4, '') == folder_check.UNKNOWN
    whole = model_dict['resnet8'](num_classes=4).state_dict()
    assert type(folder_check._checksum(opt, whole, 4, '')) is int
    opt.teacher_head = 'linear'
    assert folder_check._checksum(opt, whole, 4, '') == folder_check.UNKNOWN


# Features alone


FEATURES = [name for name, method in distiller_dict.items() if method.spec.features_only]


@pytest.mark.parametrize('method', FEATURES)
def test_methods_on_features(method):
    """They train with a teacher whose logits are missing."""
    distiller, loader, _ = build(method, alpha=0.0)
    distiller.teacher.has_classifier = False
    distiller.prepare(SimpleNamespace(unaugmented_loader=lambda: loader, num_classes=10))
    batch = next(iter(loader))
    if distiller.in_first_stage:
        distiller(*batch)[0]['loss'].backward()
        distiller.end_first_stage()
    assert distiller.teacher_outputs(batch[0]).logits is None
    losses, _ = distiller(*batch)
    losses['loss'].backward()
    assert losses['loss'].isfinite() and 'kl' not in losses


def test_features_are_enough():
    def why(method, **options):
        return why_logits(SimpleNamespace(**{'distill': method, 'alpha': 0.0, 'entropy_weights': False, **options}),
                          get_method(method).spec)
    assert why('rkd') == why('rkd+hint') == ''
    assert why('rkd', alpha=0.9) == '-a 0.9 needs its logits (-a 0 does not)'
    assert why('reviewkd', entropy_weights=True) == '--entropy_weights needs its logits'
    assert why('srrl') == '--distill srrl needs its logits' and why('rkd+kd') == '--distill rkd+kd needs its logits'


def test_a_cache_of_features(headless, tmp_path):
    """Only the embedding has a file; --cache_topk has nothing to store."""
    distiller, loader, opt = build('rkd', alpha=0.0, teacher_cache=str(tmp_path), dataset='x')
    data = SimpleNamespace(train_loader=loader, image_size=16, n_train=24)
    assert make_layout(opt, ('embedding',), distiller.teacher, data).encodings.keys() == {'logits', 'embedding'}
    distiller.teacher.has_classifier = False
    assert make_layout(opt, ('embedding',), distiller.teacher, data).encodings.keys() == {'embedding'}
    opt.cache_topk = 3
    with pytest.raises(UserError, match='--cache_topk 3: without a classifier the teacher has no logits'):
        make_layout(opt, ('embedding',), distiller.teacher, data)


def test_a_run_on_features(call, headless, small, tmp_path, capsys):
    """No accuracy of the teacher is measured, for features of a net of other classes either."""
    other = tmp_path / 'other.pth'
    torch.save(model_dict['resnet8'](num_classes=7).state_dict(), other)
    for file in (headless, other):
        call(train_student.main, '--path-t', file, '--model_t', 'resnet8', '--distill', 'rkd', '-a', 0, *small,
             '--save_dir', tmp_path / file.stem)
        out = capsys.readouterr().out
        assert f'--path-t {file}: only its features are used, no classifier' in out and 'teacher top-1' not in out
    parameters = json.loads(next(tmp_path.glob('features/student_model/*/parameters.json')).read_text())
    assert parameters['teacher_head'] is None and HEAD not in parameters


def test_compiled(headless):
    """--compile gives the same losses for features alone."""
    losses = []
    for is_compiled in (False, True):
        distiller, loader, opt = build('hint', alpha=0.0)
        distiller.teacher.has_classifier = False
        if is_compiled:
            speed_up(distiller, SimpleNamespace(**{**vars(opt), 'compile': True}), CPU)
        losses.append(distiller(*next(iter(loader)))[0]['loss'].item())
    assert losses[1] == pytest.approx(losses[0], rel=3e-6)


# Nets


SMALL_VIT = {'depth': 2, 'embed_dim': 24, 'num_heads': 2, 'patch_size': 4}
FAMILIES = {'vit_small_patch14_reg4_dinov2': 0, 'vit_tiny_patch16_dinov3_qkvb': 0, 'vit_base_patch16_siglip_224': 0,
            'vit_base_patch16_siglip_gap_224': 0, 'vit_xsmall_patch16_clip_224': 8}


@pytest.mark.parametrize('name', FAMILIES)
def test_families_of_timm(name, tmp_path, capsys):
    """A folder of timm's, without a classifier or with CLIP's projection: the net has 4 classes and the same features.
    """
    size = {'img_size': 16} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    torch.manual_seed(0)
    net = timm.create_model(name, num_classes=FAMILIES[name], **SMALL_VIT, **size).eval()
    save_file(net.state_dict(), tmp_path / 'model.safetensors')
    inputs = {'mean': [0.5] * 3, 'std': [0.5] * 3, 'input_size': [3, 16, 16], 'interpolation': 'bicubic'}
    (tmp_path / 'config.json').write_text(json.dumps({
        'architecture': name, 'num_classes': FAMILIES[name], 'model_args': SMALL_VIT, 'pretrained_cfg': inputs}))
    arch, checkpoint = open_net(str(tmp_path))
    data = SimpleNamespace(num_classes=4, classes=(), image_size=16, flags=('--dataset', 'folder'))
    teacher = load_teacher_net(str(tmp_path), checkpoint, arch, data, 'x', 'linear').eval()
    x, target = torch.randn(2, 3, 16, 16), torch.tensor([1, 3])
    with torch.no_grad():
        expected = net.forward_head(net.forward_features(x), pre_logits=True)
        torch.testing.assert_close(teacher.outputs(x).embedding, expected)
    assert not teacher.has_classifier and not teacher(x).any()
    embedding, labels = embeddings(teacher, [(x, target, torch.tensor([1, 0]))])
    assert embedding.equal(expected.flip(0)) and labels.equal(target.flip(0))       # in the order of the index
    features = load_teacher_net(str(tmp_path), checkpoint, arch, data)
    assert features.checksum == teacher.checksum and not features.has_classifier
    fault = 'a net of 8 classes, but the data has 4' if FAMILIES[name] else 'a net without a classifier'
    with pytest.raises(UserError, match=f'{fault}, and --distill kd needs its logits; add --teacher_head linear, which '
                                        f'fits a classifier to the training images, or fine-tune it first: python'):
        load_teacher_net(str(tmp_path), checkpoint, arch, data, '--distill kd needs its logits')


OWN = '''
from torch import nn

def features(num_classes):
    return nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 9, 3, padding=1),
                         nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())

def classifier(num_classes):
    return nn.Sequential(*features(0), nn.Linear(9, num_classes, bias=False))

def log_softmax(num_classes):
    return nn.Sequential(*classifier(num_classes), nn.LogSoftmax(1))

def convolution(num_classes):
    return nn.Sequential(*features(0)[:-2], nn.Conv2d(9, num_classes, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())
'''


@pytest.fixture
def own(tmp_path):
    """own(function): (the path of its weights for 7 classes, its name)."""
    def make(function):
        file, weights = tmp_path / 'own.py', tmp_path / f'{function}.pth'
        file.write_text(OWN)
        namespace = {}
        exec(OWN, namespace)
        torch.manual_seed(0)
        torch.save(namespace[function](7).state_dict(), weights)
        return str(weights), f'{file}:{function}'
    return make


DATA = SimpleNamespace(num_classes=4, classes=(), image_size=16)


@pytest.mark.parametrize('function', ['features', 'classifier'])
def test_a_net_of_a_file(own, function):
    """It may return features, which a linear layer follows, or logits of other classes, without a bias."""
    path, name = own(function)
    _, checkpoint = open_net(path, name)
    teacher = load_teacher_net(path, checkpoint, name, DATA, 'x', 'linear').eval()
    layer = teacher.get_classifier()
    assert layer.weight.shape == (4, 9) and layer.bias.shape == (4,)
    with torch.no_grad():
        layer.weight.normal_()
        layer.bias.normal_()
        out = teacher.outputs(torch.randn(2, 3, 16, 16))
        torch.testing.assert_close(out.logits, layer(out.embedding))
    assert len(out.feats) == 3 and not load_teacher_net(path, checkpoint, name, DATA).has_classifier


@pytest.mark.parametrize('function, words', [
    ('log_softmax', 'its logits are not a linear function of its embedding; give another net'),
    ('convolution', 'has another classifier than one linear layer; give another net')])
def test_nets_without_an_embedding(own, function, words):
    path, name = own(function)
    with pytest.raises(UserError) as error:
        load_teacher_net(path, open_net(path, name)[1], name, DATA, 'x', 'linear')
    assert str(error.value).startswith(f'--teacher_head linear: {name}: no classifier can be fitted, because ')
    assert str(error.value).endswith(words)


BAD = {     # name -> arguments, what the line says
    'kd': ([], 'a net without a classifier, and --distill kd needs its logits; add --teacher_head linear, which'),
    'alpha': (['--distill', 'hint'], 'a net without a classifier, and -a 1 needs its logits (-a 0 does not); add'),
    'evaluate': (['--teacher_head', 'linear', '--evaluate'], '--teacher_head: has no effect with --evaluate'),
    'no folder': (['--teacher_head', 'linear', '--teacher_cache', __file__],
                  f'--teacher_cache {__file__}: {__file__}: cannot be used (File exists); give another folder'),
    'kind': (['--teacher_head', 'mlp'], '--teacher_head: mlp: give one of linear'),
    'net': (['--model_t', 'resnet14', '--teacher_head', 'linear'],
            'not the weights of this net with another classifier')}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(call, headless, small, tmp_path, capsys, case):
    arguments, words = BAD[case]
    with pytest.raises(SystemExit) as caught:
        call(train_student.main, '--path-t', headless, '--model_t', 'resnet8', *small, '--save_dir', tmp_path,
             *arguments)
    out, error = capsys.readouterr()
    assert caught.value.code == 2 and error.count('\n') == 1 and words in error and 'fitted in' not in out
    assert list(tmp_path.iterdir()) == []


def test_a_head_that_is_not_needed(call, teacher, small, tmp_path, capsys):
    with pytest.raises(SystemExit):
        call(train_student.main, '--path-t', teacher, *small, '--save_dir', tmp_path, '--teacher_head', 'linear')
    assert capsys.readouterr().err.endswith('has a classifier of the classes of the data; leave it out\n')
    assert list(tmp_path.iterdir()) == []
