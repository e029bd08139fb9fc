"""The method kd: the student learns the teacher's softened logits."""
from .base import Distiller, Spec, is_imagenet


class KDDistiller(Distiller):
    """The method is the soft-label loss of its base class; its weight is alpha, not beta."""

    spec = Spec(
        title='KD', paper='Hinton et al., NIPS workshop 2014, arXiv:1503.02531', uses='logits', has_method_loss=False,
        published_logit_stand={'gamma': 0.1, 'alpha': 9.0, 'kd_T': 2.0})

    @classmethod
    def published_options(cls, opt):
        options, imagenet = super().published_options(opt), is_imagenet(opt)
        if opt.logit_stand:
            return {**options, 'gamma': 1.0} if imagenet else options
        if opt.opt == 'dot':
            return {**options, **({'gamma': 0.5, 'alpha': 0.5, 'kd_T': 1.0} if imagenet else
                                  {'gamma': 0.1, 'alpha': 0.9})}
        return options
