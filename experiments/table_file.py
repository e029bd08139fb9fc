"""A table file of scripts/tables/: pairs of nets, rows of methods, trials, and the options of all runs."""
import re
import shlex
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.published import published_sources
from distiller_zoo import get_method
from helper.errors import UserError, nearest, printable, reason
from helper.files import open_regular
from models.find import check_name

TABLES = Path(__file__).resolve().parents[1] / 'scripts' / 'tables'
ALONE = 'alone'     # in the place of a method: the student without a teacher
LARGEST = 10**6     # bytes of a table file


@dataclass(frozen=True)
class Pair:
    """A column: who teaches whom, and flags of this column's runs."""

    teacher: str
    student: str
    flags: tuple[str, ...] = ()

    def __str__(self):
        return f'{self.teacher} -> {self.student}'


@dataclass(frozen=True)
class Row:
    """A line: its name in the table, the method, and the method's flags."""

    label: str
    method: str
    flags: tuple[str, ...] = ()


@dataclass
class Table:
    """What a table file says. The flags are words of a command line."""

    path: Path
    title: str
    pairs: list[Pair]
    rows: list[Row]
    seeds: list[int]                    # one trial for each, which are named 1, 2, ...
    options: list[str] = field(default_factory=list)            # of every run
    teacher_options: list[str] = field(default_factory=list)    # of the teachers' own training, after `options`
    student_options: list[str] = field(default_factory=list)    # of the students' runs, after `options`
    sources: tuple[str, ...] = ()       # of the published figures beside ours; the first that has one counts
    fetched: str | None = None          # where a teacher may already lie; '{teacher}' stands for its name
    auxiliary: Row | None = None        # how auxiliary teachers learn, for methods that need one: its label is the net
    teacher_cache: bool = False         # share the teachers' outputs between the runs whose method allows it
    left_out: frozenset[tuple[str, str]] = frozenset()          # (row's label, pair) without a run
    cells: dict[tuple[str, str], Row] = field(default_factory=dict)     # (row's label, pair) -> the row with more flags

    @property
    def name(self) -> str:
        """The file's name, and that of the table's folder in save/."""
        return self.path.stem

    def row_for(self, row: Row, pair: Pair) -> Row:
        """The row as this pair runs it, with the flags that [cells] adds."""
        return self.cells.get((row.label, str(pair)), row)

    @property
    def headline(self) -> str | None:
        """The label of the row whose improvement over the others is shown: the last method."""
        methods = [row.label for row in self.rows if row.method != ALONE]
        return methods[-1] if methods else None


# key -> (whether it is required, the kind of its value, an example)
KEYS = {
    'title': (True, str, '"SemCKD, CIFAR-100"'),
    'pairs': (True, list, '["resnet32x4 -> vgg8", "vgg13 -> vgg8"]'),
    'rows': (True, dict, '[rows] and below it lines as  KD = "kd -r 1 -a 1 -b 0"'),
    'seeds': (True, list, '[1, 2, 3, 4], one trial for each'),
    'options': (False, str, '"--dataset cifar100 --epochs 240"'),
    'teacher_options': (False, str, '"--epochs 30"'),
    'student_options': (False, str, '"--epochs 60"'),
    'published': (False, (str, list), '"SemCKD", or ["RepDistiller", "DKD"]'),
    'cells': (False, dict, '[cells] and below it lines as  "KD: vgg13 -> vgg8" = "--kd_T 2"'),
    'fetched': (False, str, '"save/models/{teacher}_vanilla/ckpt_epoch_240.pth"'),
    'auxiliary': (False, str, '"resnet8x4_double: pkt -b 30000"'),
    'teacher_cache': (False, bool, 'true'),
    'left_out': (False, list, '["FSP: wrn_40_2 -> wrn_40_1"]'),
}


def find(name: str) -> Path:
    """The file of a table: a path, or the name of one in scripts/tables/. Raises UserError."""
    if name.endswith('.toml'):
        return Path(name)
    tables = {file.stem: file for file in TABLES.glob('*.toml')}
    if name not in tables:
        raise UserError(f'TABLE {name}: no such table; {nearest(name, tables)}; or give the path of a file, NAME.toml')
    return tables[name]


def read(path: Path) -> Table:
    """The table in a file, every name in it checked. Raises UserError that names the file and the row."""
    with open_regular(path, str(path)) as file:
        text = file.read(LARGEST + 1)
    try:
        if len(text) > LARGEST:
            raise ValueError(f'more than {LARGEST} bytes')
        content = tomllib.loads(text.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        found = re.search(r'at line (\d+)', str(error))
        line = text.decode(errors='replace').split('\n')[int(found[1]) - 1].strip()[:80] if found else ''
        raise UserError(f'{path}: {reason(error)}{": " * bool(line)}{line}; a table is a TOML file, as those in '
                        f'scripts/tables') from error
    for key, value in content.items():
        if key not in KEYS:
            raise UserError(f'{path}: {key}: no such key; {nearest(key, KEYS)}')
        if not isinstance(value, KEYS[key][1]):
            raise UserError(f'{path}: {key}: give it as {KEYS[key][2]}')
    for key, (required, _, example) in KEYS.items():
        if required and not content.get(key):
            raise UserError(f'{path}: {key} is missing or empty; give it as {example}')
    for what, text in (('title', content['title']), *(('rows', label) for label in content['rows'])):
        if not text.isprintable() or not text.strip():
            raise UserError(f'{path}: {what}: {text!r}: give a name in one line, of characters that can be seen')
    rows = [_row(label, text, f'{path}: row {label}') for label, text in content['rows'].items()]
    for i, row in enumerate(rows):
        if same := [other.label for other in rows[:i] if (other.method, other.flags) == (row.method, row.flags)]:
            raise UserError(f'{path}: row {row.label}: is the same as row {same[0]}; give each once')
    pairs = [_pair(text, str(path)) for text in content['pairs']]
    if twice := [pair for i, pair in enumerate(pairs) if str(pair) in map(str, pairs[:i])]:
        raise UserError(f'{path}: pairs: {twice[0]} is there twice; give each once')
    seeds = content['seeds']
    if any(type(seed) is not int or not 0 <= seed < 2**32 for seed in seeds) or len({*seeds}) < len(seeds):
        raise UserError(f'{path}: seeds: give different whole numbers from 0 to {2**32 - 1}, as {KEYS["seeds"][2]}')
    published = content.get('published', [])
    published = [published] if isinstance(published, str) else published
    for source in published:
        if source not in published_sources():
            raise UserError(f'{path}: published {source}: analysis/published.csv has no figures of it; '
                            f'{nearest(str(source), published_sources())}')
    words = {key: _words(content[key], f'{path}: {key}')
             for key in ('options', 'teacher_options', 'student_options') if key in content}
    left_out = frozenset((row.label, str(pair)) for row, pair in
                         (_cell(text, rows, pairs, path, 'left_out') for text in content.get('left_out', [])))
    if len(left_out) == len(rows) * len(pairs):
        raise UserError(f'{path}: left_out: names every cell of the table; leave one in')
    cells = {}
    for name, flags in content.get('cells', {}).items():
        row, pair = _cell(name, rows, pairs, path, 'cells')
        if not isinstance(flags, str) or row.method == ALONE:
            raise UserError(f'{path}: cells: {name}: give flags of a method, as {KEYS["cells"][2]}')
        if (row.label, str(pair)) in left_out:
            raise UserError(f'{path}: cells: {name}: is left out; name it in one of the two keys')
        more = _words(flags, f'{path}: cells: {name}')
        cells[row.label, str(pair)] = replace(row, flags=(*row.flags, *more))
    return Table(path, content['title'], pairs, rows, seeds, sources=tuple(published), cells=cells,
                 fetched=content.get('fetched'), teacher_cache=content.get('teacher_cache', False),
                 auxiliary=_auxiliary(content['auxiliary'], path) if 'auxiliary' in content else None,
                 left_out=left_out, **words)


def _words(text, what):
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UserError(f'{what}: {printable(text)[:200]}: {error}; give quotation marks in pairs, and no backslash at '
                        f'the end') from error
    if odd := [word for word in words if not word.isprintable()]:
        raise UserError(f'{what}: {odd[0]!r}: give words of characters that can be seen')
    return words


def _row(label, text, what):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{what}: give a method and its flags, as "kd -r 1 -a 1 -b 0", or "{ALONE}"')
    method, *flags = _words(text, what)
    if method != ALONE:
        get_method(method, what)
    return Row(label, method, tuple(flags))


def _pair(text, what):
    words = _words(text, f'{what}: pairs') if isinstance(text, str) else []
    if len(words) < 3 or words[1] != '->':
        raise UserError(f'{what}: pairs: {text}: give a teacher and a student, as "resnet32x4 -> vgg8"')
    for name in (words[0], words[2]):
        _check_net(name, f'{what}: pairs: {text}')
    return Pair(words[0], words[2], tuple(words[3:]))


def _check_net(name, what):
    check_name(name, 224, f'{what}:')


def _auxiliary(text, path):
    net, colon, method = text.rpartition(':')
    if not colon:
        raise UserError(f'{path}: auxiliary: {text}: give a net and how it learns, as {KEYS["auxiliary"][2]}')
    _check_net(net, f'{path}: auxiliary: {text}')
    return _row(net, method, f'{path}: auxiliary')


def _cell(name, rows, pairs, path, key):
    """The row and the pair that 'ROW: TEACHER -> STUDENT' names."""
    label, _, words = str(name).rpartition(': ')
    row = next((row for row in rows if row.label == label), None)
    pair = next((pair for pair in pairs if str(pair) == words), None)
    if not row or not pair:
        raise UserError(f'{path}: {key}: {name}: give a row and a pair of this table, as {KEYS[key][2]}')
    return row, pair
