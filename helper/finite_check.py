"""The check that ends a run whose loss or weights become NaN or infinite."""
import math
from collections import deque

import torch
from torch import nn

from .errors import UserError
from .meter import describe
from .optim import base_rate


class FiniteCheck:
    """Ends a run whose loss becomes NaN or infinite. On a GPU the losses are read some steps later, without waiting."""

    def __init__(self, epoch: int, optimizer, advice: str = 'lower --learning_rate'):
        """advice: ends the error message."""
        self.epoch, self.optimizer, self.advice = epoch, optimizer, advice
        self._pending = deque()     # copies from the GPU that may not have arrived: (event, step, names, values)

    def add(self, step: int, terms: dict) -> None:
        """Check the terms of a step, name -> scalar tensor, with 'loss'. Raises UserError, also for a past step."""
        names, values = list(terms), torch.stack([t.detach().float() for t in terms.values()])
        if values.device.type != 'cuda':        # the events below are CUDA's
            self._check(step, names, values)
            return
        copy = values.to('cpu', non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self._pending.append((arrived, step, names, copy))
        while self._pending and self._pending[0][0].query():
            self._check(*self._pending.popleft()[1:])

    def flush(self) -> None:
        """Wait for all copies and check them: before the end of an epoch or a checkpoint."""
        while self._pending:
            arrived, *terms = self._pending.popleft()
            arrived.synchronize()
            self._check(*terms)

    def _check(self, step, names, values):
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms['loss']):
            raise UserError(f'the loss diverged in epoch {self.epoch}, at step {step} ({describe(terms)}) at learning '
                            f'rate {base_rate(self.optimizer):g}; {self.advice}')

    def check_weights(self, module: nn.Module) -> None:
        """Raise UserError for weights that are not finite: a finite loss can still give an update that ruins them."""
        weights = [value for value in module.state_dict().values() if value.is_floating_point()]
        if not all(torch.stack([weight.isfinite().all() for weight in weights]).tolist()):
            raise UserError(f'the weights are no longer finite in epoch {self.epoch}, at learning rate '
                            f'{base_rate(self.optimizer):g}; {self.advice}')
