"""The methods ikl and gkl; their losses are in criteria/ikl.py."""
import torch.nn.functional as F

from helper import distributed
from helper.cli import number
from helper.errors import UserError

from .base import Distiller, Spec, in_float32
from .criteria.ikl import ClassMeans, GKLLoss, IKLLoss

OWN_BUFFERS = ('class_means.sums', 'class_means.counts')


class IKLDistiller(Distiller):
    """With --ikl_prior on the weights of the classes are the teacher's mean probabilities in the epoch before."""

    spec = Spec(
        title='IKL', paper='Cui et al., NeurIPS 2024, arXiv:2305.13948', uses='logits',
        published={'alpha': 0.0, 'beta': 1.0, 'loss_warmup_epochs': 20, 'ikl_beta': 8.0, 'ikl_weight_T': 100.0,
                   'ikl_prior': 'off'},
        published_imagenet={'kd_T': 1.0, 'loss_warmup_epochs': 1, 'ikl_beta': 0.5, 'ikl_weight_T': 1.0,
                            'ikl_prior': 'on'},
        own_buffers=OWN_BUFFERS, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        add('--ikl_alpha', type=number(float, low=0), default=1.0, help='weight of the soft labels in ikl and gkl')
        add('--ikl_beta', type=number(float, low=0),
            help='weight of the pairs of classes; not given: 8, in gkl 16, for ImageNet 0.5')
        add('--ikl_weight_T', type=number(float, above=0, high=1e4),
            help="temperature of the teacher's probabilities that weight the classes; not given: 100, in gkl 4, for "
                 'ImageNet 1')
        add('--ikl_prior', choices=('on', 'off'),
            help='weight the classes by the mean probabilities of the image\'s class, not of the image; not '
                 'given: off, in gkl and for ImageNet on')

    @classmethod
    def check_options(cls, opt):
        super().check_options(opt)
        for flag in ('mixup', 'cutmix', 'unlabelled') if opt.ikl_prior == 'on' else ():
            if getattr(opt, flag):
                raise UserError(f'--{flag} {getattr(opt, flag)}: --distill {opt.distill} with --ikl_prior on needs one '
                                f'class for each image; give --ikl_prior off, or leave --{flag} out')

    def build(self, opt, data, shapes_s, shapes_t):
        self.weight_temperature = opt.ikl_weight_T
        self.class_means = ClassMeans(data.num_classes) if opt.ikl_prior == 'on' else None
        self.criterion = self.make_criterion(opt)

    def make_criterion(self, opt):
        return IKLLoss(opt.ikl_alpha, opt.ikl_beta, opt.kd_T, opt.ikl_weight_T)

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        prior = None
        if self.class_means is not None:
            prior = self.class_means(target)
            self.class_means.add(F.softmax(out_t.logits / self.weight_temperature, dim=1), target)
        return self.criterion(out_s.logits, out_t.logits, prior)

    def end_epoch(self):
        if self.class_means is not None:
            for sums in (self.class_means.sums, self.class_means.counts):
                sums.copy_(distributed.total(sums))
            self.class_means.turn()


class GKLDistiller(IKLDistiller):
    spec = Spec(
        title='GKL', paper='Cui et al., TPAMI 2026, arXiv:2503.08038', uses='logits',
        published={**IKLDistiller.spec.published, 'ikl_beta': 16.0, 'ikl_weight_T': 4.0, 'ikl_prior': 'on',
                   'gkl_power': 0.05},
        published_imagenet={**IKLDistiller.spec.published_imagenet, 'loss_warmup_epochs': 5, 'gkl_power': 0.6},
        own_buffers=OWN_BUFFERS, reads_kd_T=True)

    @classmethod
    def add_arguments(cls, add):
        super().add_arguments(add)
        add('--gkl_power', type=number(float, low=0, high=10),
            help='exponent of the weights of the classes; not given: 0.05, for ImageNet 0.6')

    def make_criterion(self, opt):
        return GKLLoss(opt.ikl_alpha, opt.ikl_beta, opt.gkl_power, opt.kd_T, opt.ikl_weight_T)
