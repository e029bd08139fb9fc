"""The base of every method: one module that owns the student, the frozen teacher and the method's trainable part."""
from collections.abc import Callable

import torch
from torch import Tensor, nn

from helper.cli import AUTO, comma_list
from helper.errors import UserError
from helper.optim import rate_factors, scale_rates
from models.base import Outputs

from .auto_weight import AutoWeights
from .checks import (  # noqa: F401
    PairError,
    check_classes,
    check_declaration,
    check_heads,
    check_maps,
    check_preact,
    has_preact,
    output_shapes,
)
from .criteria.kd import distill_kl
from .dot import DOT
from .eakd import ENTROPY_OPTIONS, EntropyWeights
from .logit_transforms import LogitTransforms
from .precision import in_float32  # noqa: F401, for the methods, which import what they need from here
from .spec import Spec  # noqa: F401
from .task import TrainingTask

IMAGENET = ('imagenet', 'imagenette')     # data sets with the methods' published values for ImageNet


def is_imagenet(opt) -> bool:
    """Whether the data are ImageNet or a subset of it with 224 pixels, not tiny-imagenet with 64."""
    return opt.dataset in IMAGENET


def warm_up(epoch: int, epochs: int | None) -> float:
    """The factor of a weight that grows linearly to 1 in `epochs` epochs; 1 without a warm-up."""
    return min(epoch / epochs, 1) if epochs else 1


class Distiller(TrainingTask):
    """student + frozen teacher + a method's trainable part; forward returns the losses of one training step.

    A method is a subclass in a file of its own, named by its title and "Distiller". It declares its `spec`, builds its
    criterion and trainable layers in `build`, and returns its loss from `method_loss`. registry.py imports it and lists
    it in distiller_dict.

    total loss = gamma * cross-entropy + alpha * T^2 * KL(teacher || student) + beta * method_loss
    """

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if cls.spec is TrainingTask.spec:
            raise TypeError(f'{cls.__name__}: declare spec = Spec(title=..., paper=..., uses=...)')
        declared = {'backward': cls.spec.own_backward, 'make_optimizer': cls.spec.own_optimizer,
                    'student_outputs': cls.spec.changes_student, 'inference_net': not cls.spec.deploys_student}
        for name, is_declared in declared.items():
            if name in vars(cls) and not is_declared:       # the scripts would ignore the override, or other flags
                raise TypeError(f'{cls.__name__} overrides {name}, but its spec does not declare it; see spec.py')

    def __init__(self, student: nn.Module, teacher: nn.Module, opt, data):
        """student, teacher: models.base.Net. opt: the parsed options. data: dataset.Data."""
        super().__init__(student, opt, data)
        check_declaration(type(self))
        if data.num_classes < 2 and self.spec.learns_classes:
            raise UserError(f'--distill {opt.distill}: the data has one class, so there is nothing to tell apart; '
                            f'give it at least two')
        # Not a submodule: the teacher is never trained, synchronised or saved.
        self.__dict__['teacher'] = teacher.eval().requires_grad_(False)
        self.moves_teacher = True       # to(device) also moves the teacher
        self.name = opt.distill
        self.gamma, self.alpha, self.beta, self.temperature = opt.gamma, opt.alpha, opt.beta, opt.kd_T
        self.auto_weights = None
        if opt.beta == AUTO:
            self.beta, self.auto_weights = 1.0, AutoWeights(['method'])
        self.logit_transforms = LogitTransforms(opt, data.num_classes)
        self.entropy_weights = EntropyWeights(self.spec, opt, data.num_classes)
        self.uses_method_loss = self.has_method_loss(opt)
        self.loss_warmup_epochs, self.kl_warmup_epochs = opt.loss_warmup_epochs, opt.kl_warmup_epochs
        self.has_kl_warmup = bool(opt.kl_warmup_epochs or (opt.loss_warmup_epochs and not self.uses_method_loss))
        # The factors of beta and of alpha in this epoch, set by begin_epoch.
        self.register_buffer('schedule_factor', torch.ones(()), persistent=False)
        self.register_buffer('soft_label_factor', torch.ones(()), persistent=False)
        self.preact_s, self.preact_t = self.spec.preact_s, self.spec.preact_t
        self.own_backward = self.spec.own_backward or opt.opt == 'dot'
        self.scheduled_over_epochs = self.spec.scheduled_over_epochs or self.logit_transforms.scheduled_over_epochs
        try:
            self.build(opt, data, output_shapes(student, data.image_size), output_shapes(teacher, data.image_size))
        except NotImplementedError as error:        # a net lacks an output that the method reads
            raise PairError(f'--distill {opt.distill}: {error}') from error

    def forward(self, images: Tensor, target: Tensor, index: Tensor | None = None, out_t: Outputs | None = None):
        """images (N, 3, H, W), target (B,), index (N,) -> (losses, the student's logits (B, classes)).

        The first B images have labels: all, unless --unlabelled is given. out_t: stored teacher outputs; if not given,
        the teacher computes them. losses: {'loss': the total, 'ce': ..., 'kl': ..., 'method': ...}, scalars; all but
        the total are unweighted.
        """
        if out_t is None:
            out_t = self.teacher_outputs(images)
        out_s = self.student_outputs(images)
        losses = {**self.label_losses([out_s], target), **self.distillation_losses(out_s, out_t, target, index)}
        return {'loss': self.total_loss(losses), **losses}, out_s.logits[:len(target)]

    def label_losses(self, views: list[Outputs], target: Tensor) -> dict:
        """{'ce': the unweighted label loss, a scalar}, of the first len(target) images; {} if there are none.

        views: the student's outputs for each view, whose losses are summed.
        """
        n = len(target)
        return {'ce': sum(self.label_loss(out.logits[:n], target) for out in views)} if n else {}

    def distillation_losses(self, out_s: Outputs, out_t: Outputs, target: Tensor, index: Tensor,
                            image_weights: Tensor | None = None) -> dict:
        """name -> unweighted loss, a scalar: all losses but the cross-entropy.

        image_weights: (N,), of the images in the loss on soft labels; not given: 1 each.
        """
        losses = {}
        if self.alpha:
            losses['kl'] = self.soft_label_loss(out_s, out_t, image_weights)
        if self.uses_method_loss:
            losses['method'] = self.method_loss(out_s, out_t, target, index)
        return losses

    @torch.no_grad()
    def teacher_outputs(self, images: Tensor) -> Outputs:
        """The teacher's logits, if it has a classifier, and the outputs in spec.needs; the other fields are None."""
        out = self.teacher.outputs(images, self.preact_t)
        fields = ('logits', *self.spec.needs) if self.teacher.has_classifier else self.spec.needs
        return Outputs(*(value if name in fields else None for name, value in out._asdict().items()))

    def student_outputs(self, images: Tensor) -> Outputs:
        """The student's outputs. An override may change which logits are trained."""
        return self.student.outputs(images, self.preact_s)

    def soft_labels(self, out_s: Outputs, out_t: Outputs):
        """(student's logits, teacher's logits, temperature) for a loss on soft labels."""
        soft = out_s.logits, out_t.logits, self.temperature
        for transform in self.logit_transforms:     # of --logit_stand; usually none
            soft = transform(*soft)
        return soft

    def soft_label_loss(self, out_s: Outputs, out_t: Outputs, image_weights: Tensor | None = None) -> Tensor:
        """The loss on soft labels, a scalar. image_weights: (N,), of the images; not given: 1 each."""
        return distill_kl(*self.soft_labels(out_s, out_t), image_weights)

    def total_loss(self, losses: dict) -> Tensor:
        """The weighted sum of the losses. With -b auto, the first training steps also measure the weights."""
        if self.is_measuring:
            self.auto_weights.measure(losses, self.student)
        return sum(self.weighted(losses).values())

    def weighted(self, losses: dict) -> dict:
        """name -> loss times its weight, and times the weight that -b auto measured."""
        weights = self.weights()
        if self.auto_weights is not None:
            for name, measured in zip(self.auto_weights.names, self.auto_weights.weights.unbind(), strict=True):
                weights[name] = weights[name] * measured
        return {name: weight * losses[name] for name, weight in weights.items() if name in losses}

    def weights(self) -> dict:
        """name -> weight of each loss, without the weights that -b auto measures."""
        alpha = self.alpha * self.soft_label_factor if self.has_kl_warmup else self.alpha
        return {'ce': self.gamma, 'kl': alpha, 'method': self.beta * self.schedule_factor}

    @property
    def is_measuring(self) -> bool:
        """Whether this step measures the weights of -b auto."""
        return self.auto_weights is not None and self.training and not self.in_first_stage and \
            self.auto_weights.is_measuring

    def measured_weights(self) -> dict[str, float]:
        """'beta', or 'beta_NAME' in a sum -> the weight that -b auto has measured so far; {} without -b auto."""
        weights = self.auto_weights.by_name() if self.auto_weights is not None else {}
        return {'beta' if name == 'method' else f'beta_{name}': weight for name, weight in weights.items()}

    def build(self, opt, data, shapes_s: Outputs, shapes_t: Outputs) -> None:
        """Make the criterion and the trainable layers.

        opt: the options; opt.batch_size is the batch of this process. shapes_s, shapes_t: shapes of both nets' outputs
        without the batch: (C, H, W) of a map, (C,) of the embedding. Raises UserError for nets that the method cannot
        use.
        """

    def method_loss(self, out_s: Outputs, out_t: Outputs, target: Tensor, index: Tensor) -> Tensor:
        """The method's loss, a scalar, before beta. out_t has the fields in spec.needs; the others are None."""
        raise NotImplementedError(f'{type(self).__name__}: define method_loss, or set has_method_loss=False in spec')

    def prepare(self, data) -> None:
        """Compute buffers from the whole training set, by data.unaugmented_loader().

        Called once before the first epoch, on the training device, but not when a run is resumed.
        """

    def begin_epoch(self, epoch, epochs):
        """Set the factors of the warm-ups, which grow linearly.

        --loss_warmup_epochs: of the method's loss, or of the soft labels if it has none. --kl_warmup_epochs: of the
        soft labels, from 0.
        """
        super().begin_epoch(epoch, epochs)
        loss_factor, kl_factor = warm_up(epoch, self.loss_warmup_epochs), warm_up(epoch - 1, self.kl_warmup_epochs)
        self.schedule_factor.fill_(loss_factor)
        self.soft_label_factor.fill_(kl_factor if self.uses_method_loss else loss_factor * kl_factor)
        self.logit_transforms.begin_epoch(epoch, epochs)

    def end_epoch(self) -> None:
        """Compute results from buffers that the method filled during the epoch.

        Called once in every process after each epoch of distillation, before the state of the run is saved. A resumed
        run has these buffers; spec.own_buffers must name those that differ between processes.
        """

    def make_optimizer(self, learning_rate, opt):
        if opt.opt == 'dot':
            dot = DOT(self.parameters(), learning_rate, opt.momentum, opt.dot_delta, opt.weight_decay)
            return scale_rates(dot, rate_factors(self.student, opt))
        return super().make_optimizer(learning_rate, opt)

    def backward(self, losses, optimizer):
        """Make the backward passes of --opt dot. A method that declares own_backward overrides this."""
        optimizer.backward(self, losses)

    @classmethod
    def rebuild_inference_net(cls, student: nn.Module, weights: dict) -> nn.Module:
        """Return inference_net() of a new student, built without a teacher, to load `weights`, its state_dict, into."""
        return student

    @classmethod
    def add_arguments(cls, add: Callable) -> None:
        """Add the method's flags: add('--name', type=..., default=..., help=...), as argparse's add_argument.

        may_differ=True marks a flag that does not change the result. Values are numbers, strings or lists of them, and
        are in `opt` of every run, whatever its method. Two methods may share a flag if they add it with equal settings.
        """

    @classmethod
    def has_method_loss(cls, opt) -> bool:
        """Whether the method has a method_loss with these options."""
        return cls.spec.has_method_loss

    @classmethod
    def options_without_effect(cls, opt) -> dict[str, str]:
        """{option of the method that has no effect here: the flag that would give it one}."""
        return {}

    @classmethod
    def published_options(cls, opt) -> dict:
        """option -> the value that a run uses if the option is not given."""
        delta = None
        if opt.opt == 'dot':
            delta = 0.09 if is_imagenet(opt) else 0.075
        return {'gamma': 1.0, 'alpha': 1.0, 'beta': 0.0, 'kd_T': 4.0, 'loss_warmup_epochs': None,
                'kl_warmup_epochs': None, 'dot_delta': delta, **dict.fromkeys(ENTROPY_OPTIONS),
                **cls.spec.published,
                **(cls.spec.published_imagenet if is_imagenet(opt) else {}),
                **({**ENTROPY_OPTIONS, **cls.spec.published_entropy_weights} if opt.entropy_weights else {}),
                **(cls.spec.published_logit_stand if opt.logit_stand else {})}

    @classmethod
    def fill_in(cls, opt) -> None:
        """Set the options that were not given to their published values."""
        for name, value in cls.published_options(opt).items():
            if getattr(opt, name) is None:
                setattr(opt, name, value)

    @classmethod
    def check_options(cls, opt) -> None:
        """Raise UserError for options that do not suit the method, before anything is built."""
        if isinstance(opt.beta, list):
            raise UserError(f'-b {comma_list(opt.beta)}: --distill {opt.distill} has one loss; give one weight')

    def checkpoint(self):
        """The weights of the network, and the state of the method's trainable layers."""
        net = self.inference_net()
        state = {name: value for name, value in self.state_dict().items()
                 if not name.startswith(('student.', 'average.')) and name != 'averaged_steps'}
        content = {'model': net.state_dict()}
        if state:
            content['distiller'] = state
        if not self.spec.deploys_student:
            content['inference_net'] = self.name
        return content

    def train(self, mode: bool = True):
        """Keep the teacher in eval mode, so that its running statistics do not change."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn, recurse=True):
        """Apply to() and similar calls to the teacher too, unless moves_teacher is False."""
        super()._apply(fn, recurse)
        if self.moves_teacher:
            self.teacher._apply(fn, recurse)
        return self
