"""Notice that another process of the run is gone, also where no connection breaks: it hangs, or its machine is off.

Every second each process writes a sign of life into the store at which the processes met, and reads those of the
others. With N processes the store reads N * N short texts a second.
"""
import contextlib
import json
import math
import socket
import sys
import threading
import time
from collections.abc import Callable

import torch.distributed as dist

INTERVAL = 1        # seconds between two signs of life
LIMIT = 30          # seconds of silence after which a process is lost
SOON = 5            # the same after a broken connection, when a process is probably lost


_heartbeat = None       # of this process


def start(store: dist.Store, rank: int, world_size: int, end_process: Callable[[int], None]) -> None:
    """Start the heartbeat of this process. After LIMIT seconds of another one's silence it calls end_process(1)."""
    global _heartbeat
    _heartbeat = Heartbeat(store, rank, world_size, end_process)


def stop(last_words: str = '') -> None:
    """Tell the others that this process ends. last_words: the error line; '' after a normal end."""
    if _heartbeat:
        _heartbeat.stop(last_words)


def explain() -> str:
    """The error line about a broken connection; '' if another process of this machine prints it. Waits some seconds."""
    if _heartbeat:
        _heartbeat.limit = math.inf         # the caller ends this process
    deadline, text = time.monotonic() + 2 * SOON, None
    while _heartbeat and text is None and time.monotonic() < deadline:
        time.sleep(INTERVAL)
        text = _heartbeat.describe_loss(SOON)
    return 'error: the connection to another process broke; has it ended?\n' if text is None else text


class Heartbeat:
    """The signs of life of this process, and the silence of the others."""

    def __init__(self, store: dist.Store, rank: int, world_size: int, end_process: Callable[[int], None]):
        self.store, self.rank, self.host = store.clone(), rank, socket.gethostname()
        self.keys = [f'sign of life/{number}' for number in range(world_size)]
        self.silence = [0.0] * world_size       # seconds since the sign of each process changed
        self.signs = None       # of all processes, as they were read last
        self.last_words = None  # at the end a text
        self.limit, self.end_process = LIMIT, end_process
        self._stopping = threading.Event()
        self._exchanger = threading.Thread(target=self._exchange, daemon=True)
        self._exchanger.start()
        threading.Thread(target=self._watch, daemon=True).start()

    def stop(self, last_words: str) -> None:
        """Write a last sign, with these words, and end both threads."""
        self.last_words = last_words
        self._stopping.set()
        self._exchanger.join(3)

    def _exchange(self):
        """Write the sign of this process and read all, until it stops. Waits as long as the store does not answer."""
        for count in range(sys.maxsize):
            last_words = self.last_words
            with contextlib.suppress(RuntimeError):     # the store is gone: all signs stay as they are
                self.store.set(self.keys[self.rank], json.dumps({'host': self.host, 'count': count,
                                                                 'last words': last_words}))
                if last_words is None:
                    self.signs = [json.loads(text) for text in self.store.multi_get(self.keys)]
            if last_words is not None:
                return
            self._stopping.wait(INTERVAL)

    def _watch(self):
        """Add up the silence of each process, and end this one if it is too long."""
        previous, checked_at = None, time.monotonic()
        while not self._stopping.wait(INTERVAL):
            # At most twice INTERVAL: a process that was stopped with all others does not blame them.
            elapsed, checked_at = min(time.monotonic() - checked_at, 2 * INTERVAL), time.monotonic()
            signs = self.signs
            for number in range(len(self.keys) if previous else 0):
                is_same = signs[number] == previous[number] and signs[number]['last words'] != ''
                self.silence[number] = self.silence[number] + elapsed if is_same else 0.0
            previous = signs
            if (text := self.describe_loss(self.limit)) is not None and not self._stopping.is_set():
                with contextlib.suppress(OSError):
                    sys.stderr.write(text)
                    sys.stderr.flush()
                self.end_process(1)

    def describe_loss(self, limit):
        """The error line about a silence of `limit` seconds; '' if another process prints it, None if all live."""
        lost = [number for number, seconds in enumerate(self.silence) if seconds >= limit]
        if not lost:
            return None
        hosts = [sign['host'] for sign in self.signs]
        explained = [number for number in lost if self.signs[number]['last words']]
        if self.rank in lost:       # the store does not answer
            lost = [0] if self.rank else []
            text = f'error: process 0 ({hosts[0]}) or its machine has ended, or cannot be reached: no answer for ' \
                   f'{limit} s; so this process ends too\n'
        elif explained:
            is_printed_here = hosts[explained[0]] == self.host
            text = '' if is_printed_here else self.signs[explained[0]]['last words']
        else:
            names = ' and '.join(f'{number} ({hosts[number]})' for number in lost)
            names = f'process {names} has ended, hangs' if len(lost) == 1 else f'processes {names} have ended, hang'
            text = f'error: {names} or cannot be reached: no sign of life for {limit} s; so this process ends too\n'
        first_here = next(number for number, host in enumerate(hosts) if host == self.host and number not in lost)
        return text if self.rank == first_here else ''
