"""ImageNet by NVIDIA DALI: the decoding and augmentation of --dali cpu on the CPU, of --dali gpu on the GPU."""
import contextlib
import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from helper.errors import UserError

from .folder import by_ending
from .image import FORMATS, read_rgb
from .imagenet import MEAN, SIZE, STD

# The formats of image.FORMATS that DALI decodes to the same pixels. TIFF is left out: only some modes are the same.
DALI_FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'WEBP', 'JPEG2000')
ENDINGS = tuple(ending for name in DALI_FORMATS for ending in FORMATS[name])
SECONDS = 60        # limit of the search for an unreadable file


def _import_dali():
    try:
        from nvidia.dali import fn, pipeline_def, types
        from nvidia.dali.plugin.pytorch import DALIGenericIterator, LastBatchPolicy
    except ImportError as error:
        raise UserError('--dali: needs NVIDIA DALI; install it with: pip install -r requirements-dali.txt') from error
    return fn, pipeline_def, types, DALIGenericIterator, LastBatchPolicy


class DaliLoader:
    """Batches (images (B, 3, 224, 224) float32, target (B,), index (B,)) on `device`.

    rank reads its part of `world_size`; every image is read once in an epoch, the last batch may be short. Training
    images: random area 0.1 to 1, aspect 0.8 to 1.25, triangular resize, flip; shuffled anew each epoch. DALI turns
    images as their EXIF orientation says, and drops transparency, as image.read_rgb does. Raises UserError for files
    with other extensions than ENDINGS, and for an unreadable image.
    """

    def __init__(self, source, opt, device: torch.device, train: bool, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1):
        fn, pipeline_def, types, iterator, policy = _import_dali()
        on_gpu = opt.dali == 'gpu'
        if on_gpu and device.type != 'cuda':
            raise UserError('--dali gpu: decodes on a GPU, and this run has none; give --dali cpu')
        if others := [file for file in source.files if not file.lower().endswith(ENDINGS)]:
            raise UserError(f'--dali {opt.dali}: DALI does not read {", ".join(by_ending(others))}, as {others[0]}; '
                            f'leave --dali out, or convert them to {" or ".join(DALI_FORMATS)}')
        self.labels = source.labels.to(device)
        self.batch_size, self.device, self.channels_last = opt.batch_size, device, opt.channels_last
        n = self.n_samples = len(source.labels)
        self.dali, self.threads = opt.dali, max(1, opt.num_workers)
        self.files = source.files[n * rank // world_size:n * (rank + 1) // world_size]
        own = len(self.files)
        # Every rank makes as many training steps as the one with the smallest part.
        whole, rest = divmod(n // world_size if train else own, opt.batch_size)
        self.joins = train and rest == 1 and whole > 0 and not drop_last     # the last batch and a lone image after it
        self.steps = whole + (rest > 0 and not drop_last and not self.joins)
        self.order = SimpleNamespace(generator=None, first_batch=0)    # DALI cannot draw an epoch again

        @pipeline_def(batch_size=opt.batch_size, num_threads=self.threads, seed=opt.seed,
                      device_id=device.index if device.type == 'cuda' else None, prefetch_queue_depth=2)
        def pipeline():
            # The number of an image stands in its label's place: it gives both the label and the index.
            files, number = fn.readers.file(
                files=source.files, labels=list(range(n)), name='reader', shard_id=rank,
                num_shards=world_size, shuffle_after_epoch=train, stick_to_shard=not train, pad_last_batch=True,
                initial_fill=min(4096, n))
            backend, decoder = ('gpu', 'mixed') if on_gpu else ('cpu', 'cpu')
            if train:
                images = fn.decoders.image_random_crop(files, device=decoder, output_type=types.RGB,
                                                       random_area=[0.1, 1.0], random_aspect_ratio=[0.8, 1.25])
                images = fn.resize(images, device=backend, resize_x=SIZE, resize_y=SIZE,
                                   interp_type=types.INTERP_TRIANGULAR)
                mirror = fn.random.coin_flip(probability=0.5)
            else:
                images = fn.decoders.image(files, device=decoder, output_type=types.RGB)
                images = fn.resize(images, device=backend, resize_shorter=256, interp_type=types.INTERP_TRIANGULAR)
                mirror = 0
            images = fn.crop_mirror_normalize(
                images, device=backend, dtype=types.FLOAT, output_layout='HWC' if opt.channels_last else 'CHW',
                crop=(SIZE, SIZE), mirror=mirror, mean=[255 * m for m in MEAN], std=[255 * s for s in STD])
            return images, number

        with self._named_errors(first=0):       # the first batches are read here already
            self.pipeline = pipeline()
            self.pipeline.build()
            self.iterator = iterator([self.pipeline], ['images', 'number'], reader_name='reader', auto_reset=True,
                                     last_batch_policy=policy.PARTIAL)

    @contextlib.contextmanager
    def _named_errors(self, first):
        """Turn an error of DALI into a UserError that names the file, most likely one after the first `first` files."""
        try:
            yield
        except RuntimeError as error:
            said = re.split('C\\+\\+ context|Current pipeline', str(error).split('encountered:')[-1])[0]
            why = self._unreadable(first) or f'DALI cannot read an image ({" ".join(said.split())})'
            raise UserError(f'--dali {self.dali}: {why}; repair the file or remove it, or leave --dali out and give '
                            f'--skip_bad_images') from error

    def _unreadable(self, first):
        """Why one of this process's files cannot be read; None if the search finds none within SECONDS. It begins with
        file number `first`."""
        files, until = [*self.files[first:], *self.files[:first]], time.monotonic() + SECONDS
        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(files), 64):
                for fault in pool.map(_fault, files[start:start + 64]):
                    if fault:
                        return fault
                if time.monotonic() > until:
                    return None
        return None

    def _batches(self):
        """The batches of DALI's iterator. Raises UserError for an unreadable image."""
        batches = iter(self.iterator)
        for done in itertools.count(0, self.batch_size):
            with self._named_errors(done):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch

    def __len__(self):
        return self.steps

    def __iter__(self):
        first, self.order.first_batch = self.order.first_batch, 0
        last = self.steps - 1
        for step, (batch,) in enumerate(self._batches(), start=first):
            images = batch['images'].to(self.device, non_blocking=True)
            index = batch['number'].view(-1).long().to(self.device, non_blocking=True)
            if self.joins and step == last:
                images_before, index_before = images.clone(), index         # DALI writes the next batch over this one
            elif self.joins and step == last + 1:
                yield self._finished(torch.cat([images_before, images]), torch.cat([index_before, index]))
            elif step <= last:      # a rest is left out, but the iterator must be run to its end to be reset
                yield self._finished(images, index)

    def _finished(self, images, index):
        return images.permute(0, 3, 1, 2) if self.channels_last else images, self.labels[index], index


def _fault(file):
    """Why a file cannot be read; None if it can."""
    try:
        read_rgb(file, formats=DALI_FORMATS)
    except UserError as error:
        return str(error)
    return None
