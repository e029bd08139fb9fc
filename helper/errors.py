"""A user's mistake becomes one line and exit code 2, never a traceback."""
import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input. The message names the flag, the value and what would work."""


def printable(text) -> str:
    """`text` with everything escaped that a terminal could take for a command, or for a new line."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape', 'surrogatepass').decode() for c in str(text))


def reason(error: BaseException, longest: int = 200) -> str:
    """What an error says, in one short line; its kind where it says nothing."""
    return printable(' '.join(str(error).split()))[:longest] or type(error).__name__


def nearest(name: str, known: Iterable[str]) -> str:
    """'did you mean a, b?' when something is near, then the whole list."""
    known = sorted(known)
    lower = {k.lower(): k for k in known}
    near = [lower[k] for k in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.6)]
    hint = f'did you mean {" or ".join(near)}? ' if near else ''
    return f'{hint}there are: {", ".join(known)}'


def run_main(main: Callable[[], None]) -> None:
    """Call `main`; a UserError is printed as one line and ends the process with exit code 2."""
    try:
        main()
    except UserError as error:
        print(f'error: {printable(error)}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
