"""The folder of a run: its name, its lock, and the check for an earlier run in it."""
import contextlib
import os
import re
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path

from . import distributed
from .checkpoint import load_checkpoint
from .cli import as_list, comma_list
from .errors import UserError
from .files import FolderLock, make_folder, read_json
from .state import LAST, PREVIOUS

LONGEST = 80        # characters of the names of several teachers in a folder's name

@dataclass
class RunPaths:
    """Where a run writes, by its options."""

    folder: Path                # checkpoints and JSON files
    events: Path                # TensorBoard
    best: Path                  # the checkpoint of the best epoch
    seconds_per_unit: float     # of 'Total time' in parameters.json

    @classmethod
    def of_teacher(cls, opt) -> 'RunPaths':
        """The paths of a run of train_teacher.py."""
        net = folder_name(opt.model)
        name = f'{net}_{folder_name(opt.dataset)}_lr_{opt.learning_rate}_decay_{opt.weight_decay}_trial_{opt.trial}'
        return cls._make(opt, 'models', 'tensorboard', name, net, seconds_per_unit=1)

    @classmethod
    def of_student(cls, opt) -> 'RunPaths':
        """The paths of a run of train_student.py; opt.model_t is the teacher's net, or a list of several."""
        net = folder_name(opt.model_s)
        name = (f'S:{net}_T:{teacher_name(opt.model_t)}_{folder_name(opt.dataset)}_{opt.distill}'
                f'_r:{opt.gamma}_a:{opt.alpha}_b:{comma_list(opt.beta)}_{opt.trial}')
        return cls._make(opt, 'student_model', 'student_tensorboards', name, net, seconds_per_unit=3600)

    @classmethod
    def _make(cls, opt, runs, events, name, net, seconds_per_unit):
        name += f'_dali:{opt.dali}' if opt.dali else ''
        if sys.platform == 'win32':
            name = name.replace(':', '~')
        folder = Path(opt.save_dir, runs, name)
        return cls(folder, Path(opt.save_dir, events, name), folder / f'{net}_best.pth', seconds_per_unit)


def folder_name(name: str) -> str:
    """The name of a net or data set as a part of a folder's name: nets/mine.py:build -> nets-mine.py:build."""
    file, is_file, function = name.rpartition('.py:')
    if is_file:
        folder = Path(file).parent
        name = f'{Path(file).name}{is_file}{function}'
        name = name if folder == Path() else f'{folder.resolve().name}-{name}'
    return re.sub(r'[^\w.:,=+-]', '_', name)


def teacher_name(nets: str | list[str]) -> str:
    """The teacher's net, or those of several with +, as a part of a folder's name; many long names are cut off."""
    name = '+'.join(map(folder_name, as_list(nets)))
    if isinstance(nets, str) or len(name) <= LONGEST:
        return name
    return f'{name[:LONGEST]}_{zlib.crc32(name.encode()):08x}'


def claim(lock: FolderLock, wait: bool) -> None:
    """Make the folder and lock it. wait: until another run ends, else raise UserError. All processes call this."""
    def take():
        make_folder(lock.folder)
        return lock.take()

    is_waiting = False
    while not distributed.broadcast(take):
        if not wait:
            raise UserError(f'{lock.folder}: another run is writing there; give another --trial, or --resume auto to '
                            f'wait and continue from it')
        if not is_waiting:
            print(f'{lock.folder}: another run is writing there; waiting for it to end', flush=True)
        is_waiting = True
        time.sleep(0.3)


def check_earlier_run(paths: RunPaths, identity, has_first_stage: bool, overwrite: bool) -> None:
    """Raise UserError in all processes if this run would replace one with a finished epoch without --overwrite."""
    earlier = distributed.broadcast(lambda: _describe_earlier_run(paths, identity, has_first_stage))
    if not earlier:
        return
    content, advice = earlier
    if not overwrite:
        raise UserError(f'{paths.folder} {content}; {advice}')
    print(f'{paths.folder} {content}; --overwrite: this run replaces it after its first epoch')


def _describe_earlier_run(paths, identity, has_first_stage):
    """(what the folder holds, advice); None if no run there has finished an epoch."""
    files = {name for name in (LAST, PREVIOUS, 'history.json', 'test_best_metrics.json', paths.best.name)
             if os.path.exists(paths.folder / name)}
    if not files:
        return None
    state, saved = {}, None
    with contextlib.suppress(UserError):
        state = load_checkpoint(str(paths.folder / LAST), '')
        is_first_stage = state.get('stage') == 'init' or not has_first_stage
        if is_first_stage and state.get('epoch') == 1 and files <= {LAST, PREVIOUS}:
            print(f'{paths.folder} holds a run that was stopped in its first epoch; this one replaces it')
            return None
        saved = state.get('identity')
    seed = state.get('seed')
    if not isinstance(saved, dict):
        with contextlib.suppress(UserError, TypeError):     # a damaged file, or not a dictionary
            saved = {**read_json(paths.folder / 'parameters.json', ''), 'amp': identity.values['amp']}
            seed = saved.get('seed')
    differences = identity.differences(saved, seed) if isinstance(saved, dict) else ['options that cannot be read']
    if differences:
        return f'holds another run, with {"; ".join(differences)}', \
            'give another --trial, or --overwrite to replace it'
    if files & {LAST, PREVIOUS}:
        return 'holds this run already', \
            '--resume auto continues it, another --trial repeats it beside it, --overwrite replaces it'
    return f'holds this run, but not its {LAST}', 'give another --trial, or --overwrite to train it again'
