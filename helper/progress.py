"""How far an epoch is: a tqdm bar where stderr is a terminal, plain lines where stdout is a file."""
import sys
import threading
import time
from datetime import timedelta

from tqdm import tqdm

from . import distributed
from .meter import describe

tqdm.set_lock(threading.RLock())        # its own is one between processes, which a process that is ended leaves behind


class Progress:
    """Use as a context manager around an epoch; call step after every batch.

    The meter is read, which waits for the device, every print_freq steps only. Counts the images of all processes.
    """

    def __init__(self, title: str, loader, print_freq: int, done: int = 0):
        """done: steps of this epoch that an earlier run has made."""
        self.title, self.steps, self.print_freq, self.done = title, len(loader), print_freq, done
        self.world = distributed.world_size()
        self.batch = loader.batch_size * self.world
        self.total = loader.n_samples
        self.images = 0
        self.terminal = sys.stderr.isatty() and distributed.is_main()
        self.images_per_second = 0.0

    def __enter__(self):
        self.start = self.shown = time.perf_counter()
        self.bar = tqdm(total=self.total, initial=self.done * self.batch, desc=self.title, unit='img', leave=False,
                        disable=not self.terminal)
        return self

    def __exit__(self, *exception):
        self.bar.close()
        self.images_per_second = self.images / (time.perf_counter() - self.start)

    def step(self, images: int, meter) -> None:
        """Count a batch of `images` in each process."""
        self.done += 1
        self.images += images * self.world
        self.bar.update(images * self.world)
        due = self.done % self.print_freq == 0
        # A bar on a terminal is also refreshed now and then where the meter can be read without waiting.
        if not due and not (self.terminal and meter.on_cpu and time.perf_counter() - self.shown > 1):
            return
        self.shown = time.perf_counter()
        averages = meter.averages(everywhere=due)
        if self.terminal:
            self.bar.set_postfix_str(describe(averages))
        if not due or sys.stdout.isatty():
            return
        speed = self.images / (time.perf_counter() - self.start)
        left = timedelta(seconds=round(max(0, self.total - self.done * self.batch) / speed))
        print(f'{self.title} [{self.done}/{self.steps}]  {describe(averages)}, {speed:.0f} images/s, {left} left',
              flush=True)
