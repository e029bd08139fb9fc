"""How alike teacher and students are, and how sure: numbers of trained nets on test images."""
from collections.abc import Iterable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from models.base import Net

BINS = 15           # of the confidence, as Guo et al. have them
CKA_BATCH = 100     # images whose maps are in memory at once


@torch.no_grad()
def read_test_set(loader: Iterable, nets: list[nn.Module], wanted: Iterable[int]
                  ) -> tuple[Tensor, list[Tensor], dict[int, Tensor]]:
    """(class of each test image (N,), logits (N, classes) of each net, number -> image (3, H, W)), on the CPU.

    loader: gives (images, target, index). wanted: numbers of the images to keep, as the nets see them. With no nets it
    stops at the last of them.
    """
    wanted, targets, logits, kept = {*wanted}, [], [[] for _ in nets], {}
    for images, target, index in loader:
        targets.append(target.cpu())
        for found, net in zip(logits, nets, strict=True):
            found.append(net(images).float().cpu())
        for place, number in enumerate(index.tolist()):
            if number in wanted:
                kept[number] = images[place].to('cpu', copy=True)      # not the whole batch
        if not nets and len(kept) == len(wanted):
            break
    return torch.cat(targets), [torch.cat(found) for found in logits], kept


@torch.no_grad()
def embeddings(net: Net, images: Tensor, batch: int) -> Tensor:
    """images (N, 3, H, W) -> the pooled embedding (N, C) on the CPU, `batch` images at a time on the net's device."""
    device = next(net.parameters()).device
    return torch.cat([net.outputs(part.to(device)).embedding.cpu() for part in images.split(batch)])


def tsne(embedding: Tensor, seed: int) -> Tensor:
    """(N, C) -> points (N, 2), N at least 4. Van der Maaten and Hinton, JMLR 2008; scikit-learn's, begun by PCA.

    The perplexity is 30, or for few images a third of their number. Embeddings that are all the same give one point.
    """
    from sklearn.manifold import TSNE
    x = embedding.double()
    x = x - x.mean(0)
    if not x.any():     # scikit-learn divides by their deviation, and then crashes
        return torch.zeros(len(x), 2)
    perplexity = min(30, (len(x) - 1) / 3)
    points = TSNE(perplexity=perplexity, init='pca', random_state=seed).fit_transform((x / x.std()).numpy())
    return torch.from_numpy(points)


def correlation_difference(logits_s: Tensor, logits_t: Tensor) -> Tensor:
    """Two (N, classes) -> (classes, classes), the absolute difference of the correlation matrices of the logits.

    Tian et al., ICLR 2020, Contrastive Representation Distillation, arXiv:1910.10699. A class whose logit is the same
    for all images has no correlation: NaN.
    """
    return (torch.corrcoef(logits_s.double().t()) - torch.corrcoef(logits_t.double().t())).abs()


def centred_gram(features: Tensor) -> Tensor:
    """(N, ...) -> (N * N,) float64: the products of all pairs of images, U-centred (Szekely and Rizzo, Annals of
    Statistics 2014), so that hsic is a dot product. N is at least 4."""
    x, n = features.flatten(1).float(), len(features)
    x = x - x.mean(0)       # changes nothing but the rounding
    gram = (x @ x.t()).double().fill_diagonal_(0)
    rows = gram.sum(1) / (n - 2)
    gram = gram - rows - rows[:, None] + rows.sum() / (n - 1)
    return gram.fill_diagonal_(0).flatten()


def hsic(grams_a: Tensor, grams_b: Tensor) -> Tensor:
    """Rows of centred_gram, (A, N * N) and (B, N * N) -> (A, B): the unbiased estimate HSIC_1 (Song et al., JMLR 2012)
    of each pair."""
    n = round(grams_a.shape[1] ** 0.5)
    return grams_a @ grams_b.t() / (n * (n - 3))


@torch.no_grad()
def stage_cka(teacher: Net, students: list[Net], images: Tensor, batch: int = CKA_BATCH) -> list[Tensor]:
    """Linear CKA of each feature of a student with each of the teacher: for each student (features_s, features_t).

    Features are Outputs.feats: the stem, the stages, the embedding; maps count whole, flattened to (N, C * H * W).
    Kornblith et al., ICML 2019, Similarity of Neural Network Representations Revisited, arXiv:1905.00414, in the
    minibatch form of Nguyen, Raghu and Kornblith, ICLR 2021, arXiv:2010.15327: HSIC_1 is unbiased and averaged over
    parts of at most `batch` images, and CKA = HSIC(s, t) / sqrt(HSIC(s, s) HSIC(t, t)). images: (N, 3, H, W), N at
    least 4. Chance can bring it a little below 0, and a feature that is the same for all images has none: NaN.
    """
    device, sums = next(teacher.parameters()).device, [0] * len(students)
    own_s, own_t = [0] * len(students), 0
    for part in images.tensor_split(-(-len(images) // batch)):
        part = part.to(device)
        grams_t = _grams(teacher, part)
        own_t = own_t + hsic(grams_t, grams_t).diagonal()
        for i, student in enumerate(students):
            grams_s = _grams(student, part)
            sums[i] = sums[i] + hsic(grams_s, grams_t)
            own_s[i] = own_s[i] + hsic(grams_s, grams_s).diagonal()
    return [(both / (own[:, None] * own_t).sqrt()).cpu() for both, own in zip(sums, own_s, strict=True)]


def _grams(net, images):
    return torch.stack([centred_gram(features) for features in net.outputs(images).feats])


def grad_cam(net: Net, images: Tensor, classes: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(where the net sees the class (N, H, W) from 0 to 1, logits (N, classes)) for images (N, 3, H, W).

    Selvaraju et al., ICCV 2017, Grad-CAM, arXiv:1610.02391: the map before pooling, its channels weighted with the mean
    gradient of the class's logit, summed, without what is negative, enlarged to the image and divided by its largest
    value. classes: (N,), else those that the net predicts. Raises LookupError for a net whose logits do not come from
    that map, as those of a transformer, which reads tokens.
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


class Calibration(NamedTuple):
    """Test images by how sure the net is of its answer, in BINS equal parts of (0, 1]."""

    count: Tensor           # (BINS,), images in each
    confidence: Tensor      # (BINS,), mean probability of the predicted class; 0 where there is no image
    accuracy: Tensor        # (BINS,), part of them that is right; 0 where there is no image
    ece: float              # the expected calibration error


def calibration(logits: Tensor, target: Tensor, bins: int = BINS) -> Calibration:
    """Of logits (N, classes) and target (N,). Guo et al., ICML 2017, On Calibration of Modern Neural Networks,
    arXiv:1706.04599: ECE is the mean of |accuracy - confidence| over the bins, each counted by its images."""
    confidence, predicted = F.softmax(logits.double(), dim=1).max(1)
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count, sure, right = (torch.bincount(place, weights, bins)
                          for weights in (None, confidence, (predicted == target).double()))
    each = count.clamp(min=1)
    return Calibration(count, sure / each, right / each, ((right - sure).abs().sum() / len(target)).item())


def top1(logits: Tensor, target: Tensor) -> float:
    """Percent of logits (N, classes) that are largest at target (N,): the accuracy, or with another net's predictions
    as target the agreement with it."""
    return (logits.argmax(1) == target).double().mean().item() * 100


def mean_kl(logits_s: Tensor, logits_t: Tensor) -> float:
    """Mean KL(teacher || student) in nats at temperature 1, of two (N, classes)."""
    log_s, log_t = (F.log_softmax(logits.double(), dim=1) for logits in (logits_s, logits_t))
    return F.kl_div(log_s, log_t, reduction='batchmean', log_target=True).item()
