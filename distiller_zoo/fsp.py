"""The method fsp; its loss is in criteria/fsp.py."""
import torch

from .base import Distiller, PairError, Spec, check_maps
from .criteria.fsp import FSP
from .first_stage import FirstStage


class FSPDistiller(FirstStage, Distiller):
    """The first stage fits the flows. The second trains the task with soft labels and does not use beta."""

    spec = Spec(
        title='FSP', paper='Yim et al., CVPR 2017', uses='feats[:-1], in a first stage', published={'beta': 50.0},
        first_stage=True, own_loss=False)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[:-1], shapes_t.feats[:-1])
        try:
            self.criterion = FSP(*([(2, *shape) for shape in shapes.feats[:-1]] for shapes in (shapes_s, shapes_t)))
        except ValueError as error:
            raise PairError(f'--distill fsp: {error}') from error

    def init_loss(self, images):
        with torch.no_grad():
            maps_t = self.teacher.outputs(images).feats[:-1]
        return sum(self.criterion(self.student.outputs(images).feats[:-1], maps_t))
