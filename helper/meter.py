"""Running averages that stay on the device until somebody asks."""
import torch

from . import distributed


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples, over all processes."""

    def __init__(self):
        self.names, self.sums, self.samples = [], None, 0

    @torch.no_grad()
    def update(self, terms: dict, logits: torch.Tensor, target: torch.Tensor) -> None:
        """terms: name -> scalar mean over the batch; logits (N, classes) or None; target (N,). Nothing is read back."""
        n = len(target)
        values = {name: term * n for name, term in terms.items()}
        if logits is not None:
            hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
            values |= {'top1': hits[:, 0].sum() * 100, 'top5': hits.sum() * 100}
        names, values = list(values), torch.stack([value.double() for value in values.values()])
        if self.sums is None:
            self.names = names
            self.sums = torch.zeros_like(values)
        self.sums += values
        self.samples += n

    @property
    def on_cpu(self) -> bool:
        """Whether reading the averages waits for nothing."""
        return self.sums is not None and self.sums.device.type == 'cpu'

    def state(self) -> dict:
        """This process's sums, for a checkpoint."""
        return {'names': self.names, 'sums': None if self.sums is None else self.sums.cpu(), 'samples': self.samples}

    def restore(self, states: list[dict], device: torch.device) -> None:
        """Go on from what state() gave here, or in several processes. Raises ValueError for other values."""
        for state in states:
            names, sums, samples = list(state['names']), state['sums'], state['samples']
            if not isinstance(samples, int) or samples < 0 or sums.shape != (len(names),) or not sums.isfinite().all():
                raise ValueError('meter')
            sums = sums.to(device, torch.float64)
            self.sums = sums.clone() if self.sums is None else self.sums + sums
            self.names, self.samples = names, self.samples + samples

    def averages(self, everywhere: bool = True) -> dict:
        """name -> average so far. The one place that waits for the device.

        everywhere: over all processes, each of which must call this then; else over this one alone.
        """
        own = self.names, [] if self.sums is None else self.sums.tolist(), self.samples
        parts = [part for part in (distributed.gather(own) if everywhere else [own]) if part[2]]
        samples = sum(part[2] for part in parts)
        sums = [sum(column) for column in zip(*(part[1] for part in parts), strict=True)]
        return {name: value / samples for name, value in zip(parts[0][0] if parts else [], sums, strict=True)}


def describe(averages: dict) -> str:
    """The averages as a person reads them, top-5 left out."""
    words = [f'{name} {value:.4g}' for name, value in averages.items() if name not in ('top1', 'top5')]
    if 'top1' in averages:
        words.append(f'top-1 {averages["top1"]:.2f}')
    return ', '.join(words)
