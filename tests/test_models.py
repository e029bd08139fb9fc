"""Every entry of model_dict against the reference numbers of tests/fixtures."""
import json
from pathlib import Path

import pytest
import torch
from fixtures.recipe import digest, fill_, tensor

from helper.errors import UserError
from models import default_learning_rate, model_dict, resolve
from models.imagenet import ResNet

FIXTURES = Path(__file__).parent / 'fixtures'
REFERENCE = json.loads((FIXTURES / 'models.json').read_text())
KEYS = json.loads((FIXTURES / 'state_dict_keys.json').read_text())

WIDER = {'ResNet18Double': 2, 'resnet34x4': 4}              # the reference's multiplier was overwritten: plain nets
LOGITS_ONLY = ('vgg11_imagenet', 'vgg13_imagenet')          # the reference cut these in the middle of their stages


def empty(name, num_classes):
    """The net, uninitialised to save time."""
    with torch.device('meta'):
        return model_dict[name](num_classes=num_classes).to_empty(device='cpu')


def close(got, want):
    """rms and the first eight values within 1e-3 of the rms."""
    tolerance = 1e-3 * want['rms']
    assert got['rms'] == pytest.approx(want['rms'], abs=tolerance)
    assert got['head'] == pytest.approx(want['head'], abs=tolerance)


def follows_the_rules(net, x):
    """Check the contract of models.base.Net, without reference numbers."""
    with torch.inference_mode():
        out = net.outputs(x)
        feats, logits = net(x, is_feat=True)
        features = net.forward_features(x)
        hidden, plain = net.forward_head(features, pre_logits=True), net(x)
        classifier = net.get_classifier()
        for again in (plain, logits, net.forward_head(features), classifier(hidden)):
            assert torch.equal(again, out.logits)
    assert out.logits.shape == (len(x), classifier.out_features) and isinstance(classifier, torch.nn.Linear)
    assert features.shape[:2] == (len(x), net.num_features) and features.dim() == 4
    assert torch.equal(features, out.map) and torch.equal(net.embed(features), out.embedding)
    assert hidden.shape == (len(x), net.head_hidden_size) and classifier.in_features == net.head_hidden_size
    assert len(feats) >= 3 and all(f.dim() == 4 for f in feats[:-1]) and feats[-1].shape == (len(x), feats[-1].shape[1])
    sizes = [f.shape[-1] for f in feats[:-1]]
    assert sizes == sorted(sizes, reverse=True) and all(map(torch.equal, feats, out.feats))


@pytest.mark.parametrize('name', ['wrn_16_1', 'MobileNetV2', 'ShuffleV2', 'resnet8', 'ShuffleV2_Imagenet'])
def test_the_map_that_pooling_sees(name):
    """It comes directly before the pooling, after the last ReLU: not always the last stage's output."""
    net = fill_(empty(name, 10)).eval()
    with torch.inference_mode():
        out = net.outputs(tensor(7, 2, 3, 64, 64))
    assert out.map.min() == 0 and torch.allclose(out.map.mean((2, 3)), out.embedding, atol=1e-6)
    assert (out.map.shape == out.feats[-2].shape and torch.equal(out.map, out.feats[-2])) == (name == 'resnet8')


@pytest.mark.parametrize('name', [pytest.param(name, marks=[pytest.mark.slow] * (name == 'vgg13_imagenet'))
                                  for name in model_dict if name not in WIDER])
def test_model(name):
    """The contract, a state_dict round trip, and the reference numbers if the fixtures have them."""
    reference = REFERENCE.get(name)
    num_classes = reference['num_classes'] if reference else 100
    net = fill_(empty(name, num_classes)).eval()
    seed, shape = (reference['input'][k] for k in ('seed', 'shape')) if reference else (7, (2, 3, 32, 32))
    x = tensor(seed, *shape)
    with torch.inference_mode():
        feats, logits = net(x, is_feat=True)
        plain = net(x)
    assert torch.equal(plain, logits)
    follows_the_rules(net, x[..., :64, :64])
    empty(name, num_classes).load_state_dict(net.state_dict())
    if reference is None:                      # no published weights to agree with: the shape rules above hold
        return
    assert {k: list(v.shape) for k, v in net.state_dict().items()} == KEYS[name]
    assert sum(p.numel() for p in net.parameters()) == reference['params']
    close(digest(logits), reference['logits'])
    if name in LOGITS_ONLY:
        return
    for got, want in zip(feats, reference['feats'], strict=True):
        assert list(got.shape) == want['shape']
        close(digest(got), want)
    if isinstance(net, ResNet):      # torchvision's, of which the reference had none
        pre, logits_again = net(x, is_feat=True, preact=True)
        assert torch.allclose(logits_again, logits, rtol=1e-4, atol=1e-4) and torch.equal(pre[0], feats[0])
        for before, after in zip(pre[1:-1], feats[1:-1], strict=True):
            assert before.min() < 0 and torch.allclose(before.relu(), after, rtol=1e-4, atol=1e-4)
        assert [bn.num_features for bn in net.get_bn_before_relu()] == [f.shape[1] for f in pre[1:-1]]
        return
    if 'preact' not in reference:
        with pytest.raises(NotImplementedError):
            net(x, is_feat=True, preact=True)
        return
    with torch.inference_mode():
        pre, logits_again = net(x, is_feat=True, preact=True)
    assert torch.equal(logits_again, logits)
    for got, want in zip(pre, reference['preact'], strict=True):
        close(digest(got), want)
    names = {module: key for key, module in net.named_modules()}
    if reference.get('bn_before_relu') is None:
        with pytest.raises(NotImplementedError):
            net.get_bn_before_relu()
    else:
        assert [names[bn] for bn in net.get_bn_before_relu()] == reference['bn_before_relu']


def test_preact_does_not_count_a_batch_twice():
    """In training, preact=True updates the running statistics exactly as a plain forward pass does."""
    for name in ('wrn_16_1', 'resnet8'):
        torch.manual_seed(0)
        plain = model_dict[name](num_classes=10).train()
        with_preact = model_dict[name](num_classes=10).train()
        with_preact.load_state_dict(plain.state_dict())
        x = tensor(1, 4, 3, 32, 32)
        plain(x)
        with_preact(x, is_feat=True, preact=True)
        for key, value in plain.state_dict().items():
            assert torch.equal(value, with_preact.state_dict()[key]), key


@pytest.mark.parametrize('name', ['resnet8x4', 'wrn_16_2', 'vgg8', 'MobileNetV2', 'ResNet18_cifar'])
def test_initial_weights(name):
    """Kaiming's normal distribution by fan_out, in convolutions large enough to measure; batch norms 1, 0."""
    torch.manual_seed(0)
    large = 0
    for module in model_dict[name](num_classes=10).modules():
        if isinstance(module, torch.nn.Conv2d) and module.weight.numel() > 8000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            large += 1
        elif isinstance(module, torch.nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()
    assert large >= 4


def test_vgg_pools_once_more_for_64_pixels():
    feats, _ = model_dict['vgg8'](num_classes=10)(torch.zeros(2, 3, 64, 64), is_feat=True)
    assert [f.shape[-1] for f in feats[:-1]] == [64, 32, 16, 8, 4]


def test_names():
    assert resolve('ResNet50', 32) == 'ResNet50_cifar'
    assert resolve('resnet20', 32) == 'resnet20' and resolve('ResNet18', 224) == 'ResNet18'
    with pytest.raises(UserError, match='did you mean .*resnet32x4'):
        resolve('resnet32_4', 32, '--model_s')
    assert default_learning_rate('ShuffleV1') == 0.01 and default_learning_rate('vgg8') == 0.05


@pytest.mark.parametrize('name', WIDER)
def test_wider_nets_are_wider(name):
    widen, blocks = WIDER[name], {'ResNet18Double': 2, 'resnet34x4': 3}[name]
    with torch.device('meta'):
        net = model_dict[name](num_classes=10)
        feats, logits = net(torch.zeros(2, 3, 64, 64), is_feat=True)
    widths = [64 * widen, 64 * widen, 128 * widen, 256 * widen, 512 * widen, 512 * widen]
    assert [f.shape[1] for f in feats] == widths and logits.shape == (2, 10) and len(net.layer1) == blocks


@pytest.mark.parametrize('name', LOGITS_ONLY)
def test_vgg_features_are_the_ends_of_stages(name):
    with torch.device('meta'):
        feats, _ = model_dict[name](num_classes=10)(torch.zeros(2, 3, 64, 64), is_feat=True)
    assert [tuple(f.shape[1:]) for f in feats] == [
        (64, 64, 64), (128, 32, 32), (256, 16, 16), (512, 8, 8), (512, 4, 4), (25088,)]
