"""The ranges of a search: parsed from a row of a space file, such as  beta = "log 0.1 .. 1000"."""
import argparse
import math
import re
import shlex
from dataclasses import dataclass

from distiller_zoo import distiller_dict
from helper.cli import nearest_flag
from helper.errors import UserError, printable
from option_checks import methods_with_option
from options import actions, flags

from .table_flags import REFUSED, check_method

ALONE = 'alone'         # instead of a method: the student trains without a teacher
METHOD = 'distill'      # key of a row's method or methods
# change the images of the trials
OTHER_DATA = ('dataset', 'data_dir', 'split', 'train_fraction', 'val_fraction', 'unlabelled')
EXAMPLES = '"log 0.1 .. 1000", "1 .. 8" or [1, 2, 4]'


@dataclass(frozen=True)
class Range:
    """The values of a flag: `choices`, or numbers from low to high, on a logarithmic scale if is_log."""

    name: str                   # of the flag, without --
    text: str                   # as in the file
    choices: tuple = ()
    low: float = math.nan
    high: float = math.nan
    is_log: bool = False

    @property
    def is_whole(self) -> bool:
        """Whether its values are whole numbers."""
        return isinstance(self.low, int)

    @property
    def count(self) -> float:
        """The number of its values; infinite for real numbers."""
        return len(self.choices) or (self.high - self.low + 1 if self.is_whole else math.inf)

    @property
    def ends(self) -> list:
        """All choices, or the lowest and the highest number."""
        return [*self.choices] or [self.low, self.high]

    def position(self, value: float) -> float:
        """Return where a number lies between low (0) and high (1), on the scale of the range."""
        scale = math.log if self.is_log else float
        return (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))

    def find(self, value):
        """Return the value of the range that equals an option of a run; None if the range does not have it."""
        if self.choices:
            return next((choice for choice in self.choices if self._option(choice) == value), None)
        return value if isinstance(value, (int, float)) and self.low <= value <= self.high else None

    def _option(self, choice):
        """Return what the parser makes of a choice."""
        action = actions(student=True).get(self.name)
        if isinstance(choice, bool) or action is None or action.type is None:
            return choice
        words = shlex.split(str(choice)) if action.nargs == 2 else [str(choice)]
        options = [action.type(word) for word in words]
        return options if action.nargs == 2 else options[0]

    def rounded(self, value):
        """Return a value of the range with four significant digits, so that commands are short."""
        if self.choices or self.is_whole:
            return value
        return min(max(float(f'{value:.4g}'), self.low), self.high)

    def arguments(self, value) -> list[str]:
        """Return the arguments of a command line that give the flag this value."""
        if isinstance(value, bool):
            return [f'--{self.name}'] if value else []
        words = shlex.split(str(value)) if actions(student=True)[self.name].nargs == 2 else [str(value)]
        return [f'--{self.name}={words[0]}'] if words[0][:1] == '-' else [f'--{self.name}', *words]


def parse_row(content: dict, source: str) -> tuple[list[str], str, tuple[Range, ...]]:
    """Return (the methods, the fixed flags, the ranges) of a row given as a sub-table. Raises UserError."""
    methods, fixed = content.get(METHOD), content.get('flags', '')
    methods = [methods] if isinstance(methods, str) else methods
    if not isinstance(methods, list) or not methods or not all(isinstance(name, str) for name in methods):
        raise UserError(f'{source}: {METHOD}: give a method or a list of methods, as "kd" or ["kd", "dkd"]')
    if len({*methods}) < len(methods) or (ALONE in methods and len(methods) > 1):
        raise UserError(f'{source}: {METHOD} = {methods}: give different methods, and "{ALONE}" by itself')
    for method in methods:
        if method != ALONE:
            check_method(method, f'{source}: {METHOD}')
    if not isinstance(fixed, str):
        raise UserError(f'{source}: flags: give fixed flags as "--loss_warmup_epochs 2"')
    ranges = [Range(METHOD, str(methods), tuple(methods))] if len(methods) > 1 else []
    for key, value in content.items():
        if key not in (METHOD, 'flags'):
            ranges.append(_parse_range(key, value, methods, source))
    names = [part.name for part in ranges]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(f'{source}: {repeated[0]}: has two ranges; give one')
    return methods, fixed, tuple(ranges)


def _parse_range(key, value, methods, source):
    name, student = key.replace('-', '_'), methods != [ALONE]
    text = f'"{value}"' if isinstance(value, str) else str(value)
    label = f'{source}: {printable(key)} = {printable(text)[:200]}'
    known = actions(student)
    flag = f'--{name.replace("_", "-")}'
    if flag in REFUSED:
        raise UserError(f'{label}: {REFUSED[flag]}; leave it out')
    if name not in known and name in actions(student=True):
        raise UserError(f'{label}: a student alone does not use this flag; leave it out')
    if name not in known:
        raise UserError(f'{label}: no such flag; {nearest_flag(f"--{key}", (f"--{other}" for other in known))}')
    if name in OTHER_DATA:
        raise UserError(f'{label}: the trials of a search are compared on the same images; give --{name} in options')
    if name in flags(student).may_differ - {'epochs'}:
        raise UserError(f'{label}: this flag does not change the result; leave it out')
    if student and not any(uses(method, name) for method in methods):
        advice = 'it has no loss of its own to weight; alpha is the weight of the soft labels' if name == 'beta' else \
            f'it goes with {", ".join(methods_with_option(name))}'
        raise UserError(f'{label}: {", ".join(methods)} does not use this flag; {advice}')
    if isinstance(value, list):
        return _choices(known[name], name, text, value, label)
    match = re.fullmatch(r'\s*(log\s+)?(\S+?)\s*\.\.\s*(\S+)\s*', value) if isinstance(value, str) else None
    if not match:
        raise UserError(f'{label}: give a range as {EXAMPLES}; fixed flags go into  flags = "..."')
    low, high = (_number(known[name], end, label) for end in match.group(2, 3))
    if not low < high:
        raise UserError(f'{label}: give the smaller number first')
    if not math.isfinite(high - low):
        raise UserError(f'{label}: the range is too wide; give smaller numbers')
    if match[1] and low <= 0:
        raise UserError(f'{label}: a logarithmic range has numbers above 0; give another, or leave "log" out')
    part = Range(name, value.strip(), low=low, high=high, is_log=bool(match[1]))
    if not part.is_whole and len({part.rounded(low + step / 100 * (high - low)) for step in range(101)}) < 50:
        raise UserError(f'{label}: values have four significant digits, and too few lie between these ends; give a '
                        f'wider range, or a list')
    return part


def _choices(action, name, text, values, label):
    """Return a range of choices. Raises UserError for one that the flag does not accept."""
    if not values:
        raise UserError(f'{label}: give different values, as [1, 2, 4]')
    for value in values:
        if not isinstance(value, (str, int, float)):
            raise UserError(f'{label}: {value}: give numbers, strings, or true and false')
        if isinstance(value, bool) != (action.nargs == 0):
            wanted = 'true and false' if action.nargs == 0 else f'values, as {action.help}'
            raise UserError(f'{label}: {value}: give {wanted}')
        if action.nargs != 0:
            for word in _words(action, value, label):
                _convert(action, word, label)
    options = [Range(name, text)._option(value) for value in values]        # "1" and 1.0 are one
    if any(option in options[:i] for i, option in enumerate(options)):
        raise UserError(f'{label}: give different values, as [1, 2, 4]')
    if len(values) == 1:
        raise UserError(f'{label}: one value leaves nothing to search; give more, or give the flag in  flags = "..."')
    return Range(name, text, tuple(values))


def _words(action, value, label):
    """Return the words of a choice on a command line: two numbers of some flags, else one word."""
    if action.nargs != 2:
        return [str(value)]
    try:
        words = shlex.split(str(value))
    except ValueError:      # a quotation mark without its partner
        words = []
    if len(words) != 2:
        raise UserError(f'{label}: {value}: give two numbers, as "0.08 1.0"')
    return words


def _number(action, text, label):
    """Return an end of a range: an int if the flag has whole numbers, else a float."""
    value = _convert(action, text, label)
    if not isinstance(value, (int, float)) or action.nargs not in (None, '?'):
        raise UserError(f'{label}: this flag is no number; give a list of its values')
    return value


def _convert(action, text, label):
    """Return what the parser makes of a value. Raises UserError if it refuses it."""
    try:
        value = action.type(text) if action.type else text
    except (argparse.ArgumentTypeError, ValueError) as error:
        raise UserError(f'{label}: {error}') from error
    if action.choices and value not in action.choices:
        raise UserError(f'{label}: {text}: give {", ".join(map(str, action.choices))}')
    return value


def ranges_of(method: str, ranges: tuple[Range, ...]) -> list[Range]:
    """Return the ranges of a method's flags, without the range of the methods."""
    return [part for part in ranges if part.name != METHOD and uses(method, part.name)]


def uses(method: str, name: str) -> bool:
    """Return whether the method, or a part of a sum of methods, uses the flag."""
    if name == 'beta' and method in distiller_dict:
        return distiller_dict[method].spec.has_method_loss
    users = methods_with_option(name)
    return not users or bool({*method.split('+')} & {*users})
