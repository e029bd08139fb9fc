"""Several methods at once: --distill a+b trains with the sum of their losses, each with its own weight."""
import itertools
from types import SimpleNamespace

from torch import nn

from helper.cli import comma_list
from helper.errors import UserError

from .base import Distiller, published_delta
from .criteria.kd import distill_kl
from .vanilla import Vanilla


class Combined(Distiller):
    """The methods are parts that share the student and the teacher; a part's own soft labels and cross-entropy are not
    added. The soft labels are a part of their own, kd."""

    methods: dict[str, type[Distiller]] = {}

    @classmethod
    def published_options(cls, opt):
        """The weights, and all that the parts agree on: where they do not, each fills in its own later."""
        alone = SimpleNamespace(**{**vars(opt), 'optimizer': 'sgd'})
        parts = [(method, method.published_options(alone)) for method in cls.methods.values()]
        values = {}
        for _, options in parts:
            for name, value in options.items():
                values.setdefault(name, []).append(value)
        agreed = {name: first for name, (first, *others) in values.items() if all(other == first for other in others)}
        return {**agreed, 'gamma': values['gamma'][0], 'alpha': 0.0, 'dot_delta': published_delta(opt),
                'beta': [options['beta' if method.has_own_loss(opt) else 'alpha'] for method, options in parts]}

    @classmethod
    def check_options(cls, opt):
        count = len(opt.beta) if isinstance(opt.beta, list) else 1
        if count != len(cls.methods):
            raise UserError(f'-b {comma_list(opt.beta)}: --distill {opt.distill} adds {len(cls.methods)} losses; give '
                            f'a weight for each, as -b {comma_list(cls.published_options(opt)["beta"])}')
        if opt.alpha:
            raise UserError(f'-a {opt.alpha:g}: --distill {opt.distill} has a weight for each of its methods, by -b; '
                            f'for soft labels give --distill {opt.distill}+kd')
        if opt.optimizer == 'dot':
            cls.check_dot(opt, any(opt.beta))

    def build(self, opt, data, shapes_s, shapes_t):
        self.parts, self.betas = nn.ModuleDict(), {}
        for (name, method), beta in zip(self.methods.items(), opt.beta, strict=True):
            own = SimpleNamespace(**{**vars(opt), 'distill': name, 'beta': beta, 'optimizer': 'sgd'})
            method.fill_in(own)
            part = method(self.student, self.teacher, own, data)
            del part.student        # a part keeps the student as it keeps the teacher: neither is its own
            part.__dict__['student'] = self.student
            self.parts[name], self.betas[name] = part, beta
        self.preact_s, self.preact_t = (any(getattr(part, name) for part in self.parts.values())
                                        for name in ('preact_s', 'preact_t'))

    def terms(self, out_s, out_t, target, index):
        found = {}
        for name, part in self.parts.items():
            seen = [outs[:len(part.views)] for outs in (out_s, out_t)]
            loss = part._method_loss(*seen, target, index)
            found[name] = distill_kl(*part.soft_labels(*(outs[0] for outs in seen))) if loss is None else loss
        return found

    def weights(self):
        return {name: self.betas[name] * part.beta_factor for name, part in self.parts.items()}

    def prepare(self, data):
        for part in self.parts.values():
            part.prepare(data)

    def begin_epoch(self, epoch, epochs):
        super().begin_epoch(epoch, epochs)
        for part in self.parts.values():
            part.begin_epoch(epoch, epochs)

    def init_loss(self, images):
        return next(part for part in self.parts.values() if part.init_stage).init_loss(images)

    def finish_init(self):
        super().finish_init()
        for part in self.parts.values():
            part.finish_init()

    def pictures(self):
        return {name: matrix for part in self.parts.values() for name, matrix in part.pictures().items()}


def combine(methods: dict[str, type[Distiller]], flag: str) -> type[Combined]:
    """The Distiller class for the sum of `methods`, by their names. Raises UserError that names `flag` and the two that
    cannot be added."""
    for a, b in itertools.combinations(methods.items(), 2):
        why = _conflict(a, b)
        if why:
            raise UserError(f'{flag} {"+".join(methods)}: {a[0]} and {b[0]} cannot be added: {why}')
    classes = methods.values()

    def union(name):
        return tuple(dict.fromkeys(value for method in classes for value in getattr(method, name)))

    return type('Combined', (Combined,), {
        'methods': methods, 'title': '+'.join(method.title for method in classes),
        'needs': union('needs'), 'init_needs': union('init_needs'),
        'views': max((method.views for method in classes), key=len),
        'own_buffers': tuple(f'parts.{key}.{name}' for key, method in methods.items() for name in method.own_buffers),
        'published_logit_stand': {key: value for method in classes for key, value in
                                  method.published_logit_stand.items()},
        'init_rate': next((method.init_rate for method in classes if method.init_stage), Distiller.init_rate),
        **{name: any(getattr(method, name) for method in classes)
           for name in ('pairwise', 'drop_last', 'init_stage', 'scheduled_over_epochs', 'reads_teacher',
                        'needs_class')}})


def _conflict(*pair) -> str:
    """Why two methods, (name, class) each, cannot be added; empty where they can."""
    (_, a), (_, b) = pair
    for name, method in pair:
        if method.inference_net is not Vanilla.inference_net:
            return f'{name} deploys another network than the student'
        if method.backward is not Distiller.backward or method.make_optimizer is not Distiller.make_optimizer:
            return f'{name} has an optimiser of its own'
        if method.terms is not Distiller.terms or method.ask_student is not Distiller.ask_student:
            return f'{name} changes what is trained'
    if a.init_stage and b.init_stage:
        return 'both have a first stage'
    if any(x != y for x, y in zip(a.views, b.views, strict=False)):
        return 'they see other views of an image'
    if (a.preact_s, a.preact_t) != (b.preact_s, b.preact_t) and 'feats' in a.needs and 'feats' in b.needs:
        return 'one reads the stages before their ReLU, the other after it'
    return ''
