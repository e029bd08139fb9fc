"""An eye on the loss: a run whose loss is NaN or infinite stops at that step."""
import math
from collections import deque

import torch
from torch import nn

from .errors import UserError
from .meter import describe


class Watch:
    """Looks at every step's terms. On a GPU it reads them some steps later, so that nobody waits."""

    def __init__(self, epoch: int, optimizer):
        self.epoch, self.optimizer = epoch, optimizer
        self.advice = 'lower --learning_rate'       # what a user can do about a divergence
        self.underway = deque()

    def look(self, step: int, terms: dict) -> None:
        """terms: name -> scalar tensor, 'loss' among them. Raises UserError for this step, or for one before it."""
        names, values = list(terms), torch.stack([t.detach().float() for t in terms.values()])
        if values.device.type == 'cpu':
            self.judge(step, names, values)
            return
        copy = values.to('cpu', non_blocking=True)
        arrived = torch.cuda.Event()
        arrived.record()
        self.underway.append((arrived, step, names, copy))
        while self.underway and self.underway[0][0].query():
            self.judge(*self.underway.popleft()[1:])

    def settle(self) -> None:
        """Wait for all that is under way: before an epoch's end or a checkpoint."""
        while self.underway:
            arrived, *seen = self.underway.popleft()
            arrived.synchronize()
            self.judge(*seen)

    def check_weights(self, module: nn.Module) -> None:
        """Before they are saved: an update can ruin what a finite loss has measured. Waits for the device."""
        if not all(torch.stack([p.detach().isfinite().all() for p in module.parameters()]).tolist()):
            raise UserError(f'the weights are not finite any more in epoch {self.epoch}, at learning rate '
                            f'{self.optimizer.param_groups[0]["lr"]:g}; {self.advice}')

    def judge(self, step, names, values):
        terms = dict(zip(names, values.tolist(), strict=True))
        if not math.isfinite(terms['loss']):
            raise UserError(f'the loss diverged in epoch {self.epoch}, at step {step} ({describe(terms)}) at learning '
                            f'rate {self.optimizer.param_groups[0]["lr"]:g}; {self.advice}')
