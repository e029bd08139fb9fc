"""The method reviewkd; its loss is in criteria/reviewkd.py."""
import torch.nn.functional as F

from .base import Distiller, Spec, check_maps, has_preact, is_imagenet
from .criteria.reviewkd import HCLLoss, ReviewStack


class ReviewKDDistiller(Distiller):
    """ReviewKD. Nets without pre-activations, such as timm's and torchvision's, return the maps after activation."""

    spec = Spec(
        title='ReviewKD', paper='Chen et al., CVPR 2021, arXiv:2104.09044',
        uses="stages and embedding; the teacher's stages before their ReLU, if it has them",
        published={'alpha': 0.0, 'beta': 5.0, 'loss_warmup_epochs': 20},
        published_imagenet={'beta': 1.0, 'loss_warmup_epochs': 1}, published_entropy_weights={'entropy_bound': 'log'},
        needs=('feats',), preact_t=True, features_only=True)

    @classmethod
    def published_options(cls, opt):
        options = super().published_options(opt)
        return {**options, 'entropy_T': 2.0} if opt.entropy_weights and is_imagenet(opt) else options

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, shapes_s.feats[1:-1], shapes_t.feats[1:-1])
        before_relu = is_imagenet(opt)
        self.activate = not before_relu and not self.student.activated      # the ReLU that the net applies later
        self.preact_s = self.activate or (before_relu and has_preact(self.student, data.image_size))
        self.preact_t = has_preact(self.teacher, data.image_size)
        if not self.preact_t:
            print(f'--distill {opt.distill}: {opt.model_t} has no pre-activations; its stages are taken as they are')
        self.levels = min(len(shapes_s.feats), len(shapes_t.feats)) - 1     # from the deep end, without the stem
        self.stack = ReviewStack(*([(*shape, 1, 1)[:3] for shape in shapes.feats[-self.levels:]]
                                   for shapes in (shapes_s, shapes_t)))
        self.criterion = HCLLoss()

    def method_loss(self, out_s, out_t, target, index):
        *maps_s, embedding_s = out_s.feats[-self.levels:]
        *maps_t, embedding_t = out_t.feats[-self.levels:]
        if self.activate:
            maps_s = [F.relu(f) for f in maps_s]
        fused = self.stack([*maps_s, embedding_s[..., None, None]])
        return self.criterion(fused, [*maps_t, embedding_t[..., None, None]],
                              self.entropy_weights(out_s.logits, out_t.logits))
