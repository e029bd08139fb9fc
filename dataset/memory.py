"""A data set that fits in memory: a uint8 tensor on the training device, augmented a whole batch at a time."""
import torch
import torch.nn.functional as F

# CIFAR-100's training set; all small images are normalised with these, so that a student can be shipped with two
# constants.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)
PAD = 4


class MemoryLoader:
    """Batches (images (B, 3, H, W) float32, target (B,) int64, index (B,) int64), all on `device`.

    train=True shuffles and augments as the usual per-image pipeline of CIFAR does: zero-pad 4, so black before the
    normalisation, random crop back to H x W, horizontal flip with probability 1/2, scale to [0, 1], normalise.
    train=False serves the images in order, normalised. index is the sample's place in the data set.

    All random numbers come from `generator`, on the CPU, an epoch at a time: the same batches on every device, and no
    transfer between device and host inside an epoch.
    """

    def __init__(self, images: torch.Tensor, target: torch.Tensor, batch_size: int, device: torch.device,
                 train: bool = False, smallest_batch: int = 1, seed: int = 0, channels_last: bool = True):
        """images: uint8 (N, 3, H, W); target: int64 (N,). A last batch of fewer than smallest_batch is left out."""
        self.size = tuple(images.shape[2:])
        self.batch_size, self.device, self.train, self.smallest_batch = batch_size, device, train, smallest_batch
        self.channels_last = channels_last
        self.target = target.to(device)
        self.generator = torch.Generator().manual_seed(seed)
        # A row of pixels is R G B R G B ...: long rows are several times faster to compute with than single pixels.
        self.mean = torch.tensor(MEAN, device=device).repeat(self.size[1])
        self.std = torch.tensor(STD, device=device).repeat(self.size[1])
        images = images.permute(0, 2, 3, 1)
        if train:
            # A view of every crop: windows[n, y, x] (H, W, 3) is image n cut at row y, column x of its padded form.
            padded = F.pad(images, (0, 0, PAD, PAD, PAD, PAD)).to(device)
            self.windows = padded.unfold(1, self.size[0], 1).unfold(2, self.size[1], 1).permute(0, 1, 2, 4, 5, 3)
        else:
            self.images = images.contiguous().to(device)

    @property
    def n_samples(self) -> int:
        """Samples in the data set."""
        return len(self.target)

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(self.n_samples, self.batch_size)
        return whole + (rest >= self.smallest_batch)

    def __iter__(self):
        return self._augmented() if self.train else self._plain()

    def _plain(self):
        index = torch.arange(self.n_samples, device=self.device)
        for batch in index.split(self.batch_size):
            yield self._normalise(self.images[batch]), self.target[batch], batch

    def _augmented(self):
        n = self.n_samples
        order = torch.randperm(n, generator=self.generator)
        corner = torch.randint(0, 2 * PAD + 1, (2, n), generator=self.generator)
        flip = torch.randint(0, 2, (1, n), generator=self.generator)
        plan = torch.cat([order[None], corner, flip]).to(self.device)
        for step in range(len(self)):
            index, y, x, flip = plan[:, step * self.batch_size:(step + 1) * self.batch_size]
            crop = self.windows[index, y, x]
            crop = torch.where(flip.bool().view(-1, 1, 1, 1), crop.flip(2), crop)
            yield self._normalise(crop), self.target[index], index

    def _normalise(self, images):
        """uint8 (B, H, W, 3) -> float32 (B, 3, H, W)."""
        rows = images.view(len(images), self.size[0], -1).float().div_(255).sub_(self.mean).div_(self.std)
        batch = rows.view(images.shape).permute(0, 3, 1, 2)
        return batch if self.channels_last else batch.contiguous()
