"""What single methods promise beside the reference numbers."""
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from conftest import build, options

import distiller_zoo
from dataset import Data
from distiller_zoo import ContrastSampler, CRDLoss, RKDLoss, distiller_dict
from distiller_zoo.checks import check_pairwise_batch
from distiller_zoo.criteria.kdsvd import _singular_vectors
from helper.errors import UserError
from helper.loops import train_epoch
from models import model_dict
from models.base import Net


def labels(*counts):
    """So many samples of each class, shuffled."""
    torch.manual_seed(0)
    whole = torch.cat([torch.full((count,), c) for c, count in enumerate(counts)])
    return whole[torch.randperm(len(whole))]


@pytest.mark.parametrize('counts', [(20, 20, 20), (5, 30, 25), (1, 1, 58)])
def test_negatives_do_not_repeat(counts):
    y = labels(*counts)
    sampler = ContrastSampler(y, k=min(20, len(y) - max(counts)))
    assert not sampler.repeats
    index = torch.arange(len(y)).repeat(40)
    drawn = sampler(index, y[index])
    assert drawn.shape == (len(index), sampler.k + 1) and torch.equal(drawn[:, 0], index)
    negative = drawn[:, 1:]
    assert (y[negative] != y[index][:, None]).all()
    assert all(len(row.unique()) == sampler.k for row in negative)


def test_negatives_are_uniform():
    y = labels(30, 20, 10)
    sampler = ContrastSampler(y, k=12)
    anchor = int((y == 0).nonzero()[0])
    drawn = torch.cat([sampler(torch.tensor([anchor]), y[[anchor]])[0, 1:] for _ in range(3000)])
    counts = torch.bincount(drawn, minlength=60)[y != 0].float()
    expected = 3000 * 12 / 30
    assert ((counts - expected) ** 2 / expected).sum() < 60                 # 29 degrees of freedom: p > 0.0006
    # Two rows of a batch have different negatives.
    both = sampler(torch.tensor([anchor, anchor]), y[[anchor, anchor]])[:, 1:]
    assert set(both[0].tolist()) != set(both[1].tolist())


def test_more_negatives_than_samples_repeat():
    y = labels(6, 4)
    sampler = ContrastSampler(y, k=50)
    assert sampler.repeats
    negative = sampler(torch.arange(10), y)[:, 1:]
    assert negative.shape == (10, 50) and (y[negative] != y[:, None]).all()
    assert all(len(row.unique()) == (4 if y[i] == 0 else 6) for i, row in enumerate(negative))


def test_relaxed_positives_are_of_the_class():
    y = labels(10, 20, 30)
    index = torch.arange(60).repeat(50)
    positive = ContrastSampler(y, k=5, relax=True)(index, y[index])[:, 0]
    assert torch.equal(y[positive], y[index]) and not torch.equal(positive, index)
    assert set(positive[y[index] == 0].tolist()) == set((y == 0).nonzero().flatten().tolist())


def test_crd_gradient_by_rows():
    """One product with the memory gives what gathering every row gives, gradients too."""
    torch.manual_seed(0)
    n, k, d = 6, 9, 16
    criterion = CRDLoss(SimpleNamespace(s_dim=8, t_dim=12, feat_dim=d, n_data=40, nce_t=0.07, nce_m=0.5))
    f_s, f_t = torch.randn(n, 8, requires_grad=True), torch.randn(n, 12)
    index, contrast = torch.arange(n), torch.randint(0, 40, (n, k + 1))
    m1, m2 = criterion.contrast.memory_v1.clone(), criterion.contrast.memory_v2.clone()
    criterion(f_s, f_t, index, contrast).backward()
    got, f_s.grad = f_s.grad, None

    def side(v, memory):
        out = torch.exp(torch.bmm(memory[contrast], v[:, :, None])[..., 0] / 0.07)
        x, noise = out / (out.mean().detach() * 40), k / 40
        return -((x[:, 0] / (x[:, 0] + noise + 1e-7)).log().sum() + (noise / (x[:, 1:] + noise + 1e-7)).log().sum()) / n
    (side(criterion.embed_s(f_s), m2) + side(criterion.embed_t(f_t), m1)).backward()
    assert torch.allclose(got, f_s.grad, rtol=1e-4, atol=1e-7)


def test_crd_memory_is_saved_and_sized_by_the_data():
    distiller, loader, opt = build('crd')
    train_epoch(1, loader, distiller, torch.optim.SGD(distiller.parameters(), lr=1e-3), opt)
    state = distiller.checkpoint()['distiller']
    memory = state['criterion.contrast.memory_v1']
    assert memory.shape == (24, 128) and torch.allclose(memory.norm(dim=1), torch.ones(24), atol=1e-5)
    assert (state['criterion.contrast.Z'] > 0).all() and not any('sampler' in key for key in state)


def test_crd_says_what_it_does_with_few_samples(capsys):
    build('crd', nce_k=1000)
    said = capsys.readouterr().out
    assert '--nce_k 1000: the other classes have 21 samples; negatives are drawn with repetition' in said
    with pytest.raises(UserError, match='the data has one class'):
        distiller_dict['crd'](model_dict['resnet8'](num_classes=10), model_dict['resnet8'](num_classes=10),
                              options('crd'), Data(None, None, 10, 16, torch.zeros(24, dtype=torch.int64)))


def test_rkd_angles():
    """Against the differences (N, N, D) written out; a repeated sample and identical embeddings stay finite."""
    torch.manual_seed(0)
    x = torch.randn(7, 5) + 10
    difference = F.normalize(x[None] - x[:, None], dim=2)
    want = difference @ difference.transpose(1, 2)
    distances, angles = RKDLoss().relations(x)
    assert torch.allclose(angles, want, atol=1e-4)
    assert torch.allclose(distances, torch.cdist(x, x) / (torch.cdist(x, x).sum() / 42), atol=1e-4)
    for same in (x[[0, 0, 1, 2, 3, 4, 5]], torch.ones(7, 5)):
        f_s = same.clone().requires_grad_()
        loss = RKDLoss()(f_s, x)
        loss.backward()
        assert loss.isfinite() and f_s.grad.isfinite().all()


def test_kdsvd_gradient():
    """Of the top directions against finite differences, for both shapes of the matrix; a dead map gives no NaN."""
    torch.manual_seed(0)
    direction = torch.randn(2, 5, 2, dtype=torch.float64)
    for size in (4, 2):
        f = torch.randn(2, 5, size, size, dtype=torch.float64, requires_grad=True)

        def invariant(x, size=size):        # a vector's sign is free
            return (_singular_vectors(x, 2) * direction).sum(1).pow(2)
        assert torch.autograd.gradcheck(invariant, (f,), atol=1e-4)
    dead = torch.zeros(2, 5, 4, 4, requires_grad=True)
    _singular_vectors(dead, 2).sum().backward()
    assert dead.grad.isfinite().all()


@pytest.mark.parametrize('method', ['hint', 'attention', 'nst', 'fsp', 'abound', 'factor', 'kdsvd', 'vid', 'semckd',
                                    'wkdf'])
def test_features_that_are_no_maps(method):
    class Flat(Net):
        def __init__(self):
            super().__init__()
            self.conv1 = torch.nn.Conv2d(3, 4, 3)
            self.fc = torch.nn.Linear(4, 10)

        def get_classifier(self):
            return self.fc

        def stages(self, x, preact=False):
            last = self.conv1(x)
            return [last.mean((2, 3))] * 3, last
    data = Data(None, None, 10, 16, torch.arange(24) % 10)
    with pytest.raises(UserError, match=r'--model_s: --distill .* needs feature maps \(N, C, H, W\) of resnet8'):
        distiller_dict[method](Flat(), model_dict['resnet14'](num_classes=10), options(method), data)


@pytest.mark.parametrize('method', [name for name, cls in distiller_dict.items() if cls.spec.pairwise])
def test_one_image_a_batch_cannot_be_compared(method):
    check_pairwise_batch(distiller_dict[method].spec, 2)
    with pytest.raises(UserError, match='--batch_size 1: .* compares the images of a batch; give at least 2'):
        check_pairwise_batch(distiller_dict[method].spec, 1)


def test_method_of_the_readme(monkeypatch):
    """The README's own method is what a reader would write, and trains."""
    readme = (Path(__file__).parents[1] / 'README.md').read_text()
    source = next(block for block in re.findall(r'```python\n(.*?)```', readme, re.S) if '(Distiller)' in block)
    scope = {'__package__': 'distiller_zoo', '__name__': 'distiller_zoo.embedding'}
    exec(source, scope)
    method = next(v for v in scope.values() if isinstance(v, type) and issubclass(v, distiller_zoo.Distiller)
                  and v is not distiller_zoo.Distiller)
    monkeypatch.setitem(distiller_dict, 'embedding', method)      # a name that other code has for something else
    distiller, loader, opt = build('embedding')
    train = train_epoch(1, loader, distiller, torch.optim.SGD(distiller.parameters(), lr=1e-3), opt)
    assert train['method'] > 0 and distiller.checkpoint()['distiller']


def test_published_betas():
    want = {'kd': 0, 'hint': 100, 'attention': 1000, 'similarity': 3000, 'correlation': 0.02, 'vid': 1, 'rkd': 1,
            'pkt': 30000, 'irg': 0.005, 'hkd': 1, 'crd': 0.8, 'semckd': 400, 'nst': 50, 'fsp': 50, 'abound': 1,
            'factor': 200, 'kdsvd': 1}
    for name, beta in want.items():
        opt = options(name)
        assert (opt.gamma, opt.alpha, opt.beta, opt.kd_T, opt.loss_warmup_epochs) == (1, 1, beta, 4, None), name
    imagenet = SimpleNamespace(dataset='imagenet', logit_stand=False, entropy_weights=False, opt='sgd')
    assert distiller_dict['semckd'].published_options(imagenet)['beta'] == 50


# method -> its loss by hand, from the student's and the teacher's features
FED = {
    'hint': lambda d, s, t: distiller_zoo.HintLoss()(*d.regressor(s[1], t[1])),
    'attention': lambda d, s, t: sum(distiller_zoo.Attention()(s[1:-1], t[1:-1])),
    'similarity': lambda d, s, t: distiller_zoo.Similarity()([s[-2]], [t[-2]])[0],
    'rkd': lambda d, s, t: distiller_zoo.RKDLoss()(s[-1], t[-1]),
    'pkt': lambda d, s, t: distiller_zoo.PKT()(s[-1], t[-1]),
    'hkd': lambda d, s, t: distiller_zoo.HKDLoss(100, 0.7)(s[1:-1], t[1:-1]),
}


@pytest.mark.parametrize('method', FED)
def test_what_a_method_is_fed_with(method):
    distiller, loader, _ = build(method)
    images, target, index = next(iter(loader))
    distiller.eval()
    got = distiller(images, target, index)[0]['method'].item()
    feats_s, feats_t = (net(images, is_feat=True)[0] for net in (distiller.student, distiller.teacher))
    assert got == pytest.approx(FED[method](distiller, feats_s, feats_t).item(), rel=1e-4)


def test_abound_is_fed_with_preactivations():
    distiller, loader, _ = build('abound')
    images, target, index = next(iter(loader))
    distiller.eval()
    got = distiller(images, target, index)[0]['loss'].item()
    feats_s, feats_t = (net(images, is_feat=True, preact=True)[0][1:-1]
                        for net in (distiller.student, distiller.teacher))
    want = sum(distiller_zoo.ABLoss(len(feats_s))(distiller.connector(feats_s), feats_t)).item()
    assert got == pytest.approx(want, rel=1e-4)
