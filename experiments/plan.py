"""The runs of a table: each an ordinary command, and which of them wait for another's checkpoint."""
import contextlib
import io
import itertools
import json
import os
import re
import shlex
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace

import torch

from dataset import dataset_key, source_dict
from distiller_zoo import get_method, make_distiller
from distiller_zoo.checks import check_pairwise_batch
from helper.cli import Parser, nearest_flag, values
from helper.distributed import check_batch_size
from helper.errors import UserError, nearest, printable
from helper.run_folder import RunPaths, folder_name
from models.find import build, check_name, is_user_file
from models.load import open_checkpoint
from models.recognise import find_architecture
from options import LARGEST, flags, student_options, teacher_options, with_recipe

from .table_file import ALONE, Row, Table

COMMAND_LINE = 'the command line'     # in messages, of the flags for every run
ROOT = Path(__file__).resolve().parents[1]
REFUSED = {     # flag of the train scripts -> why a table's runs may not have it
    **dict.fromkeys(('--path-t', '--model', '--model_s', '--distill', '--trial', '-t', '--seed', '--save_dir',
                     '--resume', '--gpu_id', '--multiprocessing-distributed', '--dist-url'),
                    'reproduce.py sets this flag itself'),
    **dict.fromkeys(('--evaluate', '--estimate', '--list', '-h', '--help'), 'a run with this flag trains nothing'),
    '--teacher_cache': 'give the table  teacher_cache = true',
    '--overwrite': 'a table replaces no run; move its folder away instead',
}
SIZES = {'cifar10': (10, 32), 'cifar100': (100, 32), 'digits': (10, 32), 'imagenet': (1000, 224),
         'imagenette': (10, 224)}       # classes, pixels


@dataclass(eq=False)
class Step:
    """A run of a table. `progress.py` knows whether it is finished."""

    name: str                       # its log's, unique in the table
    what: str                       # how messages name it
    script: str
    arguments: list[str]            # without what says where it computes
    opt: Namespace                  # the arguments, parsed
    folder: Path
    checkpoint: Path
    net: str                        # that it trains
    trial: int                      # 1, 2, ...; 0 of a teacher
    after: 'Step | None' = None     # whose checkpoint it needs
    teaches: bool = False           # whether another step needs its checkpoint
    cells: list[tuple[str, str]] = field(default_factory=list)      # (row's label, pair) that it is a trial of

    def command(self, placement: list[str], python: str = 'python') -> list[str]:
        """The words of the command line, for the folder in which this process is.

        placement: the flags of where it computes, which come first, so that the table's --num_workers counts.
        """
        script = self.script if Path.cwd() == ROOT else str(ROOT / self.script)
        return [python, script, *placement, *self.arguments]


def steps_of(table: Table, save_dir: str, more: list[str]) -> list[Step]:
    """The runs of a table in the order in which they run: the teachers, all first trials, all second ones, ...

    more: flags of every run, after the table's.

    Every command has been parsed by the script's own parser, and every pair of nets has been given to its methods.
    Raises UserError that names the file and the row.
    """
    plan = _Plan(table, save_dir, more)
    for pair in table.pairs:
        for row in table.rows:
            if (row.label, str(pair)) not in table.left_out:
                plan.add_cell(pair, table.row_for(row, pair))
        plan.check_image_sizes(pair)
    if plan.not_cached and not plan.cached:
        *_, why = plan.not_cached.values()
        raise UserError(f'{table.path}: teacher_cache: no run of the table can use it ({why}); leave it out')
    return sorted(plan.steps.values(), key=lambda step: step.trial)


def cut(table: Table, steps: list[Step], rows: str | None, pairs: str | None, seeds: str | None
        ) -> tuple[Table, list[Step]]:
    """The table and its steps, reduced to the named rows, pairs and seeds, with the teachers that they need.

    Each argument has names with commas between them, or is None: all. A run keeps its folder and its trial's number.
    Raises UserError for a name that the table does not have.
    """
    rows = _named(rows, {row.label: row for row in table.rows}, '--rows', table)
    pairs = _named(pairs, {str(pair): pair for pair in table.pairs}, '--pairs', table)
    seeds = _named(seeds, {str(seed): seed for seed in table.seeds}, '--seeds', table)
    cells = {(row.label, str(pair)) for row in rows for pair in pairs} - table.left_out
    if not cells:
        raise UserError(f'--rows and --pairs: {table.path} leaves out these cells; name others')
    kept = {step for step in steps if cells & {*step.cells} and step.opt.seed in seeds}
    while before := {step.after for step in kept if step.after} - kept:
        kept |= before
    return replace(table, rows=rows, pairs=pairs, seeds=seeds), [step for step in steps if step in kept]


def _named(text, known, flag, table):
    """The values of `known`, name -> value, that `text` names, in the order of the table."""
    if text is None:
        return [*known.values()]
    names = [' '.join(name.replace('->', ' -> ').split()) for name in text.split(',')]
    for name in names:
        if name not in known:
            raise UserError(f'{flag} {name}: {table.path} does not have it; {nearest(name, known)}')
    return [value for name, value in known.items() if name in names]


class _Plan:
    """Collects the steps; one that several cells need is there once."""

    def __init__(self, table, save_dir, more):
        self.table, self.save_dir, self.more = table, save_dir, more
        self.steps: dict[str, Step] = {}        # by the run's folder
        self.teachers: dict[str, tuple[Path, Step | None]] = {}
        self.auxiliaries: dict[str, Step] = {}  # by their teacher
        self.nets: dict[Path, str] = {}         # of fetched checkpoints
        self.fetched: dict[Path, dict] = {}     # their 'arch' and 'inputs'
        self.blank = {}
        # With teacher_cache: `what` of the steps that use one, and why others do not.
        self.cached: set[str] = set()
        self.not_cached: dict[str, str] = {}
        for key in ('options', 'teacher_options', 'student_options'):
            _check_words(getattr(table, key), f'{table.path}: {key}')
        _check_words(more, COMMAND_LINE)

    def add_cell(self, pair, row):
        what = f'{self.table.path}: row {row.label}, {pair}'
        _check_words([*row.flags, *pair.flags], what)
        for trial, seed in enumerate(self.table.seeds, 1):
            if row.method == ALONE:
                step = self._alone(pair, row, trial, seed, what)
            else:
                step = self._distilled(pair, row, trial, seed, what)
            if (row.label, str(pair)) in step.cells or any(p == str(pair) for _, p in step.cells):
                raise UserError(f'{what}: is the same run as row {step.cells[0][0]}; give each once')
            step.cells.append((row.label, str(pair)))

    def check_image_sizes(self, pair):
        """Raises UserError if a student alone would train on images of another size than its teacher."""
        steps = [step for step in self.steps.values() if str(pair) in {name for _, name in step.cells}
                 and dataset_key(step.opt.dataset) in source_dict and 'image_size' not in step.opt.flags.given]
        for alone in (step for step in steps if step.script == 'train_teacher.py'):
            for taught in (step for step in steps if step.script == 'train_student.py'):
                size = taught.opt.image_size
                if size != alone.opt.image_size:
                    raise UserError(f'{alone.what}: its images would have {alone.opt.image_size} pixels, but those of '
                                    f'the teacher {pair.teacher} have {size}; give --image_size {size} in options')

    def _alone(self, pair, row, trial, seed, what):
        words = [*self.table.options, *self.table.student_options, *pair.flags, *row.flags]
        name = f'{folder_name(pair.student)}-{_slug(row.label)}-{trial}'
        same = self._named(name)
        if same and all(of != str(pair) for _, of in same.cells):       # by the flags of another pair
            name = f'{folder_name(pair.teacher)}-{name}'
        return self._teacher_step(pair.student, words, f'{trial}{_suffix(row)}', seed, name, what)

    def _distilled(self, pair, row, trial, seed, what):
        source, after = self._teacher(pair.teacher)
        suffix = _suffix(row)
        if get_method(row.method).spec.auxiliary_teacher and self.table.auxiliary:
            after = self._auxiliary(pair.teacher)
            source, suffix = after.checkpoint, f'{suffix}_{folder_name(pair.teacher)}'
        words = [*self.table.options, *self.table.student_options, *pair.flags, *row.flags]
        name = f'{folder_name(pair.teacher)}-{folder_name(pair.student)}-{_slug(row.label)}-{trial}'
        step = self._student_step(pair.student, row, words, source, after, pair.teacher, f'{trial}{suffix}', seed,
                                  name, what)
        if trial == 1:
            self._check_pair(step, what)
        return step

    def _teacher(self, name):
        """(checkpoint, the step that makes it or None where it is there already)."""
        if name not in self.teachers:
            fetched = self.table.fetched and Path(self.table.fetched.replace('{teacher}', name))
            if fetched and os.path.isfile(fetched):
                self.teachers[name] = fetched, None
            else:
                words = [*self.table.options, *self.table.teacher_options]
                step = self._teacher_step(name, words, '0', self.table.seeds[0], f'teacher-{folder_name(name)}',
                                          f'{self.table.path}: teacher {name}')
                self.teachers[name] = step.checkpoint, step
        return self.teachers[name]

    def _auxiliary(self, teacher):
        if teacher not in self.auxiliaries:
            row = self.table.auxiliary
            what = f'{self.table.path}: auxiliary teacher {row.label}, taught by {teacher}'
            words = [*self.table.options, *self.table.student_options, *row.flags]
            name = f'auxiliary-{folder_name(teacher)}-{folder_name(row.label)}'
            step = self._student_step(row.label, row, words, *self._teacher(teacher), teacher, 'auxiliary',
                                      self.table.seeds[0], name, what)
            self._check_pair(step, what)
            self.auxiliaries[teacher] = step
        return self.auxiliaries[teacher]

    def _teacher_step(self, model, words, trial, seed, name, what):
        arguments = ['--model', model, *words, '--trial', trial, '--seed', str(seed), *self._last()]
        opt = self._parsed(teacher_options, arguments, what)
        return self._step(name, what, 'train_teacher.py', arguments, opt, RunPaths.of_teacher(opt), None)

    def _student_step(self, model, row, words, source, after, teacher, trial, seed, name, what):
        arguments = ['--path-t', str(source), '--model_s', model, '--distill', row.method, *words,
                     '--trial', trial, '--seed', str(seed), *self._last()]
        if is_user_file(teacher):
            arguments += ['--model_t', teacher]
        if what in self.cached:
            arguments.append('--teacher_cache')
        opt = self._parsed(student_options, arguments, what)
        if self.table.teacher_cache and what not in self.cached and what not in self.not_cached:
            try:
                opt = student_options([*arguments, '--teacher_cache'])
                arguments.append('--teacher_cache')
                self.cached.add(what)
            except UserError as error:      # not with this method, or with flags as --mixup
                self.not_cached[what] = f'{what}: {error}'
        if 'image_size' not in opt.flags.given and dataset_key(opt.dataset) in source_dict:     # see take_image_size
            opt.image_size = after.opt.image_size if after else self._size_of(source, teacher) or opt.image_size
        opt.model_t = after.net if after else self._net_of(source, teacher, pixels(opt))
        return self._step(name, what, 'train_student.py', arguments, opt, RunPaths.of_student(opt), after)

    def _parsed(self, options, arguments, what):
        """The options. Where they are right without the flags of the command line, these are at fault."""
        try:
            _check_words(with_recipe(arguments)[:-len(arguments)], '--recipe')
            return options(arguments)
        except (UserError, ValueError) as error:
            if self.more:
                with contextlib.suppress(UserError, ValueError):
                    options(arguments[:-len(self.more)])
                    what = COMMAND_LINE
            raise UserError(f'{what}: {error}') from error

    def _last(self):
        return ['--save_dir', self.save_dir, '--resume', 'auto', *self.more]

    def _step(self, name, what, script, arguments, opt, paths, after):
        folder, number = paths.folder, re.match(r'\d*', opt.trial)[0]
        found = self.steps.get(str(folder))
        if found is None:
            if same := self._named(name):
                raise UserError(f'{what}: its log would be that of {same.what.partition(": ")[2]}; give the row '
                                f'another name')
            net = check_name(opt.model if script == 'train_teacher.py' else opt.model_s, pixels(opt), what)
            found = Step(name, what, script, arguments, opt, folder, paths.best, net, int(number or 0), after)
            self.steps[str(folder)] = found
            if after:
                after.teaches = True
        elif values(found.opt) != values(opt):
            raise UserError(f'{what}: would be written into {folder}, as {found.what.partition(": ")[2]} with other '
                            f'flags; ' + ('give the row another name' if found.name == name else
                                          'leave one of the two out'))
        return found

    def _named(self, name):
        return next((step for step in self.steps.values() if step.name == name), None)

    def _fetched(self, path, name):
        """The checkpoint in a fetched file, without the weights."""
        if path not in self.fetched:
            found = open_checkpoint(str(path), f'{self.table.path}: teacher {name}')
            self.fetched[path] = {key: value for key, value in found.items() if key in ('arch', 'inputs')}
        return self.fetched[path]

    def _size_of(self, path, name):
        """The image size in a fetched checkpoint; None if it has none."""
        inputs = self._fetched(path, name).get('inputs')
        size = inputs.get('size') if isinstance(inputs, dict) else None
        return size if type(size) is int and 0 < size <= LARGEST else None

    def _net_of(self, path, name, size):
        """The net that a fetched checkpoint holds, as train_student.py will name it: `name`, or that resolved."""
        if path not in self.nets:
            what = f'{self.table.path}: teacher {name}'
            found = find_architecture(str(path), self._fetched(path, name), f'{what}:')
            if check_name(found, size, f'{what}: {path}: holds') != check_name(name, size, what):
                raise UserError(f'{what}: {path}: holds a {printable(found)}; let fetched name a checkpoint of {name}')
            self.nets[path] = found
        return self.nets[path]

    def _check_pair(self, step, what):
        """Give both nets to the method, which refuses what it cannot serve."""
        opt, method = step.opt, get_method(step.opt.distill)
        classes, pixels = SIZES.get(opt.dataset, (10, opt.image_size))
        labels = torch.arange(50000) % classes
        data = SimpleNamespace(num_classes=classes, image_size=pixels, labels=labels, n_train=len(labels))
        nets = [self._blank(name, classes, pixels, teaches, stages, what)
                for name, teaches, stages in ((opt.model_s, False, opt.stages), (opt.model_t, True, opt.stages_t))]
        try:
            check_pairwise_batch(method.spec, opt.batch_size)
            with contextlib.redirect_stdout(io.StringIO()):
                make_distiller(*nets, opt, data)
        except UserError as error:
            raise UserError(f'{what}: {error}') from error

    def _blank(self, name, classes, pixels, teaches, stages, what):
        """A net that has not learnt, and that computes its outputs once for all methods. One that teaches is frozen."""
        key = name, classes, pixels, teaches, str(stages)
        if key not in self.blank:
            net = self.blank[key] = build(name, classes, pixels, what)
            compute, known = net.outputs, {}

            def outputs(images, preact=False):
                asked = images.shape, preact
                known[asked] = known.get(asked) or compute(images, preact)
                return known[asked]
            net.outputs = outputs
        return self.blank[key].requires_grad_()     # SimKD has frozen a part of it for another pair


def pixels(opt) -> int:
    """The height and width of the images on which these options train."""
    return SIZES.get(opt.dataset, (10, opt.image_size))[1]


def _suffix(row: Row) -> str:
    """What a trial's name has more where the folder's does not show all of the row's flags."""
    shown = ('-r', '-a', '-b', '--gamma', '--alpha', '--beta')
    hidden = [word for word in row.flags if word.startswith('-') and not re.match(r'-[\d.]', word)
              and word.split('=')[0] not in shown]
    return f'_{_slug(row.label)}' if hidden else ''


def known_flags(parser: Parser) -> tuple[Namespace, list[str]]:
    """(the options of a script's parser, the words that are left: flags of every run). Raises UserError."""
    opt, more = parser.parse_known()
    known = {*parser.flags().defaults, *flags(student=True).defaults, *flags(student=False).defaults}
    for flag in (word.partition('=')[0] for word in more if word.startswith('--')):
        name = flag[2:].replace('-', '_')
        if not {name, name.removeprefix('no_')} & known:
            parser.error(f'{flag}: no such flag; {nearest_flag(flag, (f"--{other}" for other in known))}')
    return opt, more


def _slug(label):
    """A row's label as a part of a file's name."""
    return re.sub(r'[^\w.+-]+', '_', label)[:40]


def _check_words(words, what):
    """Raises UserError for a flag that is not allowed in a table."""
    refused = {flag.replace('_', '-'): why for flag, why in REFUSED.items()}
    for word in words:
        name = word.split('=')[0].replace('_', '-') if word.startswith('--') else word[:2]
        if name in refused:
            raise UserError(f'{what}: {word}: {refused[name]}; leave it out')


def check_batches(steps: list[Step], processes: int) -> None:
    """Raises UserError unless the number of processes divides the batch of each run."""
    for step in steps:
        try:
            check_batch_size(step.opt, processes)
            if hasattr(step.opt, 'distill'):
                check_pairwise_batch(get_method(step.opt.distill).spec, step.opt.batch_size // processes)
        except UserError as error:
            raise UserError(f'{step.what}: {error}') from error


def expected(opt) -> dict:
    """option -> value, of those that a run with these options must have had: what decides its result."""
    names = ({*values(opt)} - opt.flags.may_differ) | {'epochs', 'seed'}
    return {name: value for name, value in json.loads(json.dumps(values(opt))).items() if name in names}


def shell(words: list[str], threads: str | None = None) -> str:
    """A command line that a person can paste. threads: OMP_NUM_THREADS."""
    return (f'OMP_NUM_THREADS={shlex.quote(threads)} ' if threads else '') + shlex.join(words)


def waves(steps: list[Step]) -> list[list[Step]]:
    """The steps in groups, each of which waits for nothing but the groups before it."""
    depth = {}
    for step in steps:
        depth[step] = depth[step.after] + 1 if step.after else 0
    return [list(group) for _, group in itertools.groupby(sorted(steps, key=depth.get), key=depth.get)]
