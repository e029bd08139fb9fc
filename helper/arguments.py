"""What the scripts share of the command line: a parser that answers in one line, and converters."""
import argparse
import math
import sys

from .errors import nearest, printable

MOST_EPOCHS = 10**6


class Parser(argparse.ArgumentParser):
    """Accepts '-' and '_' alike between the words of a flag; an error is one line and exit code 2."""

    def __init__(self, **kwargs):
        super().__init__(**{'allow_abbrev': False, 'formatter_class': argparse.ArgumentDefaultsHelpFormatter, **kwargs})
        self.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                          help='show the traceback of an error')      # helper.errors looks for the flag itself

    def parse_args(self, args=None, namespace=None):
        known = {flag.replace('-', '_'): flag for flag in self._option_string_actions}

        def canonical(token):
            name, equals, value = token.partition('=')
            return known.get(name.replace('-', '_'), name) + equals + value if token.startswith('--') else token

        args = sys.argv[1:] if args is None else args
        opt, unknown = self.parse_known_args([canonical(token) for token in args], namespace)
        if unknown:
            flags = [flag for flag in self._option_string_actions if flag.startswith('--')]
            self.error(f'{unknown[0]}: no such flag; {nearest(unknown[0].partition("=")[0], flags)}')
        return opt

    def error(self, message):
        self.exit(2, f'error: {printable(message.removeprefix("argument "))}\n')


def number(kind, low=None, above=None, high=None):
    """A converter for argparse: an int or a float with bounds (low and high are allowed, `above` is not)."""
    words = 'a whole number' if kind is int else 'a number'
    bounds = [f'{text} {bound}' for text, bound in (('of at least', low), ('above', above), ('of at most', high))
              if bound is not None]
    wanted = ' '.join([words, ' and '.join(bounds)]).strip()

    def convert(text):
        try:
            value = kind(text)
            finite = math.isfinite(value)
        except (ValueError, OverflowError):     # no number, a whole number of hundreds of digits
            value, finite = 0, False
        bad = not finite or (low is not None and value < low) or (above is not None and value <= above) \
            or (high is not None and value > high)
        if bad:
            raise argparse.ArgumentTypeError(f'{text[:80]}: give {wanted}')
        return value
    return convert


def path(text: str) -> str:
    """A converter for argparse: a path as it is, but not an empty one, as that of a shell variable that is not set."""
    if not text.strip():
        raise argparse.ArgumentTypeError(f'{text!r}: give a path; this one is empty. Is a variable not set?')
    if any('\ud800' <= c <= '\udfff' for c in text):        # how Python keeps bytes that it cannot read
        raise argparse.ArgumentTypeError(f'{text}: not in the encoding of this terminal; set LC_ALL=C.UTF-8')
    return text


def epoch_list(text):
    """'150,180,210' -> [150, 180, 210]."""
    try:
        epochs = [int(word) for word in text.split(',')]
    except ValueError:
        epochs = [0]
    if min(epochs) < 1 or max(epochs) > MOST_EPOCHS:
        raise argparse.ArgumentTypeError(f'{text[:80]}: give epochs as whole numbers with commas, as 150,180,210')
    return epochs
