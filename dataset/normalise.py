"""The last step of every loader, a batch at a time on the training device."""
import torch


def measured(images: torch.Tensor) -> tuple[tuple, tuple]:
    """(mean, deviation) of each colour over all pixels of uint8 images (N, 3, H, W), of values from 0 to 1, to four
    digits."""
    values, found = torch.arange(256, dtype=torch.float64) / 255, []
    for colour in range(3):
        counts = sum(part[:, colour].flatten().bincount(minlength=256) for part in images.split(10_000))
        share = counts.double() / counts.sum()
        mean = (share * values).sum()
        found.append((mean.item(), (share * (values - mean) ** 2).sum().sqrt().item()))
    means, deviations = zip(*found, strict=True)
    return tuple(round(m, 4) for m in means), tuple(max(round(d, 4), 1e-4) for d in deviations)


class Normalise:
    """uint8 (B, H, W, 3) -> float32 (B, 3, H, W): (x / 255 - mean) / std, to the bit as torchvision does it.

    mean, std: one number for each colour. width: W. channels_last: the memory layout of the result.
    """

    def __init__(self, mean: tuple, std: tuple, width: int, device: torch.device, channels_last: bool = True):
        # A row of pixels is R G B R G B ...: long rows are several times faster to compute with than single pixels.
        self.mean, self.std = (torch.tensor(value, device=device).repeat(width) for value in (mean, std))
        self.channels_last = channels_last

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.view(*images.shape[:2], -1).float().div_(255).sub_(self.mean).div_(self.std)
        batch = rows.view(images.shape).permute(0, 3, 1, 2)
        return batch if self.channels_last else batch.contiguous()

    def pixels(self, images: torch.Tensor) -> torch.Tensor:
        """float32 (B, 3, H, W) -> the uint8 (B, H, W, 3) that it was made of."""
        rows = images.permute(0, 2, 3, 1).flatten(2).mul(self.std).add_(self.mean).mul_(255).round_().clamp_(0, 255)
        return rows.to(torch.uint8).unflatten(2, (-1, 3))
