"""The method abound: its flags and published values, and the outputs that feed criteria/abound.py."""
from .base import Distiller
from .criteria.abound import ABLoss, Connector


class ABDistiller(Distiller):
    """The first stage fits the boundaries; the second trains the task with soft labels, and has no use for beta."""

    title = 'AB'
    paper = 'Heo et al., AAAI 2019, arXiv:1811.03233'
    uses = 'stage pre-activations, in a first stage'
    init_needs = ('feats',)
    published = {'beta': 1.0}
    init_stage = True

    def build(self, opt, data, shapes_s, shapes_t):
        self.check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        self.check_preact(opt, data)
        stages_s, stages_t = ([(2, *shape) for shape in shapes.feats[1:-1]] for shapes in (shapes_s, shapes_t))
        self.connector = Connector(stages_s, stages_t)
        self.criterion = ABLoss(len(self.connector.connectors))

    def finish_init(self):
        super().finish_init()
        self.connector.requires_grad_(False)

    def init_loss(self, images):
        maps_s, maps_t = (ask(images, preact=True).feats[1:-1] for ask in (self.student.outputs, self.ask_teacher))
        return sum(self.criterion(self.connector(maps_s), maps_t))
