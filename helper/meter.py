"""Running averages that stay on the device until somebody asks."""
import torch


class Meter:
    """Averages of loss terms, and top-1 and top-5 accuracy in percent, weighted by samples."""

    def __init__(self):
        self.names, self.sums, self.samples = [], None, 0

    @torch.no_grad()
    def update(self, terms: dict, logits: torch.Tensor, target: torch.Tensor) -> None:
        """terms: name -> scalar mean over the batch; logits (N, classes); target (N,). Nothing is read back."""
        n = len(target)
        hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
        values = torch.stack([*(term * n for term in terms.values()), hits[:, 0].sum() * 100, hits.sum() * 100])
        if self.sums is None:
            self.names = [*terms, 'top1', 'top5']
            self.sums = torch.zeros_like(values, dtype=torch.float64)
        self.sums += values
        self.samples += n

    def averages(self) -> dict:
        """name -> average so far. The one place that waits for the device."""
        if self.sums is None:
            return {}
        return dict(zip(self.names, (self.sums / self.samples).tolist(), strict=True))
