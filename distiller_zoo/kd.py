"""The method kd: the student learns the teacher's softened logits."""
from .base import Distiller, Spec, is_imagenet
from .criteria.kd import distill_kl


class KDDistiller(Distiller):
    """The method is the soft-label loss of its base class; its weight is alpha, not beta."""

    spec = Spec(
        title='KD', paper='Hinton et al., NIPS workshop 2014, arXiv:1503.02531', uses='logits', has_method_loss=False,
        published_logit_stand={'gamma': 0.1, 'alpha': 9.0, 'kd_T': 2.0},
        published_entropy_weights={'gamma': 0.1, 'alpha': 0.9, 'entropy_bound': 'classes'})

    @classmethod
    def published_options(cls, opt):
        options, imagenet = super().published_options(opt), is_imagenet(opt)
        if opt.entropy_weights and imagenet:
            options |= {'entropy_T': 2.0, 'entropy_bound': 'log',
                        **({} if opt.logit_stand else {'gamma': 1.0, 'alpha': 0.5, 'kd_T': 1.0})}
        if opt.logit_stand:
            return {**options, 'gamma': 1.0} if imagenet else options
        if opt.opt == 'dot':
            return {**options, **({'gamma': 0.5, 'alpha': 0.5, 'kd_T': 1.0} if imagenet else
                                  {'gamma': 0.1, 'alpha': 0.9})}
        return options

    def soft_label_loss(self, out_s, out_t, image_weights=None):
        logits_s, logits_t, temperature = self.soft_labels(out_s, out_t)
        return distill_kl(logits_s, logits_t, temperature, self.entropy_weights(logits_s, logits_t, image_weights))
