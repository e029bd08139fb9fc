"""What a method requires of two nets and of the data: each check raises an error that names the flag to change."""
import torch
from torch import nn

from helper.cli import comma_list
from helper.errors import UserError, printable
from models.base import Outputs, probe

from .first_stage import FirstStage
from .multi_view import MultiView


class PairError(UserError):
    """A method cannot distil between these two nets."""


def check_declaration(method: type) -> None:
    """Raises ValueError for a method class that contradicts its own spec: an error of its author."""
    spec = method.spec
    for declared, mixin, field in ((spec.first_stage, FirstStage, 'first_stage'),
                                   (len(spec.views) > 1, MultiView, 'several views')):
        if bool(declared) != issubclass(method, mixin):
            raise ValueError(f'{method.__name__}: {field} in spec and the mixin {mixin.__name__} go together')
    if unknown := {*spec.needs} - {*Outputs._fields}:
        raise ValueError(f'{method.__name__} needs {", ".join(unknown)}; a net gives {", ".join(Outputs._fields)}')


def check_pairwise_batch(spec, batch_size: int) -> None:
    """Raises UserError if --batch_size is too small for the method."""
    if spec.pairwise and batch_size < 2:
        raise UserError(f'--batch_size {batch_size}: {spec.title} compares the images of a batch; give at least 2')


def check_classes(data, label: str, advice: str) -> None:
    """Raises UserError unless every class has a training image. label: the flag; advice: what would work."""
    counts = torch.bincount(data.labels, minlength=data.num_classes)
    if not counts.min():
        number = counts.argmin().item()
        name = f' {printable(data.classes[number])}' if data.classes else ''
        raise UserError(f'{label}: class{name} {number}, counted from 0, has no training image; {advice}')


def weighted_losses(opt, method: type) -> list[tuple[type, str]]:
    """(the method, or a part of a sum, 'kl' for its soft labels or 'method' for its own loss): losses with a weight."""
    if hasattr(method, 'methods'):
        losses = [(part, 'method' if part.has_method_loss(opt) else 'kl', beta)
                  for part, beta in zip(method.methods.values(), opt.beta, strict=True)]
    else:
        losses = [(method, 'kl', opt.alpha), (method, 'method', method.has_method_loss(opt) and opt.beta)]
    return [(part, name) for part, name, weight in losses if weight]


def how_to_add_soft_labels(method: type) -> str:
    """Return what gives a method, or a sum of methods, soft labels, for messages."""
    if not hasattr(method, 'methods'):
        return 'give -a 1'
    return 'give kd a weight' if 'kd' in method.methods else 'add kd to it'


def check_classifier_learns(opt, method: type, data) -> None:
    """Raises UserError where nothing trains the student's classifier: without labels, from the teacher's features."""
    learns = any(name == 'kl' or not part.spec.features_only for part, name in weighted_losses(opt, method))
    if method.spec.learns_classes and not learns and not len(data.labels):
        weight = f'-b {comma_list(opt.beta)}' if isinstance(opt.beta, list) else '-a 0'
        raise UserError(f'{weight}: --distill {opt.distill} compares features, and no training image has a label, so '
                        f'the classifier of the student would learn nothing; {how_to_add_soft_labels(method)}')


def why_logits(opt, spec) -> str:
    """Why a run with these options needs the teacher's logits, for messages; '' if it only reads features."""
    if not spec.features_only:
        return f'--distill {opt.distill} needs its logits'
    if opt.alpha:
        return f'-a {opt.alpha:g} needs its logits (-a 0 does not)'
    return '--entropy_weights needs its logits' if opt.entropy_weights else ''


def check_preact(distiller, opt, data, student: bool = True) -> None:
    """Raises PairError unless the teacher, and by default the student, gives feature maps before their ReLU."""
    try:
        for net in (distiller.teacher, *([distiller.student] if student else [])):
            output_shapes(net, data.image_size, preact=True)
    except NotImplementedError as error:
        raise PairError(f'--distill {opt.distill}: needs pre-activations; {error}') from error


def has_preact(net, image_size: int) -> bool:
    """Whether a net gives feature maps before their ReLU."""
    try:
        output_shapes(net, image_size, preact=True)
    except NotImplementedError:
        return False
    return True


def check_maps(opt, shapes_s: list, shapes_t: list) -> None:
    """Raises PairError unless both lists have entries, and all are shapes (C, H, W) of feature maps."""
    for flag, name, shapes in (('--model_s', opt.model_s, shapes_s), ('--path-t', opt.model_t, shapes_t)):
        others = [shape for shape in shapes if len(shape) != 3]
        if others or not shapes:
            reason = f'a feature is {("N", *others[0])}' if others else 'it has none'
            raise PairError(f'{flag}: --distill {opt.distill} needs feature maps (N, C, H, W) of {name}, but {reason}')


def check_heads(opt, nets, allow_norm: bool = False) -> None:
    """Raises PairError unless these nets end in pooling and one linear layer.

    The classifier then also applies to single positions of the map before pooling. nets: (flag, name, net, shapes of
    its outputs) each. allow_norm: a norm may stand between pooling and the linear layer.
    """
    for flag, name, net, shapes in nets:
        try:
            fits = len(shapes.map) == 3 and (isinstance(net.pooled_head(), nn.Linear) or allow_norm)
        except NotImplementedError:
            fits = False
        if not fits:
            raise PairError(f'{flag}: --distill {opt.distill} applies the classifier to the map before pooling, but '
                            f'{name} has other layers between them; choose a net without')


def output_shapes(net, image_size: int, preact: bool = False) -> Outputs:
    """Return the shapes of a net's outputs without the batch dimension, as Outputs."""
    return map_outputs(probe(net, image_size, preact), lambda x: tuple(x.shape[1:]))


def map_outputs(out: Outputs, function) -> Outputs:
    """Return Outputs of function(tensor) for each tensor."""
    return Outputs(*(None if value is None else [function(v) for v in value] if isinstance(value, list)
                     else function(value) for value in out))
