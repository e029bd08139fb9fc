"""The method simkd; its loss is in criteria/simkd.py."""
import copy

import torch
import torch.nn.functional as F
from torch import nn

from helper.cli import number
from models.base import probe

from .base import Distiller, Spec, check_heads, check_maps
from .criteria.simkd import SimKDProjector, project


class Reused(nn.Module):
    """The network that SimKD deploys: the student's body, the projector, and the teacher's classifier.

    classifier: a linear layer, or a LayerNorm and a linear layer, for the pooled map. size: largest height of the map
    that the projector reads; larger maps are pooled.
    """

    def __init__(self, body: nn.Module, projector: SimKDProjector, classifier: nn.Module, size: int):
        super().__init__()
        self.body, self.projector, self.classifier = body, projector, classifier
        self.size = size
        device = next(classifier.parameters()).device
        self.register_buffer('map_size', torch.tensor(size, device=device))     # read by rebuild_inference_net
        if isinstance(classifier, nn.Sequential):
            self.register_buffer('norm_eps', torch.tensor(classifier[0].eps, dtype=torch.float64, device=device))

    def forward(self, images):
        projected = project(self.body.forward_features(images), self.projector, self.size)
        return self.classifier(projected.mean((2, 3)))


class SimKDDistiller(Distiller):
    """Chen et al., CVPR 2022, Knowledge Distillation with the Reused Teacher Classifier, arXiv:2203.14001.

    The loss is the mean squared error between the student's projected map and the teacher's map; the larger of the two
    is average-pooled first. The student's own classifier is not trained; accuracies are of the deployed network.
    """

    spec = Spec(
        title='SimKD', paper='Chen et al., CVPR 2022, arXiv:2203.14001',
        uses="the map before pooling, the teacher's classifier", published={'gamma': 0.0, 'alpha': 0.0, 'beta': 1.0},
        needs=('map',), changes_student=True, deploys_student=False)

    @classmethod
    def add_arguments(cls, add):
        add('--simkd_factor', type=number(int, low=1, high=4096), default=2,
            help="channels of the teacher's map divided by those in the middle of the projector")

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, [shapes_s.map], [shapes_t.map])
        check_heads(opt, [('--path-t', opt.model_t, self.teacher, shapes_t)], allow_norm=True)
        self.size = min(shapes_s.map[-1], shapes_t.map[-1])
        self.projector = SimKDProjector(shapes_s.map[0], shapes_t.map[0], opt.simkd_factor)
        self.classifier = copy.deepcopy(self.teacher.pooled_head())     # frozen
        freeze_unused(self.student, data.image_size, 'map')

    def inference_net(self):
        net = Reused(self.student, self.projector, self.classifier, self.size)
        net.training = self.training        # not train(), which would set the mode of a frozen student too
        return net

    @classmethod
    def rebuild_inference_net(cls, student, weights):
        normed = 'norm_eps' in weights
        classifier = nn.Linear(*weights[f'classifier{".1" * normed}.weight'].shape[::-1])
        mid, c_s = weights['projector.0.conv.weight'].shape[:2]
        projector = SimKDProjector(c_s, classifier.in_features, max(1, classifier.in_features // max(1, mid)))
        if normed:
            classifier = nn.Sequential(nn.LayerNorm(classifier.in_features, float(weights['norm_eps'])), classifier)
        size = int(weights['map_size'])
        if size < 1:
            raise ValueError(f'map_size {size}')
        return Reused(student, projector, classifier, size)

    def student_outputs(self, images):
        """Outputs with the projected map and the logits of the teacher's classifier."""
        out = self.student.outputs(images)
        projected = project(out.map, self.projector, self.size)
        return out._replace(logits=self.classifier(projected.mean((2, 3))), map=projected)

    def method_loss(self, out_s, out_t, target, index):
        f_t = out_t.map
        if f_t.shape[-1] > self.size:
            f_t = F.adaptive_avg_pool2d(f_t, self.size)
        return F.mse_loss(out_s.map, f_t)


def freeze_unused(net, image_size: int, field: str) -> None:
    """Freeze the layers of a net that do not contribute to a field of its Outputs: those after it."""
    parameters = [*net.parameters()]
    output = getattr(probe(net, image_size, gradient=True), field)
    for p, grad in zip(parameters, torch.autograd.grad(output.sum(), parameters, allow_unused=True), strict=True):
        p.requires_grad_(grad is not None)
