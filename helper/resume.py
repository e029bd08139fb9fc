"""--resume: finds the state that a run continues from, and checks that the state is of this run."""
import contextlib
import os
import zlib
from pathlib import Path

from . import distributed
from .checkpoint import load_checkpoint
from .cli import current_options, values
from .errors import UserError, counted, printable
from .files import FolderLock, write_atomically
from .loops import SPLITS
from .records import selection_of
from .run_folder import RunPaths, claim
from .state import LAST, PREVIOUS, TrainingState, as_user_error, load_state

IMAGES_IN = '--images_in'       # images in memory and images on disk draw different random numbers
IMAGES, CLASS_NAMES, NORMALISATION = 'images (checksum)', 'class names', 'normalisation'
VALIDATION = 'validation images'
# missing in the states of older versions
NEWER_PROPERTIES = (IMAGES_IN, IMAGES, CLASS_NAMES, NORMALISATION, VALIDATION)
SHOWN_CLASSES = 4       # at the start of the text of CLASS_NAMES


class AnotherRun(UserError):
    """The options or the data of --resume differ from the saved run's."""


def fingerprint(data, **nets) -> dict:
    """The properties of the data, the checksum of the code of each net and of the head of a teacher. They must be the
    same in a resumed run, and in the runs of a table."""
    properties = {'training images': data.n_train, 'classes': data.num_classes if data.has_labels else None,
             'labels (checksum)': zlib.crc32(data.labels.numpy().tobytes()), CLASS_NAMES: _class_names(data.classes),
             IMAGES: data.checksum, IMAGES_IN: data.images_in, NORMALISATION: data.preprocessing,
             'unlabelled images': data.n_unlabelled or None,
             'unlabelled images (checksum)': data.unlabelled_checksum,
             VALIDATION: None if data.val_labels is None else len(data.val_labels),
             **{f'{part} of the {role} (checksum)': getattr(net, f'{part}_checksum', None)
                for part in ('code', 'head') for role, net in nets.items()}}
    return {name: value for name, value in properties.items() if value is not None}


def _class_names(classes):
    """The class names as text: all if they are few, else the first and a checksum of all; None if there are none."""
    if len(classes) <= 2 * SHOWN_CLASSES:
        return ', '.join(classes) or None
    checksum = zlib.crc32(repr([*classes]).encode())
    return f'{", ".join(classes[:SHOWN_CLASSES])}, ... ({len(classes)}, checksum {checksum})'


class RunIdentity:
    """The options and properties that must be the same in a resumed run: `values`, name -> value, and the seed."""

    def __init__(self, opt, properties: dict, dtype):
        """properties: of the data and the nets. dtype: of --amp."""
        self.opt = opt
        options = {name: value for name, value in values(opt).items() if name not in opt.flags.may_differ}
        self.values = {**options, **properties, 'amp': str(dtype)}

    def differences(self, saved: dict, seed) -> list[str]:
        """The differences between this run and a saved one with the values `saved` and this seed, as texts."""
        # An option that did not exist then had its default; a property that an old state lacks is not compared.
        saved = {**self.opt.flags.defaults, **{name: self.values.get(name) for name in NEWER_PROPERTIES},
                 **current_options(saved)}
        texts = [f'{name} {saved.get(name)}, now {value}' for name, value in self.values.items()
                 if saved.get(name) != value]
        if 'seed' not in self.opt.flags.filled_in and self.opt.seed != seed:
            texts.append(f'seed {seed}, now {self.opt.seed}')
        return texts


def resume(opt, paths: RunPaths, identity: RunIdentity, training: TrainingState, lock: FolderLock) -> dict | None:
    """Load the weights of --resume, and end the first stage if it is over. All processes call this. Raises UserError.

    Returns the state, with the `path` of its file; None for a new run.
    """
    module, path = training.module, saved_path(opt, paths.folder)
    if is_in(path, paths.folder):
        claim(lock, wait=True)      # another run there may still write
    state = distributed.broadcast(lambda: _read(opt, paths, path, identity, training))
    if state is None:
        return None
    with as_user_error(f'--resume {opt.resume}'):
        if state['stage'] == 'train' and module.in_first_stage:
            module.end_first_stage()
        training.load_module(state, module.make_optimizer(opt.learning_rate, opt), f'--resume {opt.resume}')
    saved, processes = len(state['random']), distributed.world_size()
    if saved != processes:
        print(f'saved by {counted(saved, "process")}, resumed by {processes}: the result differs from that of {saved}, '
              f'because batch norms and losses between images use the images of one process, and methods draw other '
              f'random numbers; --batch_size stays the total')
    return state


def saved_path(opt, folder: Path) -> Path:
    """The file of --resume, which may not exist. folder: of the run."""
    path = folder if opt.resume == 'auto' else Path(opt.resume)
    return path / LAST if opt.resume == 'auto' or os.path.isdir(path) else path


def _read(opt, paths, path, identity, training):
    """The state in `path`, or in the file before it; None if there is none, or --overwrite replaces another run."""
    previous = path.with_name(PREVIOUS)
    if opt.resume == 'auto' and not os.path.exists(path) and not os.path.exists(previous):
        print(f'nothing to resume in {paths.folder}: starting a new run')
        return None
    try:
        state = load_state(path, training.module, training.loader)
    except UserError as error:
        if path.name != LAST or not os.path.exists(previous):
            raise
        print(f'{printable(error)}: resuming from {PREVIOUS}, the state before it')
        path = previous
        state = load_state(path, training.module, training.loader)
    try:
        with as_user_error(f'--resume {opt.resume}'):
            _check_same_run(state, path, opt, identity, training.module)
    except AnotherRun:
        if opt.overwrite and is_in(path, paths.folder):
            return None
        raise
    print(f'resuming from {path}: {describe_progress(state)}')
    return {**state, 'path': str(path)}


def is_in(path: Path, folder: Path) -> bool:
    """Whether the file lies in this folder itself."""
    return path.parent.resolve() == folder.resolve()


def _check_same_run(state, path, opt, identity, module):
    """Raise AnotherRun, which names the differences, unless this run can continue from the state."""
    new_run = 'another --trial, for a run beside it' if opt.resume == 'auto' else \
        'another --trial without --resume, for a run beside it'
    differences = identity.differences(state['identity'], state['seed'])
    chosen_on, saved_on = 'val' if VALIDATION in identity.values else 'test', selection_of(state['log']['best'])
    if chosen_on != saved_on:       # of an older version, which did not use the validation images of the data
        differences.append(f'the best epoch chosen on the {SPLITS[saved_on]} set, now on the {SPLITS[chosen_on]} set')
    saved_processes, processes = len(state['random']), distributed.world_size()
    if saved_processes != processes and module.spec.drop_last:
        differences.append(f'{counted(saved_processes, "process")}, now {processes}, and weights whose shapes depend '
                           f'on the batch of a process')
    if differences:
        is_older = 'crop' not in state['identity']
        flags = ' '.join(f'--{name} {value}' for name, value in (('crop', 'padded'), ('normalise', 'usual'))
                         if is_older and any(text.startswith(f'{name} {value},') for text in differences))
        raise AnotherRun(f'--resume {path}: another run, with {"; ".join(differences)}; give what it was started with'
                         f'{f", {flags}" if flags else ""}, or {new_run}')
    epochs = state.get('epochs', opt.epochs)
    if (module.scheduled_over_epochs or opt.sched != 'step') and epochs != opt.epochs:
        raise AnotherRun(f'--epochs {opt.epochs}: {path} follows a schedule over {epochs} epochs, which cannot be '
                         f'changed during a run; give --epochs {epochs}, or {new_run}')
    reached = state['epoch'] - (state['step'] == 0) if state['stage'] == 'train' else 0
    if opt.epochs < reached:
        raise AnotherRun(f'--epochs {opt.epochs}: {path} has reached epoch {reached}; give at least {reached}, or '
                         f'{new_run}')


def check_best(state: dict, paths: RunPaths, records) -> dict:
    """Check the best checkpoint so far. If it is in another folder, copy it; if it is lost there, count again.

    Returns records.best.
    """
    source, best, last = Path(state['path']).parent, records.best, finished_epoch(state)
    if best.get('epoch') in (None, last):       # none yet, or this run writes it soon
        return best
    file, is_whole = source / paths.best.name, False
    with contextlib.suppress(UserError):
        content = load_checkpoint(str(file), '')
        is_whole = (content.get('epoch'), content.get(f'best_{records.names[1]}')) == \
            (best['epoch'], best[records.score])
    if not is_whole and (records.needs_best_weights or not is_in(file, paths.folder)):
        print(f'{source}: does not hold the best checkpoint of epoch {best["epoch"]}; the best is determined again')
        records.count_best_anew(from_last=last > 0)
        return records.best
    if not is_in(file, paths.folder):
        write_atomically(paths.best, file.read_bytes())
    elif not is_whole:
        print(f'{file}: the weights of the best epoch, {best["epoch"]}, are lost; its figures stay, and the next '
              f'epoch that is better is saved there')
    records.write_best()
    return best


def finished_epoch(state: dict) -> int:
    """The epoch that ends with this state; its JSON files and checkpoints may be unwritten. 0 within an epoch."""
    return state['epoch'] - 1 if state['stage'] == 'train' and state['step'] == 0 else 0


def describe_progress(state: dict) -> str:
    """'after step 2 of epoch 3' or 'after epoch 2'."""
    stage = ' of the first stage' if state['stage'] == 'init' else ''
    if state['step']:
        return f'after step {state["step"]} of epoch {state["epoch"]}{stage}'
    return f'after epoch {state["epoch"] - 1}{stage}'
