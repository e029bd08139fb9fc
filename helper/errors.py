"""A user's mistake becomes one line and exit code 2, never a traceback."""
import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
    """Bad input. The message names the flag, the value and what would work."""


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
        print(f'error: {error}', file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
