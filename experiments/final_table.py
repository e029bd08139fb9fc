"""The table that ends a search: each row with its best values, the published ones and -b auto, over several seeds."""
import contextlib
import itertools
import json
import os
import shlex
import shutil
from dataclasses import dataclass

from helper.cli import AUTO
from helper.errors import UserError, printable
from helper.files import locked, write_atomically

from .folder_check import option_differences
from .plan import plan_runs
from .planned_run import PlannedRun, with_teachers
from .search import Search
from .search_results import row_results
from .space import ALONE, METHOD
from .table_file import Table, read_table

TUNED, PUBLISHED = 'tuned', 'published'
KINDS = TUNED, PUBLISHED, AUTO      # of rows: the best values, the published ones, the published ones with -b auto


def make_final(search: Search, n_seeds: int, kinds: list[str], extra_args: list[str]
               ) -> tuple[Table, list[PlannedRun]]:
    """Write final.toml into the folder of a search, and return its table and its runs in the folder `final`.

    search: with all rows that have trials. kinds: some of KINDS. The teachers of the search are copied there. Earlier
    runs of other best values are moved away.
    """
    save, file = search.save / 'final', search.save / 'final.toml'
    with locked(file):
        kinds = [*dict.fromkeys([*kinds, *_earlier_kinds(file)])]
        write_atomically(file, final_text(search, n_seeds, kinds).encode())
        table = read_table(file)
        runs = plan_runs(table, str(save), extra_args)
        for run in search.teacher_runs():
            _copy_folder(run.folder, save / run.folder.relative_to(search.save))
        for run in runs:
            if option_differences(run):
                _move_away(run, save / 'replaced')
    return table, runs


def _earlier_kinds(file):
    """Return the kinds of rows that an earlier call has written."""
    words = []
    with contextlib.suppress(UserError):        # there is no readable one
        words = read_table(file).title.rpartition(': ')[2].removesuffix(' values').split(', ')
    return [kind for kind in KINDS if kind in words]


def final_runs(runs: list[PlannedRun], part: Table) -> list[PlannedRun]:
    """Return the runs of the final table that belong to the rows and pairs of a part of the space."""
    pairs = {*map(str, part.pairs)}
    return with_teachers(runs, {run for run in runs if any(
        pair in pairs and is_of_row(label, row.label) for label, pair in run.cells for row in part.rows)})


def is_of_row(label: str, row: str) -> bool:
    """Return whether a row of the final table, such as 'KD, tuned', belongs to a row of the space, such as 'KD'."""
    return f'{label}, '.startswith(f'{row}, ')


def final_text(search: Search, n_seeds: int, kinds: list[str]) -> str:
    """Return the text of final.toml: rows such as 'KD, tuned' for each of `kinds`, without rows that no trial has
    finished.

    The seeds differ from the seed of the search, with which its values were selected.
    """
    space, rows = search.table, _rows(search, kinds)
    if not rows:
        raise UserError(f'--final_rows {",".join(kinds)}: no row of {space.path} has such values; give '
                        f'{TUNED},{PUBLISHED}')
    seeds = itertools.chain(space.seeds[1:], (number for number in itertools.count() if number not in space.seeds))
    pairs = [pair for pair in space.pairs if any(str(pair) in flags for _, flags in rows.values())]
    left_out = [f'{label}: {pair}' for label, (_, flags) in rows.items() for pair in pairs if str(pair) not in flags]
    cells = {f'{label}: {pair}': shlex.join(arguments) for label, (_, flags) in rows.items()
             for pair, arguments in flags.items() if arguments}
    content = {'title': f'{space.title}: {", ".join(kinds)} values', 'seeds': [*itertools.islice(seeds, n_seeds)],
               'teacher_seed': space.teacher_seed, **{key: shlex.join(getattr(space, key)) for key in
                                        ('options', 'teacher_options', 'student_options') if getattr(space, key)},
               **({'auxiliary': f'{space.auxiliary.label}: ' + shlex.join([space.auxiliary.method,
                                                                          *space.auxiliary.flags])}
                  if space.auxiliary else {}),
               **({'fetched': space.fetched} if space.fetched else {}),
               **({'teacher_cache': shlex.join(space.teacher_cache[1:]) or True} if space.teacher_cache else {}),
               'pairs': [f'{shlex.quote(pair.teacher)} -> {shlex.join([pair.student, *pair.flags])}' for pair in pairs],
               **({'left_out': left_out} if left_out else {})}
    lines = ['# Written by scripts/tune.py from the results of the search in this folder.',
             *(f'{key} = {_toml(value)}' for key, value in content.items()), '\n[rows]',
             *(f'{_toml(label)} = {_toml(shlex.join(arguments))}' for label, (arguments, _) in rows.items())]
    lines += ['\n[cells]', *(f'{_toml(name)} = {_toml(flags)}' for name, flags in cells.items())] if cells else []
    return '\n'.join(lines) + '\n'


def _toml(value):
    return json.dumps(value, ensure_ascii=False)


@dataclass
class _Entry:
    """The result of a row for a pair."""

    pair: str
    method: str
    fixed: list[str]            # flags of this pair alone, from [cells] of the space
    tuned: list[str]            # flags of the best values
    flags: dict[str, list[str]]     # ', tuned' and so on, the end of the row's label -> flags of that row

    @property
    def group(self) -> tuple:
        """Equal for the pairs that share a row of the final table: cells can replace values, but no method or flag."""
        names = [word for word in self.tuned if word.startswith('--')]
        return (self.method, *(self.tuned if self.method == ALONE else names))


def _rows(search, kinds):
    """Return label -> (method and flags, pair -> further flags of its cell)."""
    rows, results = {}, row_results(search)
    for row in search.table.rows:
        groups = {}
        for entry in _entries(search, results, row, kinds):
            groups.setdefault(entry.group, []).append(entry)
        for group in groups.values():
            method = group[0].method
            has_method_twice = [key[0] for key in groups].count(method) > 1
            suffix = '' if len(groups) == 1 else f', {group[0].pair}' if has_method_twice else f', {method}'
            for kind in dict.fromkeys(kind for entry in group for kind in entry.flags):
                entries = [entry for entry in group if kind in entry.flags]
                shared = entries[0].flags[kind]
                _add(rows, f'{row.label}{kind}{suffix}', [method, *row.flags, *shared], {entry.pair: [
                    *entry.fixed, *(entry.flags[kind] if entry.fixed or entry.flags[kind] != shared else [])]
                    for entry in entries})
    return rows


def _entries(search, results, row, kinds):
    for cell, result in zip(search.cells, results, strict=True):
        if result.label == row.label and result.best:
            values = result.best.values
            flags = _flags(search, cell, values, kinds) if row.ranges else {'': []}
            for pair in search.pairs_of(cell):
                yield _Entry(str(pair), result.method, [*cell.row.flags[len(row.flags):]],
                             search.arguments(cell.row, values), flags)


def _flags(search, cell, values, kinds):
    """Return the end of a label -> flags, for the rows of a cell. Best values that are the published ones share a row.
    """
    flags = {TUNED: search.arguments(cell.row, values), PUBLISHED: [], AUTO: ['--beta', AUTO]}
    if TUNED in kinds and search.is_published(cell, values):
        kinds = {*kinds, PUBLISHED} - {TUNED}
    try:
        search.tuned_run(cell, {METHOD: values.get(METHOD, cell.row.method)}, flags[AUTO])
    except UserError:       # the method, or another flag, refuses -b auto
        del flags[AUTO]
    return {f', {kind}': arguments for kind, arguments in flags.items() if kind in kinds}


def _add(rows, label, arguments, flags_of_pairs):
    """Add a row, or its pairs to a row of the same method and flags: a table has each once."""
    for other, flags in rows.values():
        if other == arguments:
            flags |= {pair: further for pair, further in flags_of_pairs.items() if pair not in flags}
            return
    rows[label] = arguments, flags_of_pairs


def _copy_folder(source, target):
    """Copy a run's folder, all or nothing."""
    if source.is_dir() and not target.exists():
        copy = target.with_name(f'.{target.name}.copy')
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns('.*'))
        os.replace(copy, target)


def _move_away(run, folder):
    """Move the folder of a run with other options into `folder`."""
    folder.mkdir(exist_ok=True)
    target = next(path for number in itertools.count(1)
                  if not (path := folder / f'{run.folder.name}_{number}').exists())
    os.replace(run.folder, target)
    print(printable(f'{run.short_label}: the best values have changed; its earlier run is now {target}'))
