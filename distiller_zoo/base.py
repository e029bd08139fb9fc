"""The base of every method: one module that owns the student, the frozen teacher and the method's trainable part."""
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helper.cli import MOST_EPOCHS, number
from helper.errors import UserError
from models.base import Outputs

from .criterion import distill_kl
from .logits import transforms
from .vanilla import Vanilla


class Distiller(Vanilla):
    """student + frozen teacher + a method's trainable part; its forward returns the losses of one training step.

    A method is a subclass in a file of its own, named by its title and "Distiller". It sets what is documented here and
    in Vanilla, builds its criterion and trainable part in `build`, and returns its loss from `method_loss`. Nothing
    else in the repository needs to know of it but its line in distiller_dict.

    total loss = gamma * cross-entropy + alpha * T^2 * KL(teacher || student) + beta * method_loss
    """

    paper = ''              # authors, venue, arXiv id
    title = ''              # what the method is called
    uses = ''               # what it is fed with, in a few words
    published = {}          # its published weights, of gamma, alpha and beta those that are not 1, 1 and 0
    published_imagenet = {}     # those that differ for ImageNet
    needs = ()              # what the teacher must give beside logits: 'embedding', 'feats', 'map', fields of Outputs
    init_needs = ()         # the same for the first stage
    preact_s = preact_t = False     # the student's, the teacher's stages are taken before their ReLU
    pairwise = False        # compares the images of a batch, so a single one cannot be used
    float32 = False         # method_loss needs finer numbers than the 16 bits of --amp
    init_stage = False      # a first stage of --init_epochs minimises init_loss alone
    init_learning_rate = None   # of the first stage, where it is not --learning_rate
    auxiliary_teacher = False   # --path-t is itself distilled; published tables name the teacher that it learnt from

    @classmethod
    def add_arguments(cls, add: Callable) -> None:
        """The flags of the method: add('--name', type=..., default=..., help=...), as argparse's add_argument.

        may_differ=True is for a flag that does not change the result. Values are numbers, strings or lists; they
        are in `opt` of every run, whatever its method. Two methods may share a flag that they add alike.
        """
        if cls is not Distiller:        # a method without flags; those below are of all methods
            return
        add('--kd_T', type=number(float, above=0, high=1e4), default=4.0, help='temperature of the soft labels')
        add('--init_epochs', type=number(int, low=1, high=MOST_EPOCHS), default=30,
            help='epochs of the first stage of methods that have one')
        add('--init_learning_rate', type=number(float, above=0),
            help="rate of that stage; not given: the method's own, or else --learning_rate")

    def __init__(self, student: nn.Module, teacher: nn.Module, opt, data):
        """opt: the parsed options (gamma, alpha, beta, kd_T, batch_size of one process, ...). data: dataset.Data.

        Both nets are models.base.Net, run once with two blank images for the shapes of their outputs.
        """
        super().__init__(student)
        if odd := {*self.needs, *self.init_needs} - {*Outputs._fields}:
            raise ValueError(f'{type(self).__name__} needs {", ".join(odd)}; a net gives {", ".join(Outputs._fields)}')
        # Kept out of parameters(), state_dict() and DDP: it is never trained, synchronised or saved.
        self.__dict__['teacher'] = teacher.eval().requires_grad_(False)
        self.name = opt.distill
        self.gamma, self.alpha, self.beta, self.temperature = opt.gamma, opt.alpha, opt.beta, opt.kd_T
        self.register_buffer('beta_factor', torch.ones(()), persistent=False)       # for schedules of begin_epoch
        self.initialising = self.init_stage
        asked = (transform.from_options(opt, data.num_classes) for transform in transforms)
        self.logit_transforms = nn.ModuleList(transform for transform in asked if transform is not None)
        self.scheduled_over_epochs |= any(transform.scheduled_over_epochs for transform in self.logit_transforms)
        self.build(opt, data, *self.probe(data))

    def build(self, opt, data, shapes_s: Outputs, shapes_t: Outputs) -> None:
        """Make the criterion and the trainable part. shapes: what the nets' outputs have, without the batch: (C, H, W)
        of a map, (C,) of the embedding. Raises UserError for nets that the method cannot serve."""

    def method_loss(self, out_s: Outputs, out_t: Outputs, target: Tensor, index: Tensor) -> Tensor | None:
        """The method's loss, a scalar before beta; None, in every step, where the soft labels are all there is.

        out_s, out_t: what student and teacher give, of the teacher what `needs` names. A method with several views gets
        a list of each, one for each view.
        """
        return None

    def init_loss(self, images: Tensor) -> Tensor:
        """What the first stage minimises, a scalar, for images (N, 3, H, W)."""
        raise NotImplementedError(f'{type(self).__name__} has no first stage')

    def finish_init(self) -> None:
        """The first stage is over: from here on forward returns the losses of distillation."""
        self.initialising = False

    def soft_labels(self, out_s: Outputs, out_t: Outputs):
        """(student's logits, teacher's logits, temperature) for a loss on soft labels, after all transforms."""
        soft = out_s.logits, out_t.logits, self.temperature
        for transform in self.logit_transforms:
            soft = transform(*soft)
        return soft

    def begin_epoch(self, epoch: int, epochs: int) -> None:
        for transform in self.logit_transforms:
            transform.begin_epoch(epoch, epochs)

    def checkpoint(self) -> dict:
        """Beside the network, the state of the method's trainable part."""
        net = self.inference_net()
        state = {k: v for k, v in self.state_dict().items() if not k.startswith('student.')}
        return {'model': net.state_dict(), **({'distiller': state} if state else {}),
                **({} if net is self.student else {'inference_net': self.name})}

    def forward(self, images, target, index=None):
        """As Vanilla's, with images (views, N, 3, H, W) where the method has several views.

        losses: {'loss': the total, 'ce': ..., 'kl': ..., 'method': ...}, scalars, the terms before their weights and
        summed over the views. In a first stage 'loss' alone, and None instead of logits.
        """
        views = images.unbind() if len(self.views) > 1 else [images]
        if self.initialising:
            return {'loss': self.init_loss(views[0])}, None
        out_t = [self.ask_teacher(view, self.preact_t) for view in views]
        out_s = [self.student.outputs(view, self.preact_s) for view in views]
        ce = [F.cross_entropy(out.logits, target) for out in out_s]
        kl = [distill_kl(*self.soft_labels(s, t)) for s, t in zip(out_s, out_t, strict=True)]
        terms = {name: sum(more, first) for name, (first, *more) in (('ce', ce), ('kl', kl))}
        loss = self.gamma * terms['ce'] + self.alpha * terms['kl']
        method = self._method_loss(out_s, out_t, target, index)
        if method is not None:
            terms['method'] = method
            loss = loss + self.beta * self.beta_factor * method
        return {'loss': loss, **terms}, out_s[0].logits

    def _method_loss(self, out_s, out_t, target, index):
        """method_loss, in float32 for methods that ask for it, whatever the nets compute in."""
        device = target.device.type
        upcast = self.float32 and torch.is_autocast_enabled(device)
        if upcast:
            out_s, out_t = ([_in_float32(out) for out in outs] for outs in (out_s, out_t))
        if len(self.views) == 1:
            (out_s,), (out_t,) = out_s, out_t
        if not upcast:
            return self.method_loss(out_s, out_t, target, index)
        with torch.autocast(device, enabled=False):
            return self.method_loss(out_s, out_t, target, index)

    @torch.no_grad()
    def ask_teacher(self, images: Tensor, preact: bool = False) -> Outputs:
        """The teacher's logits and what the method needs beside them; the other fields are None."""
        out = self.teacher.outputs(images, preact)
        needs = ('logits', *(self.init_needs if self.initialising else self.needs))
        return Outputs(*(value if name in needs else None for name, value in zip(out._fields, out, strict=True)))

    @classmethod
    def published_weights(cls, dataset: str) -> dict:
        """gamma, alpha and beta of a run that does not give them."""
        return {'gamma': 1.0, 'alpha': 1.0, 'beta': 0.0, **cls.published,
                **(cls.published_imagenet if 'imagenet' in dataset else {})}

    @classmethod
    def check_batch_size(cls, batch_size: int) -> None:
        """Raises UserError if --batch_size is too small for the method."""
        if cls.pairwise and batch_size < 2:
            raise UserError(f'--batch_size {batch_size}: {cls.title} compares the images of a batch; give at least 2')

    @staticmethod
    def check_maps(opt, shapes_s: list, shapes_t: list) -> None:
        """Raises UserError unless all of these are shapes (C, H, W) of feature maps, and there are some."""
        for flag, name, shapes in (('--model_s', opt.model_s, shapes_s), ('--path-t', opt.model_t, shapes_t)):
            odd = [shape for shape in shapes if len(shape) != 3]
            if odd or not shapes:
                what = f'a feature is {("N", *odd[0])}' if odd else 'it has none'
                raise UserError(f'{flag}: --distill {opt.distill} needs feature maps (N, C, H, W) of {name}, '
                                f'but {what}')

    def train(self, mode: bool = True):
        """The teacher stays in eval mode, its running statistics untouched."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn, recurse=True):
        """The teacher follows to() and similar calls."""
        super()._apply(fn, recurse)
        self.teacher._apply(fn, recurse)
        return self

    @torch.no_grad()
    def probe(self, data, preact: bool = False) -> list[Outputs]:
        """[the student's outputs, the teacher's] for two blank images: shapes without the batch, no tensors."""
        device = next(self.student.parameters()).device
        images = torch.zeros(2, 3, data.image_size, data.image_size, device=device)
        was_training = self.student.training
        self.student.eval()
        outputs = [net.outputs(images, preact) for net in (self.student, self.teacher)]
        self.student.train(was_training)
        return [_each(out, lambda x: tuple(x.shape[1:])) for out in outputs]


def _each(out: Outputs, change: Callable) -> Outputs:
    """Outputs of change(tensor) for each tensor."""
    return Outputs(*(None if value is None else [change(v) for v in value] if isinstance(value, list) else change(value)
                     for value in out))


def _in_float32(out: Outputs) -> Outputs:
    return _each(out, torch.Tensor.float)
