"""Several methods at once: --distill a+b trains with the sum of their losses, each with its own weight."""
import itertools
from types import SimpleNamespace

from torch import nn

from helper.cli import AUTO, comma_list
from helper.errors import UserError

from .auto_weight import AutoWeights
from .base import Distiller
from .first_stage import FirstStage
from .multi_view import MultiView
from .spec import Spec


class Combined(Distiller):
    """The methods are parts that share the student and the teacher. A part contributes only its own loss, without its
    soft labels and cross-entropy; the soft labels are the part kd."""

    spec = Spec(title='', paper='', uses='')     # combine() sets both
    methods: dict[str, type[Distiller]] = {}

    @classmethod
    def published_options(cls, opt):
        """The parts' published weights, and the other options on which all parts agree."""
        alone = SimpleNamespace(**{**vars(opt), 'opt': 'sgd'})
        parts = {method: method.published_options(alone) for method in cls.methods.values()}
        values = {}
        for name, value in (item for options in parts.values() for item in options.items()):
            values.setdefault(name, []).append(value)
        agreed = {name: first for name, (first, *others) in values.items() if all(other == first for other in others)}
        betas = [options['beta' if method.has_method_loss(opt) else 'alpha'] for method, options in parts.items()]
        return {**agreed, 'gamma': values['gamma'][0], 'alpha': 0.0, 'beta': betas,
                'dot_delta': super().published_options(opt)['dot_delta']}

    @classmethod
    def check_options(cls, opt):
        count = len(opt.beta) if isinstance(opt.beta, list) else 1
        if count != len(cls.methods):
            raise UserError(f'-b {comma_list(opt.beta)}: --distill {opt.distill} adds {len(cls.methods)} losses; give '
                            f'a weight for each, as -b {comma_list(cls.published_options(opt)["beta"])}')
        if opt.alpha:
            advice = 'leave it out' if 'kd' in cls.methods else f'for soft labels give --distill {opt.distill}+kd'
            raise UserError(f'-a {opt.alpha:g}: --distill {opt.distill} has a weight for each of its methods, by -b; '
                            f'{advice}')
        for name, part_opt in cls.options_of_parts(opt).items():
            cls.methods[name].check_options(part_opt)

    @classmethod
    def options_of_parts(cls, opt):
        """name -> the options of that part, with its published values."""
        options = {}
        for (name, method), beta in zip(cls.methods.items(), opt.beta, strict=True):
            beta = 1.0 if beta == AUTO else beta        # of which auto_weights holds the factor
            options[name] = SimpleNamespace(**{**vars(opt), 'distill': name, 'beta': beta, 'opt': 'sgd'})
            method.fill_in(options[name])
        return options

    def build(self, opt, data, shapes_s, shapes_t):
        self.parts, self.betas = nn.ModuleDict(), {}
        measured = [name for name, beta in zip(self.methods, opt.beta, strict=True) if beta == AUTO]
        self.auto_weights = AutoWeights(measured) if measured else None
        for name, part_opt in self.options_of_parts(opt).items():
            self.parts[name] = as_part(self.methods[name](self.student, self.teacher, part_opt, data))
            self.betas[name] = part_opt.beta
        self.preact_s = any(part.preact_s for part in self.parts.values())
        self.preact_t = any(part.preact_t for part in self.parts.values())

    def distillation_losses(self, out_s, out_t, target, index, image_weights=None):
        """name of a part -> its loss."""
        losses = {}
        for name, part in self.parts.items():
            part_s, part_t = (out if len(part.spec.views) == len(self.spec.views) else out[0]
                              for out in (out_s, out_t))       # out[0]: of the first of several views
            losses[name] = part.method_loss(part_s, part_t, target, index) if part.uses_method_loss else \
                part.soft_label_loss(part_s, part_t, image_weights)
        return losses

    def weights(self):
        factors = {name: part.schedule_factor if part.uses_method_loss else part.soft_label_factor
                   for name, part in self.parts.items()}
        return {'ce': self.gamma, **{name: self.betas[name] * factor for name, factor in factors.items()}}

    def prepare(self, data):
        for part in self.parts.values():
            part.prepare(data)

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        for part in self.parts.values():
            part.begin_epoch(epoch, epochs)

    def end_epoch(self):
        for part in self.parts.values():
            part.end_epoch()

    def pictures(self):
        return {name: matrix for part in self.parts.values() for name, matrix in part.pictures().items()}


def as_part(distiller: Distiller) -> Distiller:
    """Return the distiller as a part of another one, which trains the student and moves the teacher."""
    student = distiller.student
    del distiller.student       # stored like the teacher: not a submodule of the part
    distiller.__dict__['student'] = student
    distiller.moves_teacher = False
    return distiller


class CombinedFirstStage(FirstStage):
    """Mixin for a sum of methods, one of which has a first stage."""

    def init_loss(self, images):
        part, = (part for part in self.parts.values() if part.spec.first_stage)
        return part.init_loss(images[0] if len(self.spec.views) > 1 else images)

    @classmethod
    def init_rate(cls, opt):
        method, = (method for method in cls.methods.values() if method.spec.first_stage)
        return method.init_rate(opt)

    def end_first_stage(self):
        super().end_first_stage()
        for part in self.parts.values():
            if part.in_first_stage:
                part.end_first_stage()


def combine(methods: dict[str, type[Distiller]], flag: str) -> type[Combined]:
    """Return the Distiller class for the sum of `methods`, by their names.

    Raises UserError that names `flag` and the two methods that cannot be added.
    """
    for pair in itertools.combinations(methods.items(), 2):
        if reason := _conflict(*pair):
            raise UserError(f'{flag} {"+".join(methods)}: {pair[0][0]} and {pair[1][0]} cannot be added: {reason}')
    specs = {name: method.spec for name, method in methods.items()}
    flags = {name: any(getattr(spec, name) for spec in specs.values())
             for name in ('pairwise', 'drop_last', 'first_stage', 'scheduled_over_epochs', 'reads_teacher',
                          'needs_class')}
    spec = Spec(
        title='+'.join(spec.title for spec in specs.values()), paper='', uses='', **flags,
        features_only=all(spec.features_only for spec in specs.values()),
        published_logit_stand={key: value for spec in specs.values()
                               for key, value in spec.published_logit_stand.items()},
        published_entropy_weights={key: value for spec in specs.values()
                                   for key, value in spec.published_entropy_weights.items()},
        needs=tuple(dict.fromkeys(field for spec in specs.values() for field in spec.needs)),
        views=max((spec.views for spec in specs.values()), key=len),
        own_buffers=tuple(f'parts.{name}.{buffer}' for name, spec in specs.items() for buffer in spec.own_buffers))
    mixins = (CombinedFirstStage,) * spec.first_stage + (MultiView,) * (len(spec.views) > 1)
    return type('Combined', (*mixins, Combined), {'methods': methods, 'spec': spec})


def why_not_in_parts(name: str, method: type[Distiller]) -> str:
    """Why a method cannot be one of several parts that share the student; '' if it can."""
    if not method.spec.deploys_student:
        return f'{name} deploys another network than the student'
    if method.spec.own_backward or method.spec.own_optimizer:
        return f'{name} has an optimiser of its own'
    if not method.spec.learns_classes:
        return f'{name} learns no classes'
    return f'{name} changes what is trained' if method.spec.changes_student else ''


def _conflict(a: tuple, b: tuple) -> str:
    """Return why two methods, (name, class) each, cannot be added; '' if they can."""
    for name, method in (a, b):
        if reason := why_not_in_parts(name, method):
            return reason
    a, b = a[1].spec, b[1].spec
    if a.first_stage and b.first_stage:
        return 'both have a first stage'
    if any(x != y for x, y in zip(a.views, b.views, strict=False)):
        return 'they use other views of an image'
    if (a.preact_s, a.preact_t) != (b.preact_s, b.preact_t) and 'feats' in a.needs and 'feats' in b.needs:
        return 'one reads the stages before their ReLU, the other after it'
    return ''
