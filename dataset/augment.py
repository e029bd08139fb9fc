"""The strong view of an image, for methods that train on two views of each."""
import torch
from torch import Tensor

GREY = 127
VIEWS = ('weak', 'strong')      # weak: what the training of the data set does in any case


class Strong:
    """uint8 (3, H, W) -> the same: two of 14 operations of random strength, then a grey square of up to half the side.

    RandAugment (Cubuk et al., 2020, arXiv:1909.13719) with a strength drawn for each operation, and Cutout (DeVries and
    Taylor, 2017, arXiv:1708.04552), as FixMatch combines them (Sohn et al., NeurIPS 2020, arXiv:2001.07685). It follows
    the crop and the flip. The random numbers are torch's own, of the CPU.
    """

    strengths = 31

    def __init__(self):
        from torchvision.transforms import v2
        self.operation = v2.RandAugment(num_ops=1, num_magnitude_bins=self.strengths)

    def __call__(self, image: Tensor) -> Tensor:
        for _ in range(2):
            self.operation.magnitude = int(torch.randint(self.strengths, ()))
            image = self.operation(image)
        return cutout(image)


def cutout(image: Tensor) -> Tensor:
    """A copy with a grey square, at most half the side, around a random point; it may reach over the edge."""
    height, width = image.shape[-2:]
    share, y, x = torch.rand(3).tolist()
    half, y, x = share * min(height, width) / 4, y * height, x * width
    image = image.clone()
    image[..., max(0, round(y - half)):round(y + half), max(0, round(x - half)):round(x + half)] = GREY
    return image


def seeded(transform, image: Tensor, seed: int) -> Tensor:
    """transform(image) with random numbers of this seed. Call it within torch.random.fork_rng(devices=[])."""
    torch.default_generator.manual_seed(seed)       # of the CPU alone: torch.manual_seed would also seed the GPUs
    return transform(image)
