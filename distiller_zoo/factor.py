"""The method factor; its loss is in criteria/factor.py."""
import torch
import torch.nn.functional as F

from .base import Distiller, Spec, check_maps
from .criteria.factor import FactorTransfer, Paraphraser, Translator
from .first_stage import FirstStage


class FTDistiller(FirstStage, Distiller):
    """The first stage trains the paraphraser on the teacher alone and then freezes it."""

    spec = Spec(
        title='FT', paper='Kim et al., NeurIPS 2018, arXiv:1802.04977', uses='feats[-2], paraphrased in a first stage',
        published={'beta': 200.0}, needs=('feats',), first_stage=True, features_only=True)

    def build(self, opt, data, shapes_s, shapes_t):
        check_maps(opt, [shapes_s.feats[-2]], [shapes_t.feats[-2]])
        self.translator = Translator((2, *shapes_s.feats[-2]), (2, *shapes_t.feats[-2]))
        self.paraphraser = Paraphraser((2, *shapes_t.feats[-2]))
        self.criterion = FactorTransfer()

    def init_loss(self, images):
        f_t = self.teacher_outputs(images).feats[-2]
        _, reconstruction = self.paraphraser(f_t)
        return F.mse_loss(reconstruction, f_t)

    @classmethod
    def init_rate(cls, opt):
        """0.01 for a student that is a ResNet or wide ResNet, as in RepDistiller, else --learning_rate."""
        return 0.01 if opt.model_s.startswith(('resnet', 'wrn')) else opt.learning_rate

    def end_first_stage(self):
        super().end_first_stage()
        self.paraphraser.requires_grad_(False)

    def method_loss(self, out_s, out_t, target, index):
        with torch.no_grad():
            factor_t = self.paraphraser(out_t.feats[-2], is_factor=True)
        return self.criterion(self.translator(out_s.feats[-2]), factor_t)
