"""Read and check a table file of scripts/tables/: pairs of nets, rows of methods, seeds and the options of the runs."""
import re
import shlex
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path

from analysis.published import published_sources
from helper.errors import UserError, nearest, printable, reason
from helper.files import open_regular
from models.find import check_name

from .space import ALONE, METHOD, OTHER_DATA, Range, parse_row
from .table_flags import check_flags, check_method

TABLES = Path(__file__).resolve().parents[1] / 'scripts' / 'tables'
SPACES = TABLES.with_name('spaces')
MAX_BYTES = 10**6   # of a table file
COMPARED = 'the trials of a search are compared on the same images, so this flag belongs to the key options'
OF_SEARCH = ' (search)'     # after the name that is noted in the folder of a search


@dataclass(frozen=True)
class Pair:
    """A column of the table: a teacher, a student, and flags for the runs of this column."""

    teacher: str
    student: str
    flags: tuple[str, ...] = ()

    def __str__(self):
        return f'{self.teacher} -> {self.student}'


@dataclass(frozen=True)
class Row:
    """A row of the table: its label, the method and its flags; in a search also ranges of flags."""

    label: str
    method: str                         # the first one, if there is a range of methods
    flags: tuple[str, ...] = ()
    ranges: tuple[Range, ...] = ()

    @property
    def methods(self) -> tuple[str, ...]:
        """The methods among which a search chooses."""
        return next((part.choices for part in self.ranges if part.name == METHOD), (self.method,))


@dataclass
class Table:
    """The content of a table file. Flags are split into arguments."""

    path: Path
    title: str
    pairs: list[Pair]
    rows: list[Row]
    seeds: list[int]                                            # of the trials 1, 2, ...
    options: list[str] = field(default_factory=list)            # of every run
    teacher_options: list[str] = field(default_factory=list)    # of the teachers' runs, after `options`
    student_options: list[str] = field(default_factory=list)    # of the students' runs, after `options`
    sources: tuple[str, ...] = ()       # of the published figures; the first source that has a figure counts
    fetched: str | None = None          # path of a downloaded teacher, with '{teacher}' for its name
    auxiliary: Row | None = None        # training of auxiliary teachers: the label is the net
    teacher_cache: list[str] = field(default_factory=list)      # flags of the runs whose method allows --teacher_cache
    left_out: frozenset[tuple[str, str]] = frozenset()                  # (row label, pair) without runs
    cells: dict[tuple[str, str], Row] = field(default_factory=dict)     # (row label, pair) -> the row with extra flags
    teacher_seed: int = 0       # of the teachers' runs; not given in the file: the first of `seeds`
    is_space: bool = False      # of a search: its rows may have ranges

    @property
    def name(self) -> str:
        """The name of the file, and of the table's folder in save/."""
        return self.path.stem

    @property
    def owner(self) -> str:
        """The name that is noted in the folder."""
        return f'{self.name}{OF_SEARCH}' if self.is_space else self.name

    @property
    def headline(self) -> str | None:
        """The label of the last method, whose improvement over the others is shown; None without a method."""
        return next((row.label for row in reversed(self.rows) if row.method != ALONE), None)


# key -> (is required, type of its value, example)
KEYS = {
    'title': (True, str, '"SemCKD, CIFAR-100"'),
    'pairs': (True, list, '["resnet32x4 -> vgg8", "vgg13 -> vgg8"]'),
    'rows': (True, dict, '[rows], then lines like  KD = "kd -a 0.9"'),
    'seeds': (True, list, '[1, 2, 3, 4], one trial for each'),
    'options': (False, str, '"--dataset cifar100 --epochs 240"'),
    'teacher_options': (False, str, '"--epochs 30"'),
    'teacher_seed': (False, int, '1'),
    'student_options': (False, str, '"--epochs 60"'),
    'published': (False, (str, list), '"SemCKD", or ["RepDistiller", "DKD"]'),
    'cells': (False, dict, '[cells], then lines like  "KD: vgg13 -> vgg8" = "--kd_T 2"'),
    'fetched': (False, str, '"save/models/{teacher}_vanilla/ckpt_epoch_240.pth"'),
    'auxiliary': (False, str, '"resnet8x4_double: pkt -b 30000"'),
    'teacher_cache': (False, (bool, str), 'true, or its flags as "--cache_epochs 20 --cache_topk 10"'),
    'left_out': (False, list, '["FSP: wrn_40_2 -> wrn_40_1"]'),
}


def find_table(name: str, folder: Path = TABLES) -> Path:
    """Return the file of a table, or of a search in SPACES: `name` is a path, or a name in the folder.

    Raises UserError.
    """
    if name.endswith('.toml'):
        return Path(name)
    kind, files = folder.name.removesuffix('s'), {file.stem: file for file in folder.glob('*.toml')}
    if name not in files:
        raise UserError(f'{kind.upper()} {name}: no such {kind}, and not a file NAME.toml; {nearest(name, files)}')
    return files[name]


def read_table(path: Path, has_ranges: bool = False) -> Table:
    """Return the checked table of a file. Raises UserError that names the file and the key or row.

    has_ranges: the file is of a search; its rows may be sub-tables with ranges of flags.
    """
    with open_regular(path, str(path)) as file:
        content = file.read(MAX_BYTES + 1)
    try:
        return _table(path, _parse(content), has_ranges)
    except UserError as error:
        raise UserError(f'{path}: {error}') from error


def _parse(content):
    """Return the TOML of the file as a dict of known keys with values of the right type."""
    try:
        if len(content) > MAX_BYTES:
            raise ValueError(f'more than {MAX_BYTES} bytes')
        table = tomllib.loads(content.decode('utf-8-sig'))
    except (ValueError, RecursionError) as error:
        number = re.search(r'at line (\d+)', str(error))
        line = content.decode(errors='replace').split('\n')[int(number[1]) - 1].strip()[:80] if number else ''
        raise UserError(f'{reason(error)}{line and ": "}{line}; a table is a TOML file like those in scripts/tables'
                        ) from error
    for key, value in table.items():
        if key not in KEYS:
            raise UserError(f'{key}: no such key; {nearest(key, KEYS)}')
        if not isinstance(value, KEYS[key][1]):
            raise UserError(f'{key}: give it as {KEYS[key][2]}')
    for key, (is_required, _, example) in KEYS.items():
        if is_required and not table.get(key):
            raise UserError(f'{key} is missing or empty; give it as {example}')
    for key, name in (('title', table['title']), *(('rows', label) for label in table['rows'])):
        if not name.isprintable() or not name.strip():
            raise UserError(f'{key}: {name!r}: give a name of one line of printable characters')
    return table


def _table(path, content, has_ranges):
    rows = []
    for label, value in content['rows'].items():
        if isinstance(value, dict) and not has_ranges:
            raise UserError(f'row {label}: is a row of a search; python scripts/tune.py {path} runs it')
        rows.append(_row_of_ranges(label, value) if isinstance(value, dict) else _row(label, value, f'row {label}'))
    for i, row in enumerate(rows):
        if same := [other.label for other in rows[:i] if replace(other, label=row.label) == row]:
            raise UserError(f'row {row.label}: is the same as row {same[0]}; give each once')
    pairs = [_pair(text) for text in content['pairs']]
    if repeated := [pair for i, pair in enumerate(pairs) if str(pair) in map(str, pairs[:i])]:
        raise UserError(f'pairs: {repeated[0]} is there twice; give each once')
    seeds = content['seeds']
    if not all(map(_is_seed, seeds)) or len({*seeds}) < len(seeds):
        raise UserError(f'seeds: give different whole numbers from 0 to {2**32 - 1}, as {KEYS["seeds"][2]}')
    teacher_seed = content.get('teacher_seed', seeds[0])
    if not _is_seed(teacher_seed):
        raise UserError(f'teacher_seed: give a whole number from 0 to {2**32 - 1}')
    published = content.get('published', [])
    published = [published] if isinstance(published, str) else published
    for source in published:
        if source not in published_sources():
            raise UserError(f'published {source}: analysis/published.csv has no figures from it; '
                            f'{nearest(str(source), published_sources())}')
    options = {key: _split(content[key], key) for key in ('options', 'teacher_options', 'student_options')
               if key in content}
    left_out = frozenset((row.label, str(pair)) for row, pair in
                         (_cell(name, rows, pairs, 'left_out') for name in content.get('left_out', [])))
    if len(left_out) == len(rows) * len(pairs):
        raise UserError('left_out: names every cell of the table; leave one in')
    cells = {}
    for name, flags in content.get('cells', {}).items():
        row, pair = _cell(name, rows, pairs, 'cells')
        if not isinstance(flags, str) or row.method == ALONE:
            raise UserError(f'cells: {name}: give flags of a method, as {KEYS["cells"][2]}')
        if (row.label, str(pair)) in left_out:
            raise UserError(f'cells: {name}: is left out; name it in one of the two keys')
        cells[row.label, str(pair)] = replace(row, flags=(*row.flags, *_split(flags, f'cells: {name}')))
    if has_ranges:
        other_data = dict.fromkeys((f'--{name.replace("_", "-")}' for name in OTHER_DATA), COMPARED)
        for row in [*rows, *cells.values()]:
            check_flags([*row.flags], f'row {row.label}', other_data)
    return Table(path, content['title'], pairs, rows, seeds, sources=tuple(published), cells=cells,
                 fetched=content.get('fetched'), teacher_cache=_cache_flags(content.get('teacher_cache', False)),
                 auxiliary=_auxiliary(content['auxiliary']) if 'auxiliary' in content else None,
                 left_out=left_out, teacher_seed=teacher_seed, is_space=has_ranges, **options)


def _cache_flags(value):
    """teacher_cache = true or "--cache_epochs 20 --cache_topk 10" -> the flags of a run."""
    flags = _split(value, 'teacher_cache') if isinstance(value, str) else []
    names = flags[::2]
    if isinstance(value, str) and (not flags or len(flags) % 2 or len(names) > len(set(names)) or
                                   not {'--cache_epochs', '--cache_topk', '--cache_seed'}.issuperset(names)):
        raise UserError(f'teacher_cache: give it as {KEYS["teacher_cache"][2]}')
    return ['--teacher_cache', *flags] if value else []


def _is_seed(value):
    return type(value) is int and 0 <= value < 2**32


def _split(text, label):
    """Split flags into arguments, as a shell does."""
    try:
        arguments = shlex.split(text)
    except ValueError as error:
        raise UserError(f'{label}: {printable(text)[:200]}: {error}; give quotation marks in pairs, and no backslash '
                        f'at the end') from error
    if unprintable := [argument for argument in arguments if not argument.isprintable()]:
        raise UserError(f'{label}: {unprintable[0]!r}: give printable characters')
    return arguments


def _row(label, text, source):
    if not isinstance(text, str) or not text.strip():
        raise UserError(f'{source}: give a method and its flags, as "kd -a 0.9", or "{ALONE}"')
    method, *flags = _split(text, source)
    if method != ALONE:
        check_method(method, source)
    return Row(label, method, tuple(flags))


def _row_of_ranges(label, content):
    methods, flags, ranges = parse_row(content, f'row {label}')
    flags = tuple(_split(flags, f'row {label}: flags'))
    check_flags([*flags], f'row {label}: flags')
    return Row(label, methods[0], flags, ranges)


def _pair(text):
    arguments = _split(text, 'pairs') if isinstance(text, str) else []
    if len(arguments) < 3 or arguments[1] != '->':
        raise UserError(f'pairs: {text}: give a teacher and a student, as "resnet32x4 -> vgg8"')
    teacher, _, student, *flags = arguments
    for net in (teacher, student):
        check_name(net, 224, f'pairs: {text}:')
    return Pair(teacher, student, tuple(flags))


def _auxiliary(text):
    net, colon, method = text.rpartition(':')
    if not colon:
        raise UserError(f'auxiliary: {text}: give a net and its method, as {KEYS["auxiliary"][2]}')
    check_name(net, 224, f'auxiliary: {text}:')
    return _row(net, method, 'auxiliary')


def _cell(name, rows, pairs, key):
    """Return the row and the pair of 'ROW: TEACHER -> STUDENT'."""
    label, _, nets = str(name).rpartition(': ')
    row = next((row for row in rows if row.label == label), None)
    pair = next((pair for pair in pairs if str(pair) == nets), None)
    if not row or not pair:
        raise UserError(f'{key}: {name}: give a row and a pair of this table, as {KEYS[key][2]}')
    return row, pair
