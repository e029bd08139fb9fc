"""Normalisation of a batch on the training device, the last step of every loader but DALI's, which has its own."""
import torch

# Mean and standard deviation of the colours, for pixels from 0 to 1.
CIFAR_MEAN, CIFAR_STD = (0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)      # used for all small images
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def measure_mean_std(images: torch.Tensor) -> tuple[tuple, tuple]:
    """Mean and standard deviation of each colour of uint8 images (N, 3, H, W), for pixels from 0 to 1, to 4 digits."""
    values, means, deviations = torch.arange(256, dtype=torch.float64) / 255, [], []
    for colour in range(3):
        counts = sum(part[:, colour].flatten().bincount(minlength=256) for part in images.split(10_000))
        share = counts.double() / counts.sum()
        mean = (share * values).sum()
        means.append(round(mean.item(), 4))
        deviations.append(max(round((share * (values - mean) ** 2).sum().sqrt().item(), 4), 1e-4))
    return tuple(means), tuple(deviations)


class Normalise:
    """uint8 (..., H, W, 3) -> float32 (..., 3, H, W): (x / 255 - mean) / std, bit-identical to torchvision's. width: W.

    The result of a float32 tensor of pixels is written into its own memory.
    """

    def __init__(self, mean: tuple, std: tuple, width: int, device: torch.device, channels_last: bool = True):
        # A row of pixels is R G B R G B ...: long rows are several times faster to compute with than single pixels.
        self.mean, self.std = (torch.tensor(value, device=device).repeat(width) for value in (mean, std))
        self.channels_last = channels_last

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        rows = images.flatten(-2).float().div_(255).sub_(self.mean).div_(self.std)
        batch = rows.view(images.shape).movedim(-1, -3)
        return batch if self.channels_last else batch.contiguous()

    def to_pixels(self, images: torch.Tensor) -> torch.Tensor:
        """The uint8 images (..., H, W, 3) from which the call made `images`, float32 (..., 3, H, W)."""
        rows = images.movedim(-3, -1).flatten(-2).mul(self.std).add_(self.mean).mul_(255).round_().clamp_(0, 255)
        return rows.to(torch.uint8).unflatten(-1, (-1, 3))
