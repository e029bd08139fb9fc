"""Metrics of trained nets on test images: similarity to the teacher, Grad-CAM, calibration and mistakes."""
from collections.abc import Collection, Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.class_metrics import Calibration, calibrate, predictions
from models.base import Net

CKA_BATCH = 100     # images whose feature maps are in memory at once


class TestSet(NamedTuple):
    """The result of read_test_set, on the CPU, for N images without unreadable ones."""

    index: Tensor               # (N,), number of each image in the test set
    target: Tensor              # (N,), its class
    logits: list[Tensor]        # (N, classes) of each net
    images: dict[int, Tensor]   # number -> preprocessed image (3, H, W)


@torch.no_grad()
def read_test_set(loader: Iterable, nets: list[nn.Module], numbers: Collection[int]) -> TestSet:
    """Run the nets on all test images.

    loader: yields (images, target, index). numbers: of the images to return. Without nets, reading stops at the last
    of them.
    """
    indices, targets, logits, selected = [], [], [[] for _ in nets], {}
    for images, target, index in loader:
        indices.append(index.cpu())
        targets.append(target.cpu())
        for batches, net in zip(logits, nets, strict=True):
            batches.append(net(images).float().cpu())
        selected |= {number: images[i].to('cpu', copy=True)        # a view would keep the whole batch
                 for i, number in enumerate(index.tolist()) if number in numbers}
        if not nets and len(selected) == len(numbers):
            break
    return TestSet(torch.cat(indices), torch.cat(targets), [torch.cat(batches) for batches in logits], selected)


def surest_mistakes(logits: Tensor, target: Tensor, most: int) -> list[int]:
    """Positions of the at most `most` wrong predictions with the highest confidence, from (N, classes) and (N,)."""
    predicted, _, confidence = predictions(logits, target)
    wrong = (predicted != target).nonzero()[:, 0]
    return wrong[confidence[wrong].argsort(descending=True, stable=True)][:most].tolist()


@torch.no_grad()
def embeddings(net: Net, images: Tensor, batch: int) -> Tensor:
    """images (N, 3, H, W) -> the pooled embedding (N, C) on the CPU, `batch` images at a time on the net's device."""
    device = next(net.parameters()).device
    return torch.cat([net.outputs(part.to(device)).embedding.cpu() for part in images.split(batch)])


def tsne(embedding: Tensor, seed: int) -> Tensor:
    """(N, C) -> points (N, 2), N at least 4. Van der Maaten and Hinton, JMLR 2008; scikit-learn's, initialised by PCA.

    The perplexity is 30, or for fewer than 91 images a third of their number. Identical embeddings give one point.
    """
    from sklearn.manifold import TSNE
    x = embedding.double()
    x = x - x.mean(0)
    if not x.any():     # scikit-learn fails, since it divides by their deviation
        return torch.zeros(len(x), 2)
    perplexity = min(30, (len(x) - 1) / 3)
    points = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform((x / x.std()).numpy())
    return torch.from_numpy(points)


def correlation_difference(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Two (N, classes) -> (classes, classes), the absolute difference of the correlation matrices of the logits.

    Tian et al., ICLR 2020, arXiv:1910.10699. NaN for a class whose logit is the same for all images.
    """
    return (torch.corrcoef(logits_s.double().t()) - torch.corrcoef(logits_t.double().t())).abs()


def centred_gram(features: Tensor) -> Tensor:
    """(N, ...) -> (N * N,) float64, N at least 4: the U-centred Gram matrix, with which hsic is a dot product. Szekely
    and Rizzo, Annals of Statistics 2014."""
    x, n = features.flatten(1).float(), len(features)
    x = x - x.mean(0)       # for the rounding alone
    gram = (x @ x.t()).double().fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows - rows[:, None] + rows.sum() / (n - 1)
    return gram.fill_diagonal_(0).flatten()


def hsic(grams_a: Tensor, grams_b: Tensor) -> Tensor:
    """The unbiased HSIC_1 (Song et al., JMLR 2012) of each pair of rows, (A, N * N) and (B, N * N) -> (A, B)."""
    n = round(grams_a.shape[1] ** 0.5)
    return grams_a @ grams_b.t() / (n * (n - 3))


@torch.no_grad()
def stage_cka(teacher: Net, students: list[Net], images: Tensor, batch: int = CKA_BATCH) -> list[Tensor]:
    """Linear CKA between the features of each student and of the teacher: for each student (features_s, features_t).

    Features are Outputs.feats, maps flattened to (N, C * H * W). images: (N, 3, H, W), N at least 4. Kornblith et al.,
    ICML 2019, arXiv:1905.00414, in the minibatch form of Nguyen et al., ICLR 2021, arXiv:2010.15327: the unbiased
    HSIC_1 is averaged over parts of at most `batch` images, and CKA = HSIC(s, t) / sqrt(HSIC(s, s) HSIC(t, t)). A value
    can be slightly below 0 by chance, and is NaN for a feature that is the same for all images.
    """
    device, total = next(teacher.parameters()).device, 0
    for part in images.tensor_split(-(-len(images) // batch)):
        grams = [torch.stack([centred_gram(features) for features in net.outputs(part.to(device)).feats])
                 for net in (teacher, *students)]
        total = total + hsic(torch.cat(grams), torch.cat(grams))
    norm = total.diagonal()
    cka = (total / (norm[:, None] * norm).sqrt()).cpu()[:, :len(grams[0])]
    return [*cka.split([len(rows) for rows in grams])][1:]


def grad_cam(net: Net, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(class activation maps (N, H, W) from 0 to 1, logits (N, classes)) for images (N, 3, H, W).

    Selvaraju et al., ICCV 2017, Grad-CAM, arXiv:1610.02391: the channels of the map before pooling are weighted with
    the mean gradient of the class's logit and summed; the positive part is resized to the image and divided by its
    maximum. classes: (N,); None: the predicted ones. Raises LookupError if the logits do not depend on that map, as in
    a transformer.
    """
    with torch.enable_grad():
        out = net.outputs(images.detach().requires_grad_())
        features, logits = out.map, out.logits
        classes = logits.argmax(1) if classes is None else classes
        gradient, = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), features, allow_unused=True)
    if gradient is None:
        raise LookupError('the logits do not come from the map before pooling')
    cam = F.relu((gradient.mean((2, 3), keepdim=True) * features.detach()).sum(1, keepdim=True))
    cam = F.interpolate(cam, images.shape[2:], mode='bilinear')[:, 0]
    return cam / cam.amax((1, 2), keepdim=True).clamp(min=1e-12), logits.detach()


def calibration(logits: Tensor, target: Tensor) -> Calibration:
    """Calibration in 15 bins from logits (N, classes) and target (N,)."""
    confidence, predicted = F.softmax(logits.double(), dim=1).max(1)
    return calibrate(confidence, (predicted == target).double())


def top1(logits: Tensor, target: Tensor) -> float:
    """Accuracy in percent of logits (N, classes); with another net's predictions as target (N,), the agreement."""
    return (logits.argmax(1) == target).double().mean().item() * 100


def mean_kl(logits_s: Tensor, logits_t: Tensor) -> float:
    """Mean KL(teacher || student) in nats at temperature 1, from two (N, classes)."""
    log_s, log_t = (F.log_softmax(logits.double(), dim=1) for logits in (logits_s, logits_t))
    return F.kl_div(log_s, log_t, reduction='batchmean', log_target=True).item()
