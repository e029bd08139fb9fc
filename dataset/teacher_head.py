"""--teacher_head: a linear classifier on the teacher's frozen embedding, fitted once and saved for later runs.

The file is in the folder of --teacher_cache, else in teacher_heads of --save_dir.
"""
import contextlib
import time
import zlib
from pathlib import Path

import torch
from torch import Tensor, nn

from helper import distributed
from helper.checkpoint import load_checkpoint, save_checkpoint, weights_checksum
from helper.device import memory_format
from helper.errors import UserError, printable
from helper.files import locked
from helper.resume import fingerprint
from helper.run_folder import folder_name
from models.base import Net
from models.ensemble import nets_of, options_of_teachers
from models.logistic_regression import choose_strength, fit, logits

from .split import divide
from .teacher_cache.layout import outputs_checksum
from .teacher_cache.opening import FULL_DISK

HELD_OUT = 0.1      # share of the training images for selecting the strength if there is no validation set
HEADS = 'teacher_heads'     # the folder in --save_dir
NUMBERS = ('strength', 'training_acc', 'selection_acc')     # saved beside the weights


def add_head(opt, teacher: Net, data, device: torch.device) -> None:
    """Fit or load the classifier of --teacher_head for a net of load_teacher_net. Raises UserError.

    opt: the options of a run with this teacher alone. With --estimate and no file, the classifier's weights stay zero.
    All processes must call this.
    """
    if not len(data.labels):
        raise UserError(f'--teacher_head {opt.teacher_head}: is fitted to labelled training images, but {opt.dataset} '
                        f'has none; give labelled images')
    layer, facts = teacher.get_classifier(), _facts(opt, teacher, data)
    folder = Path(opt.teacher_cache) if opt.teacher_cache else Path(opt.save_dir, HEADS)
    file = folder / f'{folder_name(opt.model_t)}_{folder_name(opt.dataset)}_{zlib.crc32(facts.encode()):08x}_head.pth'
    head, fault = distributed.broadcast(lambda: _read(file, facts, layer))
    if fault:
        print(f'{printable(fault)}; the head is fitted again')
    teacher.has_classifier = True
    if head is None and opt.estimate:
        return
    if head is None:
        _make_folder(folder, opt)
        start, embedded = time.perf_counter(), _embed(opt, teacher, data, device)
        head = distributed.broadcast(lambda: _save({**fit_head(*embedded, data.num_classes), 'facts': facts},
                                                   file, layer))
        source = f'fitted in {time.perf_counter() - start:.1f} s'
    else:
        source = f'read from {printable(file)}'
    held_out = 'held-out' if data.val_loader is None else 'validation'
    print(f'--teacher_head {opt.teacher_head}, {source}: top-1 {head["training_acc"]:.2f} on the training images, '
          f'{head["selection_acc"]:.2f} on the {held_out} images; L2 strength {head["strength"]:g}, selected on the '
          f'{held_out} images')
    _set_weights(teacher, head)


def _make_folder(folder, opt):
    """Make the folder of heads. Raises UserError if that is impossible, but not for a full disk."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno not in FULL_DISK:
            flag = f'--teacher_cache {opt.teacher_cache}' if opt.teacher_cache else f'--save_dir {opt.save_dir}'
            raise UserError(f'{flag}: {error.filename or folder}: cannot be used ({error.strerror}); give another '
                            f'folder') from error


@torch.no_grad()
def _set_weights(teacher, head):
    """Copy a head into the teacher's classifier."""
    layer = teacher.get_classifier()
    layer.weight.copy_(head['weight'])
    layer.bias.copy_(head['bias'])
    teacher.has_classifier, teacher.head_checksum = True, weights_checksum(layer)


def load_saved_head(teacher: Net, folders: list[Path], checksum: int, label: str) -> None:
    """Load the head with this checksum into a net of load_teacher_net, from a file in one of the folders.

    Raises UserError that begins with `label` if there is no such file.
    """
    for file in [file for folder in folders for file in sorted(folder.glob('*_head.pth'))]:
        with contextlib.suppress(UserError):
            head = load_checkpoint(str(file), '--teacher_head')
            if _is_head(head, head.get('facts'), teacher.get_classifier()):
                _set_weights(teacher, head)
                if teacher.head_checksum == checksum:
                    return
    raise UserError(f'{label}: the head that --teacher_head fitted is not in '
                    f'{" or ".join(printable(folder) for folder in folders)}')


def head_passes(opt, teacher: nn.Module, data) -> list[tuple]:
    """(net, loader) for each pass over images that a run needs to fit missing heads; --estimate leaves these out."""
    return [(net, loader) for teacher_opt, net in zip(options_of_teachers(opt), nets_of(teacher), strict=True)
            if teacher_opt.teacher_head and net.head_checksum is None
            for loader in filter(None, [data.unaugmented_loader(), data.val_loader])]


def _facts(opt, teacher, data) -> str:
    """The teacher, the labelled images and their preprocessing, as text. Heads of equal facts are equal."""
    facts = {name: fact for name, fact in fingerprint(data).items() if not name.startswith('unlabelled')}
    facts |= {**data.inputs, 'teacher (checksum)': outputs_checksum(teacher)}
    facts |= {name: getattr(opt, name) for name in ('split', 'val_fraction', 'train_fraction')}
    return repr(facts)


def _read(file, facts, layer):
    """(head, '') from an untrusted file; (None, the reason) if it cannot be used; (None, '') without a file."""
    if not file.exists():
        return None, ''
    try:
        head = load_checkpoint(str(file), '--teacher_head')
    except UserError as error:
        return None, str(error)
    return (head, '') if _is_head(head, facts, layer) else (None, f'{file}: holds no head of this teacher')


def _is_head(head, facts, layer):
    tensors, numbers = (head.get('weight'), head.get('bias')), map(head.get, NUMBERS)
    return head.get('facts') == facts and all(isinstance(number, float) for number in numbers) and all(
        isinstance(tensor, Tensor) and tensor.dtype == torch.float32 and tensor.shape == parameter.shape
        and tensor.isfinite().all() for tensor, parameter in zip(tensors, layer.parameters(), strict=True))


def _save(head, file, layer):
    """Save the head, unless another run has saved one in the meantime. Returns the saved head."""
    try:
        with locked(file):
            saved, _ = _read(file, head['facts'], layer)
            if saved is None:
                save_checkpoint(file, head)
            return saved or head
    except (OSError, UserError) as error:
        print(f'--teacher_head: cannot be saved for later runs ({printable(error)})')
    return head


def _embed(opt, teacher, data, device):
    """`embeddings` of the training images, and of the validation images: None without a validation set."""
    teacher.eval().to(device, memory_format=memory_format(opt))
    training = embeddings(teacher, data.unaugmented_loader())
    validation = None if data.val_loader is None else embeddings(teacher, data.val_loader)
    teacher.cpu()
    if not training[0].isfinite().all():
        raise UserError(f'--path-t {opt.path_t}: its embeddings of the training images are not finite; give a '
                        f'checkpoint of a run that did not diverge')
    return training, validation


@torch.no_grad()
def embeddings(teacher: Net, loader) -> tuple[Tensor, Tensor]:
    """(inputs of the teacher's classifier float32 (N, width), labels int64 (N,)) on the CPU, in the loader's order.

    N: images of all processes, which must all call this.
    """
    batches = [(index, target, teacher.hidden(teacher.outputs(images).embedding).float())
               for images, target, index in loader]
    local = [torch.cat(parts).cpu() for parts in zip(*batches, strict=True)]
    index, target, x = (torch.cat(parts) for parts in zip(*filter(None, distributed.gather(local)), strict=True))
    order = index.argsort()
    return x[order], target[order]


def fit_head(training: tuple[Tensor, Tensor], validation: tuple[Tensor, Tensor] | None, num_classes: int) -> dict:
    """Fit a classifier to (embeddings (N, width), labels (N,)). Returns 'weight' (classes, width), 'bias' (classes,).

    Logistic regression in float64 on standardised embeddings, whose scaling becomes a part of the weights. 'strength',
    of the penalty, is selected on the validation images; without them on a tenth of the training images, before the fit
    to all of these. 'training_acc', 'selection_acc': top-1 in percent on the training images, and on the images of the
    selection. Raises UserError if no image can be held out.
    """
    x, target = training[0].double(), training[1]
    mean, deviation = x.mean(0), x.std(0, correction=0)
    deviation[deviation <= 1e-6 * x.abs().max()] = 1        # a constant feature; it becomes 0
    x = (x - mean) / deviation
    if validation is None:
        parts = divide(target, range(len(target)), [1 - HELD_OUT, HELD_OUT])
        train, val = parts['train'], parts['test']
        if not val:
            raise UserError('--teacher_head linear: each class has one training image, so none can be held out to '
                            'select the strength of the penalty; add images')
        strength, rough_weights = choose_strength(x[train], target[train], x[val], target[val], num_classes)
        weights = fit(x, target, num_classes, strength, rough_weights)
        selection_acc = accuracy(rough_weights, x[val], target[val])
    else:
        x_val, target_val = (validation[0].double() - mean) / deviation, validation[1]
        strength, rough_weights = choose_strength(x, target, x_val, target_val, num_classes)
        weights = fit(x, target, num_classes, strength, rough_weights)
        selection_acc = accuracy(weights, x_val, target_val)
    weight = weights[:, :-1] / deviation
    return {'weight': weight.float(), 'bias': (weights[:, -1] - weight @ mean).float(), 'strength': strength,
            'training_acc': accuracy(weights, x, target), 'selection_acc': selection_acc}


def accuracy(weights: Tensor, x: Tensor, target: Tensor) -> float:
    """The percentage of the embeddings x that the weights of logistic_regression.fit classify as target."""
    return 100 * (logits(weights, x).argmax(1) == target).double().mean().item()
