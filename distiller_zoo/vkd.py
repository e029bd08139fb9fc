"""The method vkd; its loss is in criteria/vkd.py."""
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.vkd import OrthogonalProjector, VkDLoss


class VkDDistiller(Distiller):
    """The student's embedding is the mean of its last map; for a transformer, the mean of its patch tokens."""

    spec = Spec(
        title='VkD', paper='Miles, Elezi and Deng, CVPR 2024, arXiv:2403.06213', uses='embedding',
        published={'beta': 1.0, 'kd_T': 1.0}, needs=('embedding',), features_only=True)

    @classmethod
    def add_arguments(cls, add):
        add('--vkd_norm', choices=('layer', 'standardize'), default='layer',
            help="layer: normalise the teacher's embedding over its channels; standardize: both nets' over the batch")

    def build(self, opt, data, shapes_s, shapes_t):
        if opt.vkd_norm == 'standardize' and opt.batch_size < 2:
            raise UserError(f'--batch_size {opt.batch_size}: --vkd_norm standardize compares the images of a batch; '
                            f'give at least 2 for each process, or --vkd_norm layer')
        self.projector = OrthogonalProjector(shapes_s.map[0], *shapes_t.embedding)
        self.criterion = VkDLoss(opt.vkd_norm)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        return self.criterion(self.projector(out_s.map.mean((2, 3))), out_t.embedding)
