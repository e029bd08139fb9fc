"""The table that ends a search: the best values of each row beside the published ones, over several seeds."""
import itertools
import json
import os
import shlex
import shutil
from dataclasses import dataclass

from helper.errors import printable
from helper.files import locked, write_atomically

from .folder_check import option_differences
from .plan import plan_runs
from .planned_run import PlannedRun
from .search import Search
from .search_results import RowResult
from .space import ALONE
from .table_file import Table, read_table


def make_final(search: Search, results: list[RowResult], n_seeds: int, extra_args: list[str]
               ) -> tuple[Table, list[PlannedRun]]:
    """Write final.toml into the folder of a search, and return its table and its runs in the folder `final`.

    The teachers of the search are copied there. Earlier runs of other best values are moved away.
    """
    save, file = search.save / 'final', search.save / 'final.toml'
    with locked(file):
        write_atomically(file, final_text(search, results, n_seeds).encode())
        table = read_table(file)
        runs = plan_runs(table, str(save), extra_args)
        for run in search.teacher_runs():
            _copy_folder(run.folder, save / run.folder.relative_to(search.save))
        for run in runs:
            if option_differences(run):
                _move_away(run, save / 'replaced')
    return table, runs


def final_text(search: Search, results: list[RowResult], n_seeds: int) -> str:
    """Return the text of final.toml: rows 'KD, tuned' and 'KD, published', without those that no trial has finished.

    The seeds are not that of the search, whose values were chosen with it.
    """
    space = search.table
    seeds = itertools.chain(space.seeds[1:], (number for number in itertools.count() if number not in space.seeds))
    rows = _rows(search, results)
    left_out = [f'{label}: {pair}' for label, (_, flags) in rows.items() for pair in space.pairs
                if str(pair) not in flags]
    cells = {f'{label}: {pair}': shlex.join(words) for label, (_, flags) in rows.items()
             for pair, words in flags.items() if words}
    content = {'title': f'{space.title}: tuned and published values', 'seeds': [*itertools.islice(seeds, n_seeds)],
               'teacher_seed': space.teacher_seed, **{key: shlex.join(getattr(space, key)) for key in
                                        ('options', 'teacher_options', 'student_options') if getattr(space, key)},
               **({'auxiliary': f'{space.auxiliary.label}: ' + shlex.join([space.auxiliary.method,
                                                                          *space.auxiliary.flags])}
                  if space.auxiliary else {}),
               **({'fetched': space.fetched} if space.fetched else {}),
               **({'teacher_cache': True} if space.teacher_cache else {}),
               'pairs': [' '.join([str(pair), shlex.join(pair.flags)]).strip() for pair in space.pairs],
               **({'left_out': left_out} if left_out else {})}
    lines = ['# Written by scripts/tune.py from the results of the search in this folder.',
             *(f'{key} = {_toml(value)}' for key, value in content.items()), '\n[rows]',
             *(f'{_toml(label)} = {_toml(shlex.join(words))}' for label, (words, _) in rows.items())]
    lines += ['\n[cells]', *(f'{_toml(name)} = {_toml(flags)}' for name, flags in cells.items())] if cells else []
    return '\n'.join(lines) + '\n'


def _toml(value):
    return json.dumps(value, ensure_ascii=False)


@dataclass
class _Entry:
    """The result of a row for a pair."""

    pair: str
    method: str
    fixed: list[str]        # flags of this pair alone, from [cells] of the space
    tuned: list[str]        # flags of the best values
    is_published: bool      # the best values are the published ones

    @property
    def kind(self) -> tuple:
        """Equal for the pairs that share a row of the final table: cells can replace values, but no method or flag."""
        names = [word for word in self.tuned if word.startswith('--')]
        return (self.method, *(self.tuned if self.method == ALONE else names))


def _rows(search, results):
    """Return label -> (method and flags, pair -> further flags of its cell)."""
    rows = {}
    for row in search.table.rows:
        groups = {}
        for entry in _entries(search, results, row):
            groups.setdefault(entry.kind, []).append(entry)
        for group in groups.values():
            method, of_published = group[0].method, {entry.pair: entry.fixed for entry in group}
            has_method_twice = [kind[0] for kind in groups].count(method) > 1
            suffix = '' if len(groups) == 1 else f', {group[0].pair}' if has_method_twice else f', {method}'
            if not row.ranges:
                _add(rows, f'{row.label}{suffix}', [method, *row.flags], of_published)
                continue
            if better := [entry for entry in group if not entry.is_published]:
                shared = better[0].tuned
                _add(rows, f'{row.label}, tuned{suffix}', [method, *row.flags, *shared], {
                    entry.pair: [*entry.fixed, *(entry.tuned if entry.fixed or entry.tuned != shared else [])]
                    for entry in better})
            _add(rows, f'{row.label}, published{suffix}', [method, *row.flags], of_published)
    return rows


def _entries(search, results, row):
    for cell, result in zip(search.cells, results, strict=True):
        if result.label == row.label and result.best:
            values = result.best.values
            for pair in search.pairs_of(cell):
                yield _Entry(str(pair), result.method, [*cell.row.flags[len(row.flags):]],
                             search.arguments(cell.row, values), search.is_published(cell, values))


def _add(rows, label, words, flags_of_pairs):
    """Add a row, or its pairs to a row of the same method and flags: a table has each once."""
    for other, flags in rows.values():
        if other == words:
            flags |= {pair: further for pair, further in flags_of_pairs.items() if pair not in flags}
            return
    rows[label] = words, flags_of_pairs


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
