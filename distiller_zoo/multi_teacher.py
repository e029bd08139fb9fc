"""Several teachers: --path-t A B C applies the method with each of them and averages the losses."""
from dataclasses import replace
from types import SimpleNamespace

from torch import nn

from helper.cli import AGREE
from models.ensemble import Ensemble, options_of_teachers

from .base import Distiller
from .combined import as_part, why_not_in_parts
from .criteria.multi_teacher import image_weights
from .multi_view import MultiView
from .spec import Spec


class SeveralTeachers(Distiller):
    """Each part applies the method with one teacher and separate trainable layers; the parts share the student.

    Each loss is the mean over the parts, weighted by --teacher_weights. With --teacher_weights agree, the loss on soft
    labels weights the teachers for each image, and all other losses are plain means.
    """

    spec = Spec(title='', paper='', uses='')     # with_teachers() sets both
    method: type[Distiller]

    def __init__(self, student: nn.Module, teacher: Ensemble, opt, data):
        super().__init__(student, teacher[0], opt, data)
        self.__dict__['teacher'] = teacher      # not a submodule, as in Distiller
        self.parts = nn.ModuleList()
        for net, teacher_opt in zip(teacher, options_of_teachers(opt), strict=True):
            # The optimiser and --model_ema belong to the whole module, not to its parts.
            part_opt = SimpleNamespace(**{**vars(teacher_opt), 'opt': 'sgd', 'model_ema': None})
            self.parts.append(as_part(self.method(student, net, part_opt, data)))
        self.preact_s = self.parts[0].preact_s
        self.auto_weights = self.parts[0].auto_weights      # measures the mean losses, not those of a part
        for part in self.parts:
            part.auto_weights = None
        self.agree = opt.teacher_weights == AGREE
        weights = [1.0] * len(teacher) if self.agree or not opt.teacher_weights else opt.teacher_weights
        self.shares = [weight / sum(weights) for weight in weights]
        if self.agree and self.uses_method_loss:
            print(f'--teacher_weights {AGREE}: weights the soft labels; other losses are plain means over the teachers')

    @classmethod
    def has_method_loss(cls, opt):
        return cls.method.has_method_loss(opt)

    def teacher_outputs(self, images, numbers=None):
        """A list with the outputs of each teacher. numbers: only of these teachers, from 0."""
        parts = self.parts if numbers is None else [self.parts[i] for i in numbers]
        return [part.teacher_outputs(images) for part in parts]

    def distillation_losses(self, out_s, out_t, target, index):
        """As in Distiller, but out_t is a list by teacher; with several views, a list of such lists by view."""
        out_t = [*zip(*out_t, strict=True)] if len(self.spec.views) > 1 else out_t      # now by teacher
        weights = image_weights([out.logits for out in out_t], 'confidence', target) if self.agree else \
            [None] * len(self.parts)
        part_losses = [part.distillation_losses(out_s, out, target, index, weight)
                       for part, out, weight in zip(self.parts, out_t, weights, strict=True)]
        return {name: sum(share * losses[name] for share, losses in zip(self.shares, part_losses, strict=True))
                for name in part_losses[0]}

    def weights(self):
        return self.parts[0].weights()

    def prepare(self, data):
        for part in self.parts:
            part.prepare(data)

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        for part in self.parts:
            part.begin_epoch(epoch, epochs)

    def end_epoch(self):
        for part in self.parts:
            part.end_epoch()

    def pictures(self):
        return {f'{name}_{number}': matrix for number, part in enumerate(self.parts, 1)
                for name, matrix in part.pictures().items()}


def why_one_teacher(name: str, method: type[Distiller]) -> str:
    """Why a method, alone or in a sum, cannot learn from several teachers; '' if it can."""
    if reason := why_not_in_parts(name, method):
        return reason
    return f'{name} has a first stage' if method.spec.first_stage else ''


def with_teachers(method: type[Distiller], count: int) -> type[SeveralTeachers]:
    """Return the Distiller class of a method with `count` teachers, which takes an Ensemble of them."""
    buffers = tuple(f'parts.{i}.{name}' for i in range(count) for name in method.spec.own_buffers)
    bases = (MultiView, SeveralTeachers) if len(method.spec.views) > 1 else (SeveralTeachers,)
    return type('SeveralTeachers', bases, {'method': method, 'spec': replace(method.spec, own_buffers=buffers)})
