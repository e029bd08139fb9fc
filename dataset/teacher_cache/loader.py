"""The training loader of --teacher_cache: batches with the teacher's outputs, stored or computed."""
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from models.base import Outputs

from .cache import TeacherCache


class TeacherOutputLoader:
    """A loader of (images, target, index, teacher outputs); fields of Outputs that are not cached are None.

    With several views, the teacher outputs are a list, an Outputs for each view. teacher_outputs(images) ->
    models.base.Outputs computes what the cache lacks. loader: has batches_with_slots(), which yields (batch, slots).
    """

    def __init__(self, loader, cache: TeacherCache, teacher_outputs: Callable):
        self.loader, self.cache, self.teacher_outputs = loader, cache, teacher_outputs

    def __getattr__(self, name):        # order, batch_size, n_samples
        return getattr(self.loader, name)

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        self.cache.select(self.order.repeated_epoch)
        try:
            for (images, target, index), slots in self.loader.batches_with_slots():
                slots = slots.numpy()
                out_t = self.outputs(images, slots) if slots.ndim == 1 else \
                    [self.outputs(*view) for view in zip(images, slots, strict=True)]
                yield images, target, index, out_t
        finally:
            self.cache.flush()

    def outputs(self, images: Tensor, slots: np.ndarray) -> Outputs:
        """The outputs for a batch, from the cache or else from the teacher."""
        is_cached = self.cache.has(slots)
        if is_cached.all():
            fields = self.cache.get(slots)
        elif not is_cached[is_cached.argmin():].any():
            # A smaller batch could round differently. So if a killed process stored only the first outputs of this
            # batch, compute the whole batch again.
            fields = self._compute(images, slots)
        else:
            missing, cached = np.flatnonzero(~is_cached), np.flatnonzero(is_cached)
            # Libraries prepare an algorithm for each batch size: allow eight sizes, and fill up with repeated images.
            step = max(1, self.loader.batch_size // 8)
            rows = np.resize(missing, min(len(slots), -(-len(missing) // step) * step))
            new = self._compute(images[self.cache.to_device(rows)], slots[missing])
            old = self.cache.get(slots[cached])
            order = self.cache.to_device(np.concatenate([missing, cached]).argsort())
            fields = {field: torch.cat([new[field], old[field]])[order] for field in new}
        return Outputs(**dict.fromkeys(Outputs._fields) | fields)

    def _compute(self, images, slots):
        """The teacher's outputs for the first len(slots) images, which are cached too."""
        out = self.teacher_outputs(images)
        return self.cache.put(slots, {field: getattr(out, field).float()[:len(slots)]
                                      for field in self.cache.layout.encodings})
