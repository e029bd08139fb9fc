"""visualize.py: its numbers against independent computations, its figures, and what it refuses."""
import json
import shutil
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import CPU, NETS, Hostile, data_options
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image
from torch import nn

import dataset
import train_student
import train_teacher
from analysis import figures, metrics, net_figures
from distiller_zoo import load_inference_net
from helper.checkpoint import load_checkpoint
from models import IMAGENET, model_dict
from models.base import Net
from models.find import build
from scripts import visualize


def cka(a, b):
    """Of features (N, ...), each against the other."""
    (grams_a,), (grams_b,) = ([metrics.centred_gram(x)[None]] for x in (a, b))
    both, own_a, own_b = (metrics.hsic(*pair) for pair in ((grams_a, grams_b), (grams_a,) * 2, (grams_b,) * 2))
    return (both / (own_a * own_b).sqrt()).item()


def hsic_1(x, y):
    """Nguyen, Raghu and Kornblith, ICLR 2021, equation 3, word by word, of features (N, D)."""
    k, m, n = x @ x.T, y @ y.T, len(x)
    np.fill_diagonal(k, 0)
    np.fill_diagonal(m, 0)
    ones = np.ones(n)
    return (np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
            - 2 / (n - 2) * ones @ k @ m @ ones) / (n * (n - 3))


def test_cka():
    torch.manual_seed(0)
    x = torch.randn(40, 6, 3, 3)
    assert cka(x, x) == pytest.approx(1, abs=1e-6)
    rotation = torch.linalg.qr(torch.randn(54, 54)).Q
    assert cka(x, 7 * x.flatten(1) @ rotation + 100) == pytest.approx(1, abs=1e-5)      # nor does a shift count
    y = x.flatten(1)[:, :9].tanh() + torch.randn(40, 9)
    xs, ys = (v.flatten(1).double().numpy() for v in (x, y))
    want = hsic_1(xs, ys) / (hsic_1(xs, xs) * hsic_1(ys, ys)) ** 0.5
    assert 0.1 < want < 0.9 and cka(x, y) == pytest.approx(want, abs=1e-5)


def test_cka_is_that_of_kornblith_with_many_images_and_unbiased_with_few():
    torch.manual_seed(0)
    x = torch.randn(3000, 5)
    y = x[:, :3] + torch.randn(3000, 3)
    xc, yc = ((v - v.mean(0)).double().numpy() for v in (x, y))
    want = np.linalg.norm(yc.T @ xc) ** 2 / (np.linalg.norm(xc.T @ xc) * np.linalg.norm(yc.T @ yc))
    assert want > 0.3 and cka(x, y) == pytest.approx(want, abs=0.003)
    values = [cka(torch.randn(20, 500), torch.randn(20, 500)) for _ in range(50)]
    assert abs(np.mean(values)) < 0.02          # unrelated; the plain estimate is near 1 there


def test_cka_of_stages():
    """Summed over parts of the images, for students of other depth too; a feature that is the same for all has none."""
    torch.manual_seed(0)
    teacher, student = (model_dict[name](num_classes=10).eval() for name in ('resnet14', 'MobileNetV2'))
    images = torch.randn(13, 3, 32, 32)
    own, other = metrics.stage_cka(teacher, [teacher, student], images, batch=5)
    assert own.shape == (5, 5) and other.shape == (6, 5)
    assert torch.allclose(own.diagonal(), torch.ones(5, dtype=torch.float64)) and torch.allclose(own, own.t())
    parts = images.split([5, 4, 4])

    def mean_hsic(net_a, a, net_b, b):
        return np.mean([hsic_1(*(net(part, is_feat=True)[0][i].detach().flatten(1).double().numpy()
                                 for net, i in ((net_a, a), (net_b, b)))) for part in parts])
    for s, t in ((0, 0), (2, 3), (5, 4)):
        want = mean_hsic(student, s, teacher, t) / (mean_hsic(student, s, student, s)
                                                    * mean_hsic(teacher, t, teacher, t)) ** 0.5
        assert other[s, t] == pytest.approx(want, abs=1e-4)
    for p in student.conv2.parameters():
        nn.init.zeros_(p)
    dead, = metrics.stage_cka(teacher, [student], images)
    assert dead[5].isnan().all() and dead[:5].isfinite().all()


def test_correlation():
    torch.manual_seed(0)
    s, t = torch.randn(2, 50, 7)
    want = np.abs(np.corrcoef(s.numpy(), rowvar=False) - np.corrcoef(t.numpy(), rowvar=False))
    found = metrics.correlation_difference(s, t)
    assert found.numpy() == pytest.approx(want, abs=1e-6) and found.diagonal().abs().max() < 1e-6
    assert metrics.correlation_difference(3 * t + 1, t).max() < 1e-6


def test_calibration():
    """By hand, and as Guo et al.'s own code computes it."""
    sure = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.58, 0.58])
    logits = torch.stack([sure, 1 - sure], 1).log()
    found = metrics.calibration(logits, torch.tensor([0, 0, 0, 1, 1, 0]))
    assert found.count.tolist() == [0] * 8 + [2] + [0] * 5 + [4]        # (8/15, 9/15] and (14/15, 1]
    assert found.accuracy[[8, 14]].tolist() == [0.5, 0.75] and found.accuracy[0] == 0
    assert found.confidence[[8, 14]].tolist() == pytest.approx([0.58, 0.95])
    assert found.ece == pytest.approx(4 / 6 * 0.2 + 2 / 6 * 0.08)

    torch.manual_seed(0)
    logits, target = 2 * torch.randn(500, 10), torch.randint(10, (500,))
    target[:250] = logits[:250].argmax(1)
    confidence, predicted = logits.double().softmax(1).max(1)
    bounds, ece = torch.linspace(0, 1, 16, dtype=torch.float64), 0
    for lower, upper in zip(bounds[:-1], bounds[1:], strict=True):
        inside = (confidence > lower) & (confidence <= upper)
        if inside.any():
            right = (predicted[inside] == target[inside]).double().mean()
            ece += (confidence[inside].mean() - right).abs() * inside.double().mean()
    assert metrics.calibration(logits, target).ece == pytest.approx(ece.item())
    certain = metrics.calibration(torch.tensor([[200.0, 0.0]]), torch.tensor([1]))      # a confidence of exactly 1
    assert certain.count[-1] == 1 and certain.ece == 1


def test_agreement_and_kl():
    s, t = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), torch.tensor([[1.0, 0.0], [3.0, 0.0]])
    assert metrics.top1(s, t.argmax(1)) == 50
    p, q = t.double().softmax(1), s.double().softmax(1)
    assert metrics.mean_kl(s, t) == pytest.approx((p * (p / q).log()).sum().item() / 2)
    assert metrics.mean_kl(t, t) == pytest.approx(0, abs=1e-9)


class Linear(Net):
    """One convolution, global average pooling, one linear layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.Linear(4, 5)

    def get_classifier(self):
        return self.fc

    def stages(self, x, preact=False):
        x = self.conv(x)
        return [x], x


def test_grad_cam():
    """With pooling and one linear layer it is the map weighted with the class's row of that layer (CAM)."""
    torch.manual_seed(0)
    net, images = Linear().requires_grad_(False), torch.randn(6, 3, 8, 8)
    found, logits = metrics.grad_cam(net, images)
    assert torch.equal(logits, net(images)) and found.shape == (6, 8, 8)

    def by_hand(classes):
        cam = F.relu(torch.einsum('nc,nchw->nhw', net.fc.weight[classes], net.conv(images)))
        cam = F.interpolate(cam[:, None], (8, 8), mode='bilinear')[:, 0]
        return cam / cam.amax((1, 2), keepdim=True)
    assert torch.allclose(found, by_hand(logits.argmax(1)), atol=1e-5) and found.amax((1, 2)).tolist() == [1] * 6
    classes = torch.arange(6) % 5
    assert torch.allclose(metrics.grad_cam(net, images, classes)[0], by_hand(classes), atol=1e-5)
    nn.init.zeros_(net.fc.weight)
    assert metrics.grad_cam(net, images)[0].eq(0).all()         # it sees the class nowhere


def test_grad_cam_of_tokens():
    """A transformer's classifier reads tokens, not the map that is made of them."""
    pytest.importorskip('timm')
    net = build('timm:vit_tiny_patch16_224,depth=1,patch_size=4', 5, 16).eval().requires_grad_(False)
    with pytest.raises(LookupError, match='the logits do not come from the map'):
        metrics.grad_cam(net, torch.randn(2, 3, 16, 16))


@pytest.mark.parametrize('name', NETS)
def test_every_net(name):
    """What Grad-CAM and t-SNE ask of it is what it computes."""
    torch.manual_seed(0)
    net = model_dict[name](num_classes=5).eval().requires_grad_(False)
    images = torch.randn(2, 3, *[64 if name in IMAGENET else 32] * 2)
    found, logits = metrics.grad_cam(net, images, torch.tensor([0, 4]))
    assert torch.allclose(logits, net(images), rtol=1e-3, atol=1e-4) and found.shape == (2, *images.shape[2:])
    assert found.min() >= 0 and all(top in (0, 1) for top in found.amax((1, 2)).tolist())
    assert torch.allclose(metrics.embeddings(net, images, 1), net.outputs(images).embedding, rtol=1e-3, atol=1e-4)


def test_tsne():
    """Two far groups stay apart; embeddings that are all the same are one point, not a crash."""
    torch.manual_seed(0)
    x = torch.cat([torch.randn(20, 8), torch.randn(20, 8) + 50])
    points = metrics.tsne(x, 0)
    near, far = (torch.cdist(points[:20], points[part]).mean() for part in (slice(20), slice(20, 40)))
    assert points.shape == (40, 2) and far > 2 * near and torch.equal(points, metrics.tsne(x, 0))
    assert not torch.equal(points, metrics.tsne(x[:, :4], 0)) and metrics.tsne(x[:4], 0).isfinite().all()
    assert metrics.tsne(torch.full((9, 8), 0.5), 0).tolist() == [[0, 0]] * 9


def test_read_test_set():
    data = dataset.get_dataloaders(data_options(dataset='digits', batch_size=48), CPU)
    net = Linear()
    index, target, (logits,), images = metrics.read_test_set(data.test_loader, [net], [200, 3])
    batches = list(data.test_loader)
    every = torch.cat([batch[0] for batch in batches])
    assert index.tolist() == [*range(360)] and torch.equal(target, data.test_labels)
    assert torch.allclose(logits, net(every), atol=1e-5)
    assert images.keys() == {200, 3} and all(torch.equal(image, every[n]) for n, image in images.items())
    _, target, logits, images = metrics.read_test_set(data.test_loader, [], [3])
    assert (len(target), logits, [*images]) == (48, [], [3])            # not read further than needed


def test_characters_that_the_font_lacks(tmp_path, recwarn):
    figures.save_figure(net_figures.correlations({'net': np.eye(2)}, ['昆虫', 'Vögel']), tmp_path / 'a')
    assert '昆虫' in (tmp_path / 'a.svg').read_text() and not recwarn.list


def test_svg(tmp_path):
    """Text is text, ink is the page's, nothing says when or by which version it was drawn, and it fits into a page."""
    def draw():
        return net_figures.correlations({'a <b> $x$ & ü': np.eye(3)}, ['cat', 'a dog', '<bird>'])
    figures.save_figure(draw(), tmp_path / 'with.dot')
    figures.save_figure(draw(), tmp_path / 'again')
    for suffix in ('png', 'svg'):
        assert (tmp_path / f'with.dot.{suffix}').read_bytes() == (tmp_path / f'again.{suffix}').read_bytes()
    text = figures.to_svg(draw())
    assert text == (tmp_path / 'again.svg').read_text() and text.startswith('<svg') and figures.INK not in text
    assert 'fill: currentColor' in text and 'stroke: currentColor' in text and 'Matplotlib' not in text
    root = ElementTree.fromstring(text)
    words = ''.join(root.itertext())
    assert 'a <b> $x$ & ü' in words and 'mean 0.333' in words and '|difference of correlation|' in words
    assert words.count('a dog') == words.count('<bird>') == 2      # at both axes
    assert 'T00:' not in text and 'dc:date' not in text
    png = Image.open(tmp_path / 'again.png')
    assert png.convert('RGB').getpixel((0, 0)) == (255, 255, 255) and not png.info.get('Software')


@pytest.mark.parametrize('count, wanted', [(1, (1, 1)), (4, (1, 4)), (5, (2, 3)), (9, (3, 3)), (10, (3, 4))])
def test_grid(count, wanted):
    assert figures.panel_grid(count) == wanted


def test_figures_of_nets_without_a_number():
    """A logit that never changes, a dead stage."""
    nothing = np.full((4, 4), np.nan)
    for figure in (net_figures.correlations({'a': nothing}, 'wxyz'), net_figures.cka({'a': nothing}, 't')):
        assert 'nan' in figures.to_svg(figure)


def test_long_names_are_wrapped():
    """Those of nets and of classes are whole, lie within the figure, and no caption overlaps another."""
    name, net = 'black-crowned night heron, juvenile', 'a net with a name of forty characters 123'
    maps = np.zeros((2, 8, 8)), [f'{name}, 39%'] * 2, [True, False]
    cam = net_figures.grad_cam(np.zeros((2, 8, 8, 3), 'uint8'), ['image 0', 'image 1'], [name, 'cat'],
                           {net: maps, 'x': maps})
    matrices = net_figures.correlations({net: np.eye(40), 'x': np.eye(40)}, [name] * 40)     # too many to be named
    dots = net_figures.tsne({net: np.zeros((4, 2)), 'x': np.zeros((4, 2))}, np.array([0, 0, 1, 1]), [name, 'cat'])
    for figure in (cam, matrices, dots):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        canvas.draw()       # the layout has come to rest
        shown = [text for text in figure.findobj(Text) if len(text.get_text()) > 4]     # without the ticks' numbers
        words = [text.get_text().replace('\n', ' ') for text in shown]
        assert any(text.startswith(net) for text in words) and (name in words) == (figure is not matrices)
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in shown]
        assert all(box.x0 >= -1 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
        titles = [axis.title.get_window_extent(canvas.get_renderer()) for axis in figure.axes]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


@pytest.fixture(scope='module')
def runs(tmp_path_factory, call):
    """The save folder of a resnet14 and three of its students on the digits, each trained for an epoch."""
    save = tmp_path_factory.mktemp('runs')
    common = ['--dataset', 'digits', '--train_fraction', 0.3, '--batch_size', 128, '--epochs', 1, '--gpu_id', 'cpu',
              '--seed', 1, '--save_dir', save]
    call(train_teacher.main, '--model', 'resnet14', *common)
    teacher = next(save.glob('models/resnet14_*/resnet14_best.pth'))
    call(train_teacher.main, '--model', 'resnet8', *common)
    for method in ('kd', 'simkd'):
        call(train_student.main, '--path-t', teacher, '--distill', method, '--skip-validation', *common)
    return save


def read(file):
    return json.loads(file.read_text())


def test_from_the_command_line(call, runs, tmp_path, capsys):
    """From runs alone: every figure in its three forms, and the accuracies that the runs themselves measured."""
    call(visualize.main, *runs.glob('models/*'), *runs.glob('student_model/*'), '--gpu_id', 'cpu', '--output',
         tmp_path / 'new' / 'figures', '--samples', 60, '--mistakes', 2)
    done, out = capsys.readouterr(), tmp_path / 'new' / 'figures'
    assert done.err == '' and done.out.startswith(
        'resnet8 simkd: the network that it deploys has no stages, so it is not in tsne, cka, gradcam\n')
    assert sorted(file.name for file in out.iterdir()) == sorted(
        f'{name}.{form}' for name in visualize.DRAW for form in ('json', 'png', 'svg'))
    for name in visualize.DRAW:
        assert min(Image.open(out / f'{name}.png').size) > 200
        assert ElementTree.parse(out / f'{name}.svg').getroot().tag.endswith('svg')
    names = ['resnet14 (teacher)', 'resnet8 alone', 'resnet8 kd', 'resnet8 simkd']
    nets = read(out / 'calibration.json')['nets']
    assert sorted(nets) == names and read(out / 'calibration.json')['images'] == 360
    rows = {line[:18].strip(): line[18:].split() for line in done.out.splitlines() if line.startswith('resnet')}
    for name, net in nets.items():
        best = read(next(file for file in runs.glob('*/*/test_best_metrics.json')
                         if net['checkpoint'].startswith(f'{file.parent}/')))
        assert net['top-1 %'] == pytest.approx(best['test_acc']) and net['NLL'] == pytest.approx(best['test_loss'])
        assert rows[name][0] == f'{net["top-1 %"]:.2f}' and rows[name][-1] == f'{net["NLL"]:.4f}'
        assert sum(net['bins']['count']) == 360
    assert nets['resnet14 (teacher)']['KL'] is None and 0 < nets['resnet8 kd']['KL'] < 20
    found = read(out / 'correlations.json')
    assert sorted(found['mean difference']) == names[1:] and found['classes'] == [*'0123456789']
    found = read(out / 'cka.json')
    assert found['images'] == 60 and sorted(found['cka']) == names[1:3]
    assert np.shape(found['cka']['resnet8 kd']) == (5, 5)
    found = read(out / 'tsne.json')
    assert len(set(found['images'])) == 60 and np.shape(found['points']['resnet14 (teacher)']) == (60, 2)
    assert read(out / 'gradcam.json')['labels'] == [0, 1, 2, 3, 4]          # the first image of five classes
    confusion, classes, mistakes = (read(out / f'{name}.json')['nets'] for name in ('confusion', 'classes', 'mistakes'))
    assert sorted(confusion) == sorted(classes) == names and sorted(mistakes) == names[1:]
    for name, net in nets.items():
        rows, hits = confusion[name]['classes'], 0
        for row in rows:
            hits += row['predicted_as'].get(row['name'], 0)
            assert sum(row['predicted_as'].values()) == row['images'] in (35, 36, 37)
        assert 100 * hits / 360 == pytest.approx(net['top-1 %'])
        assert classes[name]['ece'] == pytest.approx(net['ECE %'], abs=1e-4)
        assert read(out / 'classes.json')['accuracy %'][name] == [row['recall'] for row in rows]
    for found in mistakes.values():
        shares = [mistake['confidence'] for mistake in found]
        assert len(found) == 2 and shares == sorted(shares, reverse=True)
        assert all(mistake['class'] != mistake['predicted'] and mistake['file'] is None for mistake in found)


def test_chosen_figures_and_images(call, runs, tmp_path, capsys):
    """--only leaves the other files alone; --images, --classes and --seed choose; the same command, the same bytes."""
    student, = runs.glob('student_model/*_kd_*/resnet8_best.pth')
    teacher, = runs.glob('models/resnet14_*/resnet14_best.pth')
    (tmp_path / 'cka.json').write_text('older')
    shutil.copy(student, tmp_path / 'resnet8.pth')          # no parameters.json beside it
    flags = ['--path-t', teacher, tmp_path / 'resnet8.pth', '--dataset', 'digits', '--gpu_id', 'cpu',
             '--output', tmp_path]
    call(visualize.main, *flags, '--only', 'gradcam', 'tsne', '--images', 7, 300, '--classes', 3)
    found = read(tmp_path / 'gradcam.json')
    assert found['images'] == [7, 300] and (tmp_path / 'cka.json').read_text() == 'older'
    assert sorted(found['nets']) == ['resnet14 (teacher)', 'resnet8'] and not (tmp_path / 'calibration.json').exists()
    assert found['labels'] == dataset.get_dataloaders(
        data_options(dataset='digits', batch_size=48), CPU).test_labels[[7, 300]].tolist()
    labels = {*read(tmp_path / 'tsne.json')['labels']}
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}
    bare = tmp_path / 'other' / 'weights.pth'       # as another program writes it: it does not name its net
    bare.parent.mkdir()
    torch.save(load_checkpoint(str(teacher), '')['model'], bare)
    call(visualize.main, '--path-t', bare, '--model_t', 'resnet14', *flags[2:], '--only', 'tsne', '--classes', 3)
    shutil.rmtree(bare.parent)
    assert len(labels) == 3 and {file: file.read_bytes() for file in tmp_path.iterdir()} == before
    call(visualize.main, *flags, '--only', 'tsne', '--classes', 3, '--seed', 1)
    assert {*read(tmp_path / 'tsne.json')['labels']} != labels
    assert 'training on the CPU' not in capsys.readouterr().out


def test_names_of_nets_that_are_alike():
    """What tells runs apart; what a file says is made harmless and short."""
    taken = set()
    for trial, wanted in ((1, 'resnet8 kd'), (2, 'resnet8 kd, trial 2'), (2, 'resnet8 kd (2)'),
                          (1, 'resnet8 kd, trial 1'), (2, 'resnet8 kd (3)')):
        name = visualize.name_net('resnet8', {'model_s': 'resnet8', 'distill': 'kd', 'trial': trial}, taken)
        assert name == wanted
        taken.add(name)
    assert visualize.name_net('resnet8 by simkd', {}, taken) == 'resnet8 by simkd'
    assert visualize.name_net('x', {'model': 'a\x1b\n' * 1000}, taken) == ('a\\x1b\\n' * 1000)[:visualize.LONGEST]


def change(folder, **parameters):
    file = folder / 'parameters.json'
    file.write_text(json.dumps({**read(file), **parameters}))


@pytest.fixture(scope='module')
def small_run(tmp_path_factory, call, small, teacher):
    """The folder of a student on the tree."""
    save = tmp_path_factory.mktemp('small')
    call(train_student.main, '--path-t', teacher, '--skip-validation', '--save_dir', save, *small)
    return next(save.glob('student_model/*'))


BAD = {     # what is wrong -> (arguments, what the line says); {run}, {teacher}, {tmp} are filled in
    'no student': ([], 'the following arguments are required: STUDENT'),
    'no such file': (['nowhere.pth'], 'STUDENT nowhere.pth: no such file'),
    'no run': (['{tmp}'], 'STUDENT {tmp}: holds no NAME_best.pth; give the folder of a run'),
    'two best': (['{tmp}/two'], 'STUDENT {tmp}/two: has 2 files NAME_best.pth; give one of them'),
    'code': (['{tmp}/code.pth', '--path-t', '{teacher}', *['--dataset', 'folder', '--data_dir', '{tree}'],
              '--image_size', '16', '--batch_size', '16'], 'STUDENT {tmp}/code.pth: refused, it holds code'),
    'no teacher': (['{tmp}/resnet8.pth'], "--path-t: none of these students names its teacher; give a teacher's"),
    'net without its file': (['{run}', '--model_t', 'resnet14'], '--model_t resnet14: has no effect without --path-t'),
    'teacher gone': (['{run}', '--path-t', 'gone.pth'], '--path-t gone.pth: no such file'),
    'the teacher alone': (['{teacher}', '--path-t', '{teacher}'], 'STUDENT {teacher}: is the teacher; give'),
    'other teacher': (['{run}', '{tmp}/taught'], '--path-t: these students have several teachers, {teacher}, x'),
    'other data': (['{run}', '{tmp}/digits'], '{tmp}/digits/resnet8_best.pth: a run with --dataset digits, but {run}'),
    'other folder': (['{run}', '{tmp}/moved'], 'a run with --data_dir /moved, but {run}'),
    'other size': (['{run}', '{tmp}/size'], 'a run with --image_size 24, but {run}'),
    'parameters': (['{tmp}/list'], 'STUDENT {tmp}/list: parameters.json: not the options of a run'),
    'no JSON': (['{tmp}/text'], 'STUDENT {tmp}/text: parameters.json: no JSON that can be read'),
    'nonsense': (['{tmp}/nonsense'], "--image_size: ['x']: give a whole number"),
    'classes': (['{run}', '--dataset', 'digits'], 'a net of 4 classes, but the data has 10'),
    'data set': (['{run}', '--dataset', 'digit'], '--dataset digit: no such data set; did you mean digits'),
    'data folder': (['{run}', '--data_dir', 'gone'], '--data_dir: gone: no such folder'),
    'figure': (['{run}', '--only', 'umap'], "--only: invalid choice: 'umap' (choose from"),
    'image': (['{run}', '--images', '3', '24'], '--images 24: the test set of folder has the images 0 to 23'),
    'negative image': (['{run}', '--images', '-1'], '--images: '),
    'many images': (['{run}', '--images', *['1'] * 51], '--images: 51 images; give at most 50'),
    'samples': (['{run}', '--samples', '3'], '--samples: 3: give a whole number of at least 4'),
    'many classes': (['{run}', '--classes', '21'], '--classes: 21: give a whole number of at least 1 and of'),
    'flag': (['{run}', '--sample', '9'], '--sample: no such flag; did you mean --samples'),
    'gpu': (['{run}', '--gpu_id', 'first'], '--gpu_id first: give the number of a GPU, as 0, mps or cpu'),
    'diverged': (['{tmp}/nan.pth', '--path-t', '{teacher}', *['--dataset', 'folder', '--data_dir', '{tree}'],
                  '--image_size', '16', '--batch_size', '16'], 'STUDENT {tmp}/nan.pth: fc.bias has NaN among'),
    'diverged, t-SNE': (['{tmp}/inf', '--only', 'tsne'], 'STUDENT {tmp}/inf/resnet8_best.pth: its outputs are not'),
    'output': (['{run}', '--output', '{teacher}'], '--output {teacher}: cannot write {teacher} ('),
}


@pytest.mark.parametrize('case', BAD)
def test_bad_input_is_one_line(call, small_run, teacher, tree, tmp_path, capsys, case):
    for name, parameters in (('taught', {'path_t': 'x', 'teacher (checksum)': 'y'}), ('digits', {'dataset': 'digits'}),
                             ('moved', {'data_dir': '/moved'}), ('size', {'image_size': 24}),
                             ('nonsense', {'image_size': ['x']}), ('list', {}), ('text', {}), ('two', {}), ('inf', {})):
        shutil.copytree(small_run, tmp_path / name)
        change(tmp_path / name, **parameters)
    (tmp_path / 'list' / 'parameters.json').write_text('[]')
    (tmp_path / 'text' / 'parameters.json').write_text('{')
    shutil.copy(small_run / 'resnet8_best.pth', tmp_path / 'resnet8.pth')
    shutil.copy(small_run / 'resnet8_best.pth', tmp_path / 'two' / 'x_best.pth')
    torch.save({'model': Hostile(tmp_path / 'ran')}, tmp_path / 'code.pth')
    checkpoint = load_checkpoint(str(small_run / 'resnet8_best.pth'), '')
    checkpoint['model']['fc.bias'].fill_(float('nan'))
    torch.save(checkpoint, tmp_path / 'nan.pth')
    checkpoint['model']['fc.bias'].zero_()
    checkpoint['model']['conv1.weight'].fill_(float('inf'))
    torch.save(checkpoint, tmp_path / 'inf' / 'resnet8_best.pth')
    places = {'run': small_run, 'teacher': teacher, 'tmp': tmp_path, 'tree': tree}
    arguments, words = BAD[case]
    if '--output' not in arguments:
        arguments = [*arguments, '--output', '{tmp}/out']
    if case != 'gpu':
        arguments = [*arguments, '--gpu_id', 'cpu']
    with pytest.raises(SystemExit) as caught:
        call(visualize.main, *(argument.format(**places) for argument in arguments))
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count('\n') == 1 and words.format(**places) in error, error
    assert not list((tmp_path / 'out').glob('*')) and not (tmp_path / 'ran').exists()


def test_a_failed_write_leaves_the_older_figure(call, small_run, tmp_path, capsys, monkeypatch):
    flags = [small_run, '--gpu_id', 'cpu', '--output', tmp_path, '--only', 'cka']
    call(visualize.main, *flags)
    before = {file: file.read_bytes() for file in tmp_path.iterdir()}

    def full(self, file, **settings):
        file.write(b'half' if settings['format'] == 'png' else 'half')
        raise OSError(28, 'No space left on device')
    monkeypatch.setattr(figures.Figure, 'savefig', full)
    with pytest.raises(SystemExit) as caught:
        call(visualize.main, *flags, '--samples', 10)
    error = capsys.readouterr().err
    assert caught.value.code == 2 and 'cka.png: cannot be written' in error and 'an earlier file is unchanged' in error
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_several_runs_of_a_moved_teacher(call, small_run, tree, teacher, tmp_path, capsys):
    """Another path to the same teacher, another data folder where --data_dir says so."""
    shutil.copytree(small_run, tmp_path / 'moved')
    change(tmp_path / 'moved', path_t='elsewhere.pth', data_dir='/moved', trial='2')
    call(visualize.main, small_run, tmp_path / 'moved', small_run / 'resnet8_best.pth', '--data_dir', tree, '--gpu_id',
         'cpu', '--output', tmp_path / 'out', '--only', 'correlations', 'mistakes', '--mistakes', 1)
    assert [*read(tmp_path / 'out' / 'correlations.json')['mean difference']] == ['resnet8 kd', 'resnet8 kd, trial 2']
    (mistake,), _ = read(tmp_path / 'out' / 'mistakes.json')['nets'].values()
    names = sorted(f'test/{file.parent.name}/{file.name}' for file in (tree / 'test').glob('*/*'))
    assert mistake['file'] == names[mistake['image']] and mistake['file'].startswith(f'test/{mistake["class"]}/')


def test_few_images(call, small_run, tmp_path, capsys):
    """What needs more than there is is left out in a line: t-SNE of one class, whose three images are chosen."""
    for split, per_class in (('train', 12), ('test', 3)):
        for name in ('ant', 'bee', 'cat', 'dog'):
            (tmp_path / split / name).mkdir(parents=True)
            for n in range(per_class):
                Image.new('RGB', (16, 16), (n * 20, 50, 90)).save(tmp_path / split / name / f'{n}.png')
    call(visualize.main, small_run, '--data_dir', tmp_path, '--gpu_id', 'cpu', '--output', tmp_path / 'out',
         '--classes', 1, '--only', 'tsne', 'gradcam', 'cka')
    assert 'tsne: left out, the selected classes have fewer than 4 test images\n' in capsys.readouterr().out
    assert not (tmp_path / 'out' / 'tsne.json').exists() and read(tmp_path / 'out' / 'cka.json')['images'] == 12
    assert len(read(tmp_path / 'out' / 'gradcam.json')['images']) == 1


def test_a_deployed_net_alone(call, runs, tmp_path, capsys):
    """Of a student without stages there are the figures of logits, and of its teacher the rest."""
    folder, = runs.glob('student_model/*_simkd_*')
    assert not isinstance(load_inference_net(
        str(folder / 'resnet8_best.pth'), dataset.get_dataloaders(data_options(dataset='digits'), CPU), '')[1], Net)
    call(visualize.main, folder, '--gpu_id', 'cpu', '--output', tmp_path, '--samples', 20, '--only', 'tsne', 'cka',
         'correlations', 'gradcam', 'calibration')
    assert {file.stem for file in tmp_path.iterdir()} == {'tsne', 'correlations', 'gradcam', 'calibration'}
    assert [*read(tmp_path / 'gradcam.json')['nets']] == ['resnet14 (teacher)']
    assert 'has no stages, so it is not in tsne, cka, gradcam' in capsys.readouterr().out
