"""The method abound; its loss is in criteria/abound.py."""
import torch

from .base import Distiller, Spec, check_maps, check_preact
from .criteria.abound import ABLoss, Connector
from .first_stage import FirstStage


class ABDistiller(FirstStage, Distiller):
    """The first stage fits activation boundaries. The second trains with labels and soft labels and ignores beta."""

    spec = Spec(
        title='AB', paper='Heo et al., AAAI 2019, arXiv:1811.03233', uses='stages before their ReLU, in a first stage',
        published={'beta': 1.0}, first_stage=True, has_method_loss=False, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        check_preact(self, opt, data)
        stages_s, stages_t = ([(2, *shape) for shape in shapes.feats[1:-1]] for shapes in (shapes_s, shapes_t))
        self.connector = Connector(stages_s, stages_t)
        self.criterion = ABLoss(len(self.connector.connectors))

    def end_first_stage(self):
        super().end_first_stage()
        self.connector.requires_grad_(False)

    def init_loss(self, images):
        with torch.no_grad():
            maps_t = self.teacher.outputs(images, preact=True).feats[1:-1]
        maps_s = self.student.outputs(images, preact=True).feats[1:-1]
        return sum(self.criterion(self.connector(maps_s), maps_t))
