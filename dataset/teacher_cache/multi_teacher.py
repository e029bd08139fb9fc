"""--teacher_cache with several teachers: the cache of each, and the accuracy of their ensemble."""
import functools
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from helper.run_folder import folder_name, teacher_name
from models.ensemble import nets_of, options_of_teachers

from .accuracy import StoredAccuracy
from .cache import TeacherCache
from .layout import cache_bytes
from .loader import TeacherOutputLoader
from .opening import open_cache, stored_accuracy


class TeacherCaches:
    """Replaces a TeacherCache where several teachers have one each."""

    def __init__(self, caches: list[TeacherCache], ensemble: StoredAccuracy):
        """ensemble: the accuracy of the mean of the teachers' probabilities."""
        self.caches, self.ensemble = caches, ensemble

    @property
    def full(self) -> bool:
        return all(cache.full for cache in self.caches)

    @property
    def accuracies(self) -> list[StoredAccuracy]:
        return [*(cache.accuracy for cache in self.caches), self.ensemble]

    def select(self, repeated_epoch: int) -> None:
        for cache in self.caches:
            cache.select(repeated_epoch)

    def flush(self) -> None:
        for cache in self.caches:
            cache.flush()


class OutputsOfSeveral(TeacherOutputLoader):
    """A TeacherOutputLoader whose outputs are a list with an Outputs for each teacher.

    A teacher computes only what its own cache lacks.
    """

    def __init__(self, loader, caches: TeacherCaches, teacher_outputs: Callable):
        super().__init__(loader, caches, teacher_outputs)
        self.loaders = [TeacherOutputLoader(loader, cache, functools.partial(self.outputs_of, number))
                        for number, cache in enumerate(caches.caches)]

    def outputs_of(self, number, images):
        """The outputs that one teacher computes for the images."""
        out, = self.teacher_outputs(images, [number])
        return out

    def outputs(self, images, slots):
        return [loader.outputs(images, slots) for loader in self.loaders]


def open_caches(opt, needs: tuple, teacher: nn.Module, data,
                device: torch.device) -> TeacherCache | TeacherCaches | None:
    """As open_cache; for an Ensemble return a TeacherCaches, or None if a cache of one teacher does not fit."""
    caches = [open_cache(teacher_opt, needs, net, data, device)
              for teacher_opt, net in zip(options_of_teachers(opt), nets_of(teacher), strict=True)]
    if len(caches) == 1 or not all(caches):
        return caches[0] if len(caches) == 1 else None
    identity = {'teacher (checksum)': [cache.layout.identity['teacher (checksum)'] for cache in caches],
             'teacher_weights': opt.teacher_weights if isinstance(opt.teacher_weights, list) else None}
    stem = f'{teacher_name(opt.model_t)}_{folder_name(opt.dataset)}_{zlib.crc32(repr(identity).encode()):08x}'
    return TeacherCaches(caches, stored_accuracy(Path(opt.teacher_cache) / f'{stem}.json', data, identity))


def with_teacher_outputs(loader, cache: TeacherCache | TeacherCaches, teacher_outputs: Callable) -> TeacherOutputLoader:
    """The batches of `loader` with the teacher's outputs; with several teachers, with a list of their outputs."""
    kind = OutputsOfSeveral if isinstance(cache, TeacherCaches) else TeacherOutputLoader
    return kind(loader, cache, teacher_outputs)


def bytes_of_caches(opt, needs: tuple, teacher: nn.Module, data) -> int:
    """The size of the files of open_caches when full; 0 without --teacher_cache. Raises UserError."""
    return sum(cache_bytes(teacher_opt, needs, net, data)
               for teacher_opt, net in zip(options_of_teachers(opt), nets_of(teacher), strict=True))
