"""The method fsp: its flags and published values, and the outputs that feed criteria/fsp.py."""
from .base import Distiller, PairError
from .criteria.fsp import FSP


class FSPDistiller(Distiller):
    """The first stage fits the flows; the second trains the task with soft labels, and has no use for beta."""

    title = 'FSP'
    paper = 'Yim et al., CVPR 2017'
    uses = 'feats[:-1], in a first stage'
    init_needs = ('feats',)
    published = {'beta': 50.0}
    init_stage = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, shapes_s.feats[:-1], shapes_t.feats[:-1])
        try:
            self.criterion = FSP(*([(2, *shape) for shape in shapes.feats[:-1]] for shapes in (shapes_s, shapes_t)))
        except ValueError as error:
            raise PairError(f'--distill fsp: {error}') from error

    def init_loss(self, images):
        return sum(self.criterion(self.student.outputs(images).feats[:-1], self.ask_teacher(images).feats[:-1]))
