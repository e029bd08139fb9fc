"""--dali: NVIDIA DALI decodes and augments ImageNet, on the CPU or on the GPU."""
import contextlib
import itertools
import re
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import torch

from helper.errors import UserError

from .crop import SIZE, Pipeline
from .folder import count_extensions
from .image import FORMATS, read_rgb

# The formats of image.FORMATS that DALI decodes to the same pixels; of TIFF, only some modes are the same.
DALI_FORMATS = ('JPEG', 'PNG', 'BMP', 'PPM', 'WEBP', 'JPEG2000')
EXTENSIONS = tuple(extension for name in DALI_FORMATS for extension in FORMATS[name])
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

    Each of `world_size` processes reads its part of the images once in an epoch; the last batch may be short. Training
    images: random area 0.1 to 1, aspect 0.8 to 1.25, triangular resize, flip; shuffled in each epoch. DALI rotates
    images by their EXIF orientation and drops transparency, as image.read_rgb does. Raises UserError for files with
    other extensions than EXTENSIONS, and for an unreadable image.
    """

    def __init__(self, source, opt, device: torch.device, train: bool = False, drop_last: bool = False,
                 rank: int = 0, world_size: int = 1, pipeline: Pipeline = Pipeline()):     # noqa: B008
        fn, pipeline_def, types, iterator, policy = _import_dali()
        backend, decoder = ('gpu', 'mixed') if opt.dali == 'gpu' else ('cpu', 'cpu')
        if backend == 'gpu' and device.type != 'cuda':
            raise UserError('--dali gpu: decodes on a GPU, and this run has none; give --dali cpu')
        if others := [file for file in source.files if not file.lower().endswith(EXTENSIONS)]:
            raise UserError(f'--dali {opt.dali}: DALI does not read {", ".join(count_extensions(others))}, as '
                            f'{others[0]}; leave --dali out, or convert them to {" or ".join(DALI_FORMATS)}')
        self.labels = source.labels.to(device)
        self.batch_size, self.device, self.channels_last = opt.batch_size, device, opt.channels_last
        n = self.n_samples = len(source.labels)
        self.dali, self.threads = opt.dali, max(1, opt.num_workers)
        self.files = source.files[n * rank // world_size:n * (rank + 1) // world_size]
        # All processes take as many training steps as the one with the smallest part.
        n_full, rest = divmod(n // world_size if train else len(self.files), opt.batch_size)
        # A single image after the last full batch joins that batch.
        self.joins_last = train and rest == 1 and n_full > 0 and not drop_last
        self.steps = n_full + (rest > 0 and not drop_last and not self.joins_last)
        self.order = SimpleNamespace(generator=None, first_batch=0)     # DALI cannot draw an epoch's order again

        @pipeline_def(batch_size=opt.batch_size, num_threads=self.threads, seed=opt.seed,
                      device_id=device.index if device.type == 'cuda' else None, prefetch_queue_depth=2)
        def dali_pipeline():
            # DALI's labels are the image indices here, which give the classes too.
            files, number = fn.readers.file(
                files=source.files, labels=list(range(n)), name='reader', shard_id=rank,
                num_shards=world_size, shuffle_after_epoch=train, stick_to_shard=not train, pad_last_batch=True,
                initial_fill=min(4096, n))
            if train:
                images = fn.decoders.image_random_crop(files, device=decoder, output_type=types.RGB,
                                                       random_area=[0.1, 1.0], random_aspect_ratio=[0.8, 1.25])
                images = fn.resize(images, device=backend, resize_x=SIZE, resize_y=SIZE,
                                   interp_type=types.INTERP_TRIANGULAR)
                mirror = fn.random.coin_flip(probability=0.5)
            else:
                images = fn.decoders.image(files, device=decoder, output_type=types.RGB)
                images = fn.resize(images, device=backend, resize_shorter=round(SIZE / pipeline.crop_pct),
                                   interp_type=types.INTERP_TRIANGULAR)
                mirror = 0
            images = fn.crop_mirror_normalize(
                images, device=backend, dtype=types.FLOAT, output_layout='HWC' if opt.channels_last else 'CHW',
                crop=(SIZE, SIZE), mirror=mirror, mean=[255 * m for m in pipeline.mean],
                std=[255 * s for s in pipeline.std])
            return images, number

        with self._name_file(first=0):      # DALI reads the first batches here
            self.pipeline = dali_pipeline()
            self.pipeline.build()
            self.iterator = iterator([self.pipeline], ['images', 'number'], reader_name='reader', auto_reset=True,
                                     last_batch_policy=policy.PARTIAL)

    @contextlib.contextmanager
    def _name_file(self, first):
        """Turn an error of DALI into a UserError that names the unreadable file, searched from file number `first`."""
        try:
            yield
        except RuntimeError as error:
            message = re.split('C\\+\\+ context|Current pipeline', str(error).split('encountered:')[-1])[0]
            why = self._find_unreadable(first) or f'DALI cannot read an image ({" ".join(message.split())})'
            raise UserError(f'--dali {self.dali}: {why}; repair the file or remove it, or leave --dali out and give '
                            f'--skip_bad_images') from error

    def _find_unreadable(self, first):
        """The error of one of this process's files, searched from file number `first`; None if not found in SECONDS."""
        files, deadline = [*self.files[first:], *self.files[:first]], time.monotonic() + SECONDS
        with ThreadPoolExecutor(self.threads) as pool:
            for start in range(0, len(files), 64):
                if error := next(filter(None, pool.map(_error_of, files[start:start + 64])), None):
                    return error
                if time.monotonic() > deadline:
                    return None
        return None

    def _batches(self):
        batches = iter(self.iterator)
        for n_read in itertools.count(0, self.batch_size):
            with self._name_file(first=n_read):
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
            if self.joins_last and step == last:
                last_images, last_index = images.clone(), index         # DALI writes the next batch over this one
                continue
            if self.joins_last and step == last + 1:
                images, index = torch.cat([last_images, images]), torch.cat([last_index, index])
            elif step > last:       # left out, but the iterator must run to its end to be reset
                continue
            yield images.permute(0, 3, 1, 2) if self.channels_last else images, self.labels[index], index


def _error_of(file):
    """The error of an unreadable file; None for a readable one."""
    try:
        read_rgb(file, formats=DALI_FORMATS)
    except UserError as error:
        return str(error)
    return None
