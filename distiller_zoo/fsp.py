"""The method fsp; its loss is in criteria/fsp.py."""
import torch

from .base import Distiller, PairError, Spec, check_maps
from .criteria.fsp import FSP
from .first_stage import FirstStage


class FSPDistiller(FirstStage, Distiller):
    """The first stage minimises the FSP loss. The second trains with labels and soft labels and ignores beta."""

    spec = Spec(
        title='FSP', paper='Yim et al., CVPR 2017', uses='feats[:-1], in a first stage', published={'beta': 50.0},
        first_stage=True, has_method_loss=False, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[:-1], shapes_t.feats[:-1])
        try:
            # The criterion takes shapes with a batch dimension.
            maps_s, maps_t = ([(2, *shape) for shape in shapes.feats[:-1]] for shapes in (shapes_s, shapes_t))
            self.criterion = FSP(maps_s, maps_t)
        except ValueError as error:
            raise PairError(f'--distill fsp: {error}') from error

    def init_loss(self, images):
        with torch.no_grad():       # not by teacher_outputs: the second stage needs logits alone
            maps_t = self.teacher.outputs(images).feats[:-1]
        return sum(self.criterion(self.student.outputs(images).feats[:-1], maps_t))
