"""Turns a failure into one line: exit code 2 for a user's mistake, 1 otherwise. --debug shows the traceback too."""
import contextlib
import difflib
import errno
import importlib
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence

LONGEST = 3000      # characters of an error line: the list of all models has 600


class UserError(Exception):
    """Bad input. The message names the flag, the value and what would work."""


def printable(text) -> str:
    """`text` with control characters and line breaks escaped."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in str(text))


def counted(count: int, noun: str) -> str:
    """'1 image', '2 images', '3 classes'."""
    ending = '' if count == 1 else 'es' if noun.endswith('s') else 's'
    return f'{count} {noun}{ending}'


def listed(names: Sequence, most: int) -> str:
    """The first `most` names, printable and with commas, and how many others there are."""
    others = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(printable, names[:most])) + others


def reason(error: BaseException, longest: int = 200) -> str:
    """The message of an error as one short line, or its type if it has none."""
    return printable(' '.join(str(error).split()))[:longest] or type(error).__name__


def nearest(name: str, known: Iterable[str], instead: str = '') -> str:
    """'did you mean a or b?' if a known name is similar, else all known names, or `instead` where they are too many."""
    known = sorted(known)
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    return f'did you mean {" or ".join(near)}?' if near else instead or f'there are: {", ".join(known)}'


def import_optional(module: str, flag: str):
    """A module that not every run needs. Raises UserError that begins with `flag` if it is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition('.')[0]
        raise UserError(f'{flag}: {package} is not installed; pip install {package}') from error


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; if it fails, print one line and exit with the code of `describe_failure`."""
    _make_output_usable()
    try:
        try:
            main()
        finally:
            sys.stdout.flush()
    except (Exception, KeyboardInterrupt) as error:
        text, code = describe_failure(error)
        if '--debug' not in sys.argv:       # objects that are destroyed now could print errors too
            sys.unraisablehook = lambda _: None
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()
        if isinstance(error, OSError):      # the output itself may have failed: Python would flush it again at the exit
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(code)


def describe_failure(error: BaseException) -> tuple[str, int]:
    """(the text for stderr, the exit code) of a process that ends with `error`."""
    line, code = _error_line(error)
    trace = ''.join(traceback.format_exception(error)) if '--debug' in sys.argv else ''
    return trace + (f'error: {line}\n' if line else ''), code


def _error_line(error):
    text = reason(error)
    if isinstance(error, UserError):
        return printable(error)[:LONGEST], 2
    if isinstance(error, KeyboardInterrupt):
        return '', 130
    if isinstance(error, BrokenPipeError):
        return 'the output cannot be written: the program that read it has ended', 1
    if getattr(error, 'errno', None) == errno.EMFILE or 'Too many open files' in text:
        return f'too many open files ({text}); raise the limit with ulimit -n, or lower --num_workers', 1
    if isinstance(error, MemoryError) or re.search('(?i)out of memory|not enough memory|cannot allocate memory', text):
        return f'out of memory ({text}); lower --batch_size or --num_workers, or take smaller nets', 1
    if re.search(r'DataLoader worker \(pid', text):      # raised anywhere in this process when a worker ends
        return f'a process that reads images has ended ({text}); was the memory full (lower --num_workers), or was a ' \
               f'file cut short while it was read?', 1
    if isinstance(error, OSError):
        return f'{error.filename or "output"}: {error.strerror or text}', 1
    return f'{type(error).__name__}: {text}; this is a fault of the program: please report it as an issue of its ' \
           f'repository, with the command and what --debug adds to it', 1


def _make_output_usable():
    """Open a closed stream as the null device; escape characters that the terminal cannot show."""
    for number, name in ((1, 'stdout'), (2, 'stderr')):
        if getattr(sys, name) is None:
            os.dup2(os.open(os.devnull, os.O_WRONLY), number)
            os.set_inheritable(number, True)        # for child processes too
            setattr(sys, name, os.fdopen(number, 'w'))
        with contextlib.suppress(AttributeError):
            getattr(sys, name).reconfigure(errors='backslashreplace')
