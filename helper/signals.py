"""Stop signals: a run finishes its current step, saves and exits; several processes stop after the same step."""
import signal
import time

from . import distributed
from .launch import STOP_SIGNALS

SAVE = 1        # a request to save and continue; smaller than the number of every stop signal


class Interrupted(SystemExit):
    """A signal ended the run after its state was saved; the exit code is 128 + the signal."""


class StopSignals:
    """Holds the first stop signal that arrives, and agrees with the other processes on what to do."""

    def __init__(self):
        self.number = 0
        self._arrived_at = 0.0
        self._exchange = None       # of the requests after the last step

    def install(self) -> None:
        """Handle all stop signals."""
        self._old_handlers = {number: signal.signal(number, self.on_signal) for number in STOP_SIGNALS}

    def uninstall(self, ignore: bool) -> None:
        """Restore the handlers, or ignore all stop signals from here on."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_IGN if ignore else handler)

    def on_signal(self, number: int, _) -> None:
        """Note the signal; the run ends after its current step. A second Ctrl-C, a second later, ends it at once."""
        # The first Ctrl-C may arrive twice: from the terminal and from a launcher.
        if self.number == number == signal.SIGINT and time.monotonic() - self._arrived_at > 1:
            raise KeyboardInterrupt
        if not self.number:
            self.number, self._arrived_at = number, time.monotonic()

    def request_after_step(self, save_is_due: bool) -> int:
        """The largest request of any process: a stop signal, SAVE or 0. Several processes learn it one step later."""
        request = self.number or (SAVE if save_is_due else 0)
        if distributed.world_size() == 1:
            return request
        previous = self._finish_exchange()
        self._exchange = distributed.start_max(request)     # runs during the next step
        return previous

    def request_before_epoch(self) -> int:
        """The stop signal of any process, or 0. Waits for all processes."""
        number = max(distributed.gather(max(self.number, self._finish_exchange())))
        return number if number > SAVE else 0

    def _finish_exchange(self):
        """Wait for the exchange after the last step. Returns its maximum, 0 if there was none."""
        if self._exchange is None:
            return 0
        (largest, work), self._exchange = self._exchange, None
        work.wait()
        return int(largest)
