"""A run of a table: its command, its options, and the selection of runs by row, pair and seed."""
import itertools
import json
import re
import shlex
from argparse import Namespace
from dataclasses import dataclass, field, replace
from pathlib import Path

from distiller_zoo import get_method
from distiller_zoo.checks import check_pairwise_batch
from helper.cli import Parser, nearest_flag, values
from helper.distributed import check_batch_size
from helper.errors import UserError, nearest
from options import flags

from .table_file import Table

ROOT = Path(__file__).resolve().parents[1]


@dataclass(eq=False)
class PlannedRun:
    """A run of a table. progress.py says whether it is finished."""

    name: str                       # of its log, unique in the table
    label: str                      # in messages: the table's file, and the row and pair
    script: str
    arguments: list[str]            # without the flags for the device
    opt: Namespace                  # the parsed arguments
    folder: Path
    checkpoint: Path
    net: str                        # the trained net
    trial: int                      # 1, 2, ...; 0 for a teacher
    teacher_run: 'PlannedRun | None' = None     # must finish first
    has_students: bool = False      # another run needs its checkpoint
    cells: list[tuple[str, str]] = field(default_factory=list)      # (row label, pair) of the cells with this trial

    @property
    def short_label(self) -> str:
        """The label without the table's file."""
        return self.label.partition(': ')[2]

    def command(self, device_flags: list[str], python: str = 'python') -> list[str]:
        """Return the command line for the current folder. The table's flags follow device_flags and override them."""
        script = self.script if Path.cwd() == ROOT else str(ROOT / self.script)
        return [python, script, *device_flags, *self.arguments]


def parse_known_flags(parser: Parser, arguments: list[str] | None = None) -> tuple[Namespace, list[str]]:
    """Return the options of a script, and the remaining arguments, which are flags of every run. Raises UserError.

    arguments: None for those of the command line.
    """
    opt, extra_args = parser.parse_known(arguments)
    known = {*parser.flags().defaults, *flags(student=True).defaults, *flags(student=False).defaults}
    for flag in (argument.partition('=')[0] for argument in extra_args if argument.startswith('--')):
        name = flag[2:].replace('-', '_')
        if not {name, name.removeprefix('no_')} & known:
            parser.error(f'{flag}: no such flag; {nearest_flag(flag, (f"--{other}" for other in known))}')
    if extra_args and not extra_args[0].startswith('-'):
        parser.error(f'{extra_args[0]}: belongs to no flag; a flag begins with --')
    return opt, extra_args


def shell(argv: list[str], threads: str | None = None) -> str:
    """Return a command line for a shell. threads: the value of OMP_NUM_THREADS."""
    return (f'OMP_NUM_THREADS={shlex.quote(threads)} ' if threads else '') + shlex.join(argv)


def select_part(table: Table, runs: list[PlannedRun], rows: str | None, pairs: str | None, seeds: str | None
                ) -> tuple[Table, list[PlannedRun]]:
    """Return the table and its runs, reduced to the named rows, pairs and seeds, with the teachers that they need.

    rows, pairs, seeds: names with commas, or None for all. Raises UserError for an unknown name.
    """
    table = select_cells(table, rows, pairs)
    seeds = _select(seeds, {str(seed): seed for seed in table.seeds}, '--seeds', table)
    cells = {(row.label, str(pair)) for row in table.rows for pair in table.pairs}
    selected = {run for run in runs if cells & {*run.cells} and run.opt.seed in seeds}
    return replace(table, seeds=seeds), with_teachers(runs, selected)


def with_teachers(runs: list[PlannedRun], selected: set[PlannedRun]) -> list[PlannedRun]:
    """Return the selected ones of these runs, and those of the teachers that they need."""
    while teacher_runs := {run.teacher_run for run in selected if run.teacher_run} - selected:
        selected = selected | teacher_runs
    return [run for run in runs if run in selected]


def select_cells(table: Table, rows: str | None, pairs: str | None) -> Table:
    """Return the table reduced to the named rows and pairs, see select_part."""
    rows = _select(rows, {row.label: row for row in table.rows}, '--rows', table)
    pairs = _select(pairs, {str(pair): pair for pair in table.pairs}, '--pairs', table)
    if not {(row.label, str(pair)) for row in rows for pair in pairs} - table.left_out:
        raise UserError(f'--rows and --pairs: {table.path} leaves out these cells; name others')
    return replace(table, rows=rows, pairs=pairs)


def _select(text, known, flag, table):
    """Return the values of `known`, name -> value, that the comma list names, in the order of the table."""
    if text is None:
        return [*known.values()]
    by_words = {re.sub(r'\s*,\s*', ',', name): name for name in known}
    names, words = [], [' '.join(word.replace('->', ' -> ').split()) for word in text.split(',')]
    while words:
        # A name may have commas, such as a row of tune.py's final.toml: try the longest one first.
        counts = [n for n in range(len(words), 0, -1) if ','.join(words[:n]) in by_words]
        if not counts:
            raise UserError(f'{flag} {words[0]}: {table.path} does not have it; {nearest(words[0], known)}')
        names.append(by_words[','.join(words[:counts[0]])])
        words = words[counts[0]:]
    return [value for name, value in known.items() if name in names]


def check_batches(runs: list[PlannedRun], processes: int) -> None:
    """Raise UserError unless the batch of each run can be divided among its processes."""
    for run in runs:
        try:
            check_batch_size(run.opt, processes)
            if hasattr(run.opt, 'distill'):
                check_pairwise_batch(get_method(run.opt.distill).spec, run.opt.batch_size // processes)
        except UserError as error:
            raise UserError(f'{run.label}: {error}') from error


def expected_options(opt) -> dict:
    """Return option -> value of the options that decide a run's result, as parameters.json has them."""
    names = ({*values(opt)} - opt.flags.may_differ) | {'epochs', 'seed'}
    return {name: value for name, value in json.loads(json.dumps(values(opt))).items() if name in names}


def waves(runs: list[PlannedRun]) -> list[list[PlannedRun]]:
    """Return the runs in groups, each of which needs only the groups before it."""
    depth = {}
    for run in runs:
        depth[run] = depth[run.teacher_run] + 1 if run.teacher_run else 0
    return [list(group) for _, group in itertools.groupby(sorted(runs, key=depth.get), key=depth.get)]
