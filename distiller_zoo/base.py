"""The base of every method: one module that owns the student, the frozen teacher and the method's trainable part."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper.cli import MOST_EPOCHS, comma_list, number
from helper.errors import UserError
from helper.optim import DOT
from models.base import Outputs

from .criteria.kd import distill_kl
from .logits import transforms
from .vanilla import Vanilla

IMAGENET = ('imagenet', 'imagenette')     # the data sets for which the methods have values and layers of ImageNet


def is_imagenet(opt) -> bool:
    """Whether the data are ImageNet or a part of it, in 224 pixels. Other data sets with `imagenet` in their names, as
    hf:NAME/tiny-imagenet with 64 pixels, do not count."""
    return opt.dataset in IMAGENET


class PairError(UserError):
    """A method cannot serve these two nets."""


class Distiller(Vanilla):
    """student + frozen teacher + a method's trainable part; its forward returns the losses of one training step.

    A method is a subclass in a file of its own, named by its title and "Distiller". It sets what is documented here and
    in Vanilla, builds its criterion and trainable part in `build`, and returns its loss from `method_loss`. The
    criterion may be in the same file; those in criteria/ can be installed without the rest. The only other change is
    the method's line in distiller_dict, in registry.py.

    total loss = gamma * cross-entropy + alpha * T^2 * KL(teacher || student) + beta * method_loss
    """

    paper = ''              # authors, venue, arXiv id
    title = ''              # what the method is called
    uses = ''               # what it is fed with, in a few words
    published = {}          # option -> its published value, for a run that does not give it
    published_imagenet = {}     # those that differ for ImageNet
    published_logit_stand = {}  # those that differ with --logit_stand; a method without any has no use for that flag
    needs = ()              # what the teacher must give beside logits: 'embedding', 'feats', 'map', fields of Outputs
    init_needs = ()         # the same for the first stage
    preact_s = preact_t = False     # the student's, the teacher's stages are taken before their ReLU
    pairwise = False        # compares the images of a batch, so a single one cannot be used
    float32 = False         # method_loss needs finer numbers than the 16 bits of --amp
    init_stage = False      # a first stage of --init_epochs minimises init_loss alone
    reads_teacher = False   # uses layers of the teacher itself, beside what ask_teacher gives
    auxiliary_teacher = False   # --path-t is itself distilled; published tables name the teacher that it learnt from

    @classmethod
    def add_arguments(cls, add: Callable) -> None:
        """The flags of the method: add('--name', type=..., default=..., help=...), as argparse's add_argument.

        may_differ=True is for a flag that does not change the result. Values are numbers, strings or lists; they
        are in `opt` of every run, whatever its method. Two methods may share a flag that they add alike.
        """
        if cls is not Distiller:        # a method without flags; those below are of all methods
            return
        add('--kd_T', type=number(float, above=0, high=1e4), help='temperature; not given: the published one, mostly 4')
        add('--loss_warmup_epochs', type=number(int, low=1, high=MOST_EPOCHS),
            help="epochs in which the weight of the method's loss grows to its full value; not given: the published")
        add('--optimizer', choices=('sgd', 'dot'), default='sgd',
            help='dot: a momentum for the gradient of the task and another for that of the distillation')
        add('--dot_delta', type=number(float, low=0, high=1),
            help='how far the two momenta of dot are from --momentum; not given: 0.075, for ImageNet 0.09')
        add('--init_epochs', type=number(int, low=1, high=MOST_EPOCHS), default=30,
            help='epochs of the first stage of methods that have one')
        add('--init_learning_rate', type=number(float, above=0),
            help="rate of that stage; not given: the method's own, or else --learning_rate")

    def __init__(self, student: nn.Module, teacher: nn.Module, opt, data):
        """opt: the parsed options (gamma, alpha, beta, kd_T, batch_size of one process, ...). data: dataset.Data.

        Both nets are models.base.Net, run once with two blank images for the shapes of their outputs.
        """
        super().__init__(student, opt, data)
        if data.num_classes < 2:
            raise UserError(f'--distill {opt.distill}: the data has one class, so there is nothing to tell apart; '
                            f'give it at least two')
        if odd := {*self.needs, *self.init_needs} - {*Outputs._fields}:
            raise ValueError(f'{type(self).__name__} needs {", ".join(odd)}; a net gives {", ".join(Outputs._fields)}')
        # Kept out of parameters(), state_dict() and DDP: it is never trained, synchronised or saved.
        self.__dict__['teacher'] = teacher.eval().requires_grad_(False)
        self.teacher_follows = True     # to the device of this module
        self.name = opt.distill
        self.gamma, self.alpha, self.beta, self.temperature = opt.gamma, opt.alpha, opt.beta, opt.kd_T
        self.loss_warmup_epochs, self.two_gradients = opt.loss_warmup_epochs, opt.optimizer == 'dot'
        self.warms_soft_labels = bool(opt.loss_warmup_epochs) and not self.has_own_loss(opt)
        self.register_buffer('beta_factor', torch.ones(()), persistent=False)       # for schedules of begin_epoch
        self.initialising = self.init_stage
        asked = (transform.from_options(opt, data.num_classes) for transform in transforms)
        self.logit_transforms = nn.ModuleList(transform for transform in asked if transform is not None)
        self.scheduled_over_epochs |= any(transform.scheduled_over_epochs for transform in self.logit_transforms)
        try:
            self.build(opt, data, _shapes(student, data), _shapes(teacher, data))
        except NotImplementedError as error:        # a net that does not have what the method asks for
            raise PairError(f'--distill {opt.distill}: {error}') from error

    def build(self, opt, data, shapes_s: Outputs, shapes_t: Outputs) -> None:
        """Make the criterion and the trainable part. shapes: what the nets' outputs have, without the batch: (C, H, W)
        of a map, (C,) of the embedding. Raises UserError for nets that the method cannot serve."""

    def prepare(self, data) -> None:
        """Called once before the first epoch of a run, on the training device; not when it is resumed.

        For what a method takes from the whole training set, by data.unaugmented_loader(): keep it in a buffer.
        """

    def method_loss(self, out_s: Outputs, out_t: Outputs, target: Tensor, index: Tensor) -> Tensor | None:
        """The method's loss, a scalar before beta; None, in every step, where the soft labels are all there is.

        out_s, out_t: what student and teacher give, of the teacher what `needs` names. A method with several views gets
        a list of each, one for each view.
        """
        return None

    def init_loss(self, images: Tensor) -> Tensor:
        """What the first stage minimises, a scalar, for images (N, 3, H, W)."""
        raise NotImplementedError(f'{type(self).__name__} has no first stage')

    @classmethod
    def init_rate(cls, opt) -> float:
        """The learning rate of the first stage where --init_learning_rate is not given."""
        return opt.learning_rate

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
        if self.loss_warmup_epochs:
            self.beta_factor.fill_(min(epoch / self.loss_warmup_epochs, 1))
        for transform in self.logit_transforms:
            transform.begin_epoch(epoch, epochs)

    def checkpoint(self) -> dict:
        """Beside the network, the state of the method's trainable part."""
        net = self.inference_net()
        state = {k: v for k, v in self.state_dict().items() if not k.startswith(('student.', 'average'))}
        return {'model': net.state_dict(), **({'distiller': state} if state else {}),
                **({} if type(self).inference_net is Vanilla.inference_net else {'inference_net': self.name})}

    def forward(self, images, target, index=None, answers: dict | None = None):
        """As Vanilla's, with images (views, N, 3, H, W) where the method has several views.

        answers: what the teacher gives for these images, by fields of Outputs, where it need not be asked.
        losses: {'loss': the total, 'ce': ..., 'kl': ..., 'method': ...}, scalars, the terms before their weights and
        summed over the views. In a first stage 'loss' alone, and None instead of logits.
        """
        views = images.unbind() if len(self.views) > 1 else [images]
        if self.initialising:
            return {'loss': self.init_loss(views[0])}, None
        out_t = [self.ask_teacher(view, self.preact_t) for view in views] if answers is None else \
            [Outputs(**dict.fromkeys(Outputs._fields) | answers)]
        out_s = [self.ask_student(view) for view in views]
        ce = _sum(self.task_loss(out.logits, target) for out in out_s)
        terms = self.terms(out_s, out_t, target, index)
        loss = _sum([self.gamma * ce, *self.weighted(terms)])
        return {'loss': loss, 'ce': ce, **terms}, out_s[0].logits

    def terms(self, out_s: list, out_t: list, target: Tensor, index: Tensor) -> dict:
        """name -> scalar, the terms of the distillation before their weights. out_s, out_t: one for each view."""
        kl = _sum(distill_kl(*self.soft_labels(s, t)) for s, t in zip(out_s, out_t, strict=True))
        method = self._method_loss(out_s, out_t, target, index)
        return {'kl': kl, **({} if method is None else {'method': method})}

    def weights(self) -> dict:
        """name -> the weight of a term; a term that has none is only shown."""
        weights = {'kl': self.alpha * self.beta_factor if self.warms_soft_labels else self.alpha,
                   'method': self.beta * self.beta_factor}
        if self.two_gradients and not self.alpha:       # a gradient of zeros is not the same there as none
            del weights['kl']
        return weights

    def weighted(self, terms: dict) -> list[Tensor]:
        """The terms of the distillation times their weights: what the loss has beside the cross-entropy."""
        return [weight * terms[name] for name, weight in self.weights().items() if name in terms]

    def make_optimizer(self, learning_rate, opt):
        if not self.two_gradients:
            return super().make_optimizer(learning_rate, opt)
        return DOT(self.parameters(), learning_rate, opt.momentum, opt.dot_delta, opt.weight_decay)

    def backward(self, losses, optimizer, backward):
        if not isinstance(optimizer, DOT) or 'ce' not in losses:        # no cross-entropy in a first stage
            super().backward(losses, optimizer, backward)
            return
        backward(_sum(self.weighted(losses)), retain_graph=True)
        optimizer.step_kd()
        backward(self.gamma * losses['ce'])

    @property
    def own_backward(self):
        return self.two_gradients or type(self).backward is not Distiller.backward

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

    def ask_student(self, images: Tensor) -> Outputs:
        """All that the student gives for one view; an override can change what is trained, its logits too."""
        return self.student.outputs(images, self.preact_s)

    @classmethod
    def accepts_answers(cls, kinds: tuple) -> bool:
        """Whether `forward` can be given answers of the teacher of these kinds instead of asking it."""
        return not cls.init_stage and len(cls.views) == 1 and {*cls.needs} <= {*kinds}

    @torch.no_grad()
    def ask_teacher(self, images: Tensor, preact: bool = False) -> Outputs:
        """The teacher's logits and what the method needs beside them; the other fields are None."""
        out = self.teacher.outputs(images, preact)
        needs = ('logits', *(self.init_needs if self.initialising else self.needs))
        return Outputs(*(value if name in needs else None for name, value in zip(out._fields, out, strict=True)))

    @classmethod
    def published_options(cls, opt) -> dict:
        """option -> value of a run that does not give it."""
        return {'gamma': 1.0, 'alpha': 1.0, 'beta': 0.0, 'kd_T': 4.0, 'loss_warmup_epochs': None,
                'dot_delta': published_delta(opt), **cls.published,
                **(cls.published_imagenet if is_imagenet(opt) else {}),
                **(cls.published_logit_stand if opt.logit_stand else {})}

    @classmethod
    def fill_in(cls, opt) -> None:
        """Set the options that were not given to their published values."""
        for name, value in cls.published_options(opt).items():
            if getattr(opt, name) is None:
                setattr(opt, name, value)

    @classmethod
    def check_options(cls, opt) -> None:
        """Raises UserError for options that do not go with the method, before anything is built."""
        if isinstance(opt.beta, list):
            raise UserError(f'-b {comma_list(opt.beta)}: --distill {opt.distill} has one loss; give one weight')
        if opt.optimizer == 'dot':
            cls.check_dot(opt, opt.alpha or (opt.beta and cls.has_own_loss(opt)))

    @classmethod
    def has_own_loss(cls, opt) -> bool:
        """Whether the distillation has a loss beside the soft labels."""
        return cls.method_loss is not Distiller.method_loss

    @classmethod
    def check_dot(cls, opt, distils) -> None:
        """Raises UserError unless there are two gradients that this method leaves to the optimiser."""
        if cls.backward is not Distiller.backward or cls.make_optimizer is not Distiller.make_optimizer:
            raise UserError(f'--optimizer dot: --distill {opt.distill} has an optimiser of its own; leave it out')
        if not opt.gamma or not distils:
            what = '-r 0 leaves no loss of the task' if distils else 'these weights leave no loss of the distillation'
            raise UserError(f'--optimizer dot: keeps the gradients of two losses apart, but {what}; leave it out')
        if not opt.dot_delta <= opt.momentum < 1 - opt.dot_delta:
            raise UserError(f'--dot_delta {opt.dot_delta:g}: --momentum {opt.momentum:g} less it must be at least 0, '
                            f'and plus it below 1; give a smaller one')

    @classmethod
    def check_batch_size(cls, batch_size: int) -> None:
        """Raises UserError if --batch_size is too small for the method."""
        if cls.pairwise and batch_size < 2:
            raise UserError(f'--batch_size {batch_size}: {cls.title} compares the images of a batch; give at least 2')

    def check_preact(self, opt, data, student: bool = True) -> None:
        """Raises UserError unless the teacher, and if told the student, gives its stages before their ReLU."""
        try:
            for net in (self.teacher, *([self.student] if student else [])):
                _shapes(net, data, preact=True)
        except NotImplementedError as error:
            raise PairError(f'--distill {opt.distill}: needs pre-activations; {error}') from error

    @staticmethod
    def check_maps(opt, shapes_s: list, shapes_t: list) -> None:
        """Raises UserError unless all of these are shapes (C, H, W) of feature maps, and there are some."""
        for flag, name, shapes in (('--model_s', opt.model_s, shapes_s), ('--path-t', opt.model_t, shapes_t)):
            odd = [shape for shape in shapes if len(shape) != 3]
            if odd or not shapes:
                what = f'a feature is {("N", *odd[0])}' if odd else 'it has none'
                raise PairError(f'{flag}: --distill {opt.distill} needs feature maps (N, C, H, W) of {name}, '
                                f'but {what}')

    def check_heads(self, opt, shapes_s: Outputs | None, shapes_t: Outputs, norm: bool = False) -> None:
        """Raises PairError unless these nets end in pooling and one linear layer, so that the classifier also reads
        single positions of the map that pooling sees. norm: a norm may be between them."""
        for flag, name, net, shapes in (('--model_s', opt.model_s, self.student, shapes_s),
                                        ('--path-t', opt.model_t, self.teacher, shapes_t)):
            try:
                fits = shapes is None or (len(shapes.map) == 3 and (isinstance(net.pooled_head(), nn.Linear) or norm))
            except NotImplementedError:
                fits = False
            if not fits:
                raise PairError(f'{flag}: --distill {opt.distill} applies the classifier to the map that pooling sees, '
                                f'but {name} has other layers between them; take a net without')

    def train(self, mode: bool = True):
        """The teacher stays in eval mode, its running statistics untouched."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn, recurse=True):
        """The teacher follows to() and similar calls, where it is wanted."""
        super()._apply(fn, recurse)
        if self.teacher_follows:
            self.teacher._apply(fn, recurse)
        return self


@torch.no_grad()
def _shapes(net, data, preact: bool = False) -> Outputs:
    """What a net gives for two blank images: shapes without the batch, no tensors."""
    images = torch.zeros(2, 3, data.image_size, data.image_size, device=next(net.parameters()).device)
    was_training = net.training
    out = net.eval().outputs(images, preact)
    net.train(was_training)
    return _each(out, lambda x: tuple(x.shape[1:]))


def published_delta(opt) -> float | None:
    """--dot_delta of a run with --optimizer dot that does not give it; None of other runs, which have no use for it."""
    return None if opt.optimizer != 'dot' else 0.09 if is_imagenet(opt) else 0.075


def _each(out: Outputs, change: Callable) -> Outputs:
    """Outputs of change(tensor) for each tensor."""
    return Outputs(*(None if value is None else [change(v) for v in value] if isinstance(value, list) else change(value)
                     for value in out))


def _sum(scalars):
    first, *more = scalars
    return sum(more, first)


def _in_float32(out: Outputs) -> Outputs:
    return _each(out, torch.Tensor.float)
