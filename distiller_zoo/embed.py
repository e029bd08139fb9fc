"""The method embed: a student without a classifier learns the teacher's features, without labels."""
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import nn

from helper.cli import AUTO, number
from helper.errors import UserError
from helper.meter import Meter
from models.classes import find_classifier

from .base import Distiller, Spec, check_maps, in_float32
from .criteria.embed import match_loss
from .simkd import freeze_unused

# Flags that have no effect without classes.
CLASS_FLAGS = {'patience', 'no_test', 'val_fraction', 'train_fraction', 'balance_classes', 'bce_loss', 'smoothing',
               'mixup', 'cutmix', 'same_classes', 'teacher_head', 'kd_T'}


class EmbedDistiller(Distiller):
    """A linear projection of the student's embedding approximates the teacher's; --embed_map does the same with maps.

    criteria/embed.py has the loss. It is the loss of AM-RADIO for spatial features; for embeddings its authors use the
    cosine distance alone, and their projections have two layers. A map of another size is average-pooled or
    interpolated to the size of the teacher's. The projections and the classifier are not in the checkpoint.
    """

    spec = Spec(
        title='Embed', paper='Ranzinger et al., CVPR 2024, arXiv:2312.06709, adapted', uses='embedding, without labels',
        published={'gamma': 0.0, 'alpha': 0.0, 'beta': 1.0}, needs=('embedding',), reads_teacher=True,
        features_only=True, learns_classes=False)
    metrics = ('loss', 'cosine')

    @classmethod
    def add_arguments(cls, add):
        add('--embed_map', type=number(float, low=0), default=0.0,
            help="weight of the same loss on the maps before pooling (of a transformer: the tokens)")

    @classmethod
    def check_options(cls, opt):
        super().check_options(opt)
        for flag in sorted(CLASS_FLAGS & opt.flags.given):
            raise UserError(f'--{flag}: has no effect with --distill embed, which learns no classes; leave it out')
        for flag, weight in (('-r', opt.gamma), ('-a', opt.alpha)):
            if weight:
                raise UserError(f'{flag} {weight:g}: --distill embed learns no classes; leave it out')
        if opt.beta == AUTO:
            raise UserError(f'-b {AUTO}: compares gradients with those of the cross-entropy, but --distill embed '
                            f'has no cross-entropy; give a number')
        if opt.embed_map and opt.teacher_cache:
            raise UserError(f'--embed_map {opt.embed_map:g}: --teacher_cache stores no maps; leave one of the two out')

    def build(self, opt, data, shapes_s, shapes_t):
        self.map_weight = opt.embed_map
        self.projection = nn.Linear(*shapes_s.embedding, *shapes_t.embedding)
        if self.map_weight:
            check_maps(opt, [shapes_s.map], [shapes_t.map])
            self.spec = replace(self.spec, needs=('embedding', 'map'))
            self.map_projection = nn.Conv2d(shapes_s.map[0], shapes_t.map[0], 1)
        self.classifier = find_classifier(self.student, data.num_classes, f'--model_s {opt.model_s}')
        freeze_unused(self.student, data.image_size, 'embedding')

    @in_float32
    def method_loss(self, out_s, out_t, target, index):
        loss = match_loss(self.projection(out_s.embedding), out_t.embedding)
        if self.map_weight:
            loss = loss + self.map_weight * match_loss(self.map_projection(resize(out_s.map, out_t.map)), out_t.map)
        return loss

    def checkpoint(self):
        content = super().checkpoint()
        weights = {name: value for name, value in content['model'].items() if name not in self.classifier}
        return {'model': weights, 'num_classes': 0, 'classes': []}

    @torch.inference_mode()
    def validate(self, loader, run, split):
        """Return {'test_loss', 'test_cosine'}: the mean cosine similarity of the embeddings."""
        self.eval()
        net, meter = self.inference_net(), Meter()
        for images, target, index in loader:
            out_s, out_t = net.outputs(images), self.teacher_outputs(images)
            cosine = F.cosine_similarity(self.projection(out_s.embedding).float(), out_t.embedding.float()).mean()
            loss = self.beta * self.method_loss(out_s, out_t, target, index)
            meter.update({'loss': loss, 'cosine': cosine}, None, target)
            run.stop_if_asked()
        return {f'{split}_{name}': value for name, value in meter.averages().items()}


def resize(x, like):
    """Resize the map x (N, C, H, W) to the height and width of the map `like`."""
    size = like.shape[2:]
    if x.shape[2:] == size:
        return x
    if x.shape[2] >= size[0]:
        return F.adaptive_avg_pool2d(x, size)
    return F.interpolate(x, size, mode='bilinear', align_corners=False)
