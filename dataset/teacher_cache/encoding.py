"""How --teacher_cache stores an output: as it is, in 16 bits, or only the largest probabilities."""
import math

import numpy as np
import torch
from torch import Tensor

LARGEST_INT16 = 2**15


class Numbers:
    """Stores `width` numbers as float32, which is exact, or as float16."""

    def __init__(self, width: int, dtype=np.float32):
        self.width = self.n_values = width
        self.dtype = dtype

    def encode(self, values: Tensor) -> Tensor:
        """float32 (N, width) -> the same in the stored type."""
        return values.to(torch.float16) if self.dtype == np.float16 else values

    def decode(self, stored: Tensor) -> Tensor:
        """The values as float32."""
        return stored.float()


class Probabilities:
    """Stores logits of C classes as log-probabilities in float16: of the k most probable classes, or of all.

    With k, the classes (int16, or int32 from 32768 classes on) and the exact sum of the other probabilities (float32)
    are stored too. decode() divides that sum evenly among the other classes, as FKD (Shen and Xing, ECCV 2022,
    arXiv:2112.01528) and TinyViT (Wu et al., ECCV 2022, arXiv:2207.10666) do. The logarithm of the sum of exponentials
    (float32) restores the scale of the logits.
    """

    dtype = np.uint8

    def __init__(self, classes: int, k: int | None = None):
        """k: less than `classes`; None: all."""
        self.classes = self.n_values = classes
        self.k = k
        index = torch.int16 if classes <= LARGEST_INT16 else torch.int32
        self.parts = [(1, torch.float32), (classes, torch.float16)] if k is None else \
            [(1, torch.float32), (1, torch.float32), (k, torch.float16), (k, index)]
        self.part_bytes = [width * dtype.itemsize for width, dtype in self.parts]
        self.width = sum(self.part_bytes)       # bytes of an output

    def encode(self, logits: Tensor) -> Tensor:
        """float32 (N, C) -> uint8 (N, width)."""
        log_sum = logits.logsumexp(1, keepdim=True)
        log_p = logits - log_sum
        parts = [log_sum, log_p]
        if self.k is not None:
            top, classes = log_p.topk(self.k, 1)
            rest = log_p.scatter(1, classes, -math.inf).logsumexp(1, keepdim=True)
            parts = [log_sum, rest, top, classes]
        stored = []
        for part, (_, dtype) in zip(parts, self.parts, strict=True):
            if dtype.is_floating_point:     # no infinity
                part = part.clamp(min=torch.finfo(dtype).min)
            stored.append(part.to(dtype).contiguous().view(torch.uint8))
        return torch.cat(stored, 1)

    def decode(self, stored: Tensor) -> Tensor:
        """uint8 (N, width) -> logits float32 (N, C)."""
        parts = [part.clone(memory_format=torch.contiguous_format).view(dtype)
                 for part, (_, dtype) in zip(stored.split(self.part_bytes, 1), self.parts, strict=True)]
        if self.k is None:
            log_sum, log_p = parts
            return log_sum + log_p.float()
        log_sum, rest, top, classes = parts
        log_p = (rest - math.log(self.classes - self.k)).expand(-1, self.classes)
        return log_sum + log_p.scatter(1, classes.long(), top.float())
