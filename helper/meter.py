"""Running averages that stay on the device until somebody asks."""
import torch


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples."""

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
        names, values = list(values), torch.stack(list(values.values()))
        if self.sums is None:
            self.names = names
            self.sums = torch.zeros_like(values, dtype=torch.float64)
        self.sums += values
        self.samples += n

    @property
    def on_cpu(self) -> bool:
        """Whether reading the averages waits for nothing."""
        return self.sums is not None and self.sums.device.type == 'cpu'

    def averages(self) -> dict:
        """name -> average so far. The one place that waits for the device."""
        if self.sums is None:
            return {}
        return dict(zip(self.names, (self.sums / self.samples).tolist(), strict=True))


def describe(averages: dict) -> str:
    """The averages as a person reads them, top-5 left out."""
    words = [f'{name} {value:.4g}' for name, value in averages.items() if name not in ('top1', 'top5')]
    if 'top1' in averages:
        words.append(f'top-1 {averages["top1"]:.2f}')
    return ', '.join(words)
