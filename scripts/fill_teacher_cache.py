"""Fill the teacher cache with all outputs that runs with --teacher_cache need.

python scripts/fill_teacher_cache.py --path-t FILE --dataset NAME [any other flag of train_student.py]

Give the same flags as for the run: --distill decides which outputs are stored (logits, for some methods the embedding).
After Ctrl-C the same command continues. Several such processes at the same time share the work.
"""
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
import numpy as np
import torch
from tqdm import tqdm

from dataset import get_dataloaders
from dataset.augment import mixes
from dataset.memory import VARIANTS
from dataset.teacher_cache.loader import TeacherOutputLoader
from dataset.teacher_cache.opening import open_cache
from distiller_zoo import get_method
from helper.compile import compiled, keep_memory
from helper.device import memory_format, select_device
from helper.errors import UserError, run_main
from helper.loops import validate
from models.ensemble import nets_of, options_of_teachers
from models.fold import fold_batchnorm
from option_checkpoints import load_teacher, open_start, open_teacher, set_preprocessing
from options import student_options


@torch.no_grad()
def fill(cache, teacher, loader, batch_size):
    """Store the missing outputs, one augmentation variant after another, in a random order for each process."""
    images = np.arange(loader.n_samples)
    stored = cache.has(np.arange(VARIANTS * len(images))).reshape(-1, VARIANTS).sum(0)      # of each variant
    with tqdm(total=VARIANTS * len(images), initial=int(stored.sum()), desc='filling', unit='img',
              mininterval=0.1 if sys.stderr.isatty() else 60) as bar:
        for variant in random.Random().sample(range(VARIANTS), VARIANTS):
            missing = images[~cache.has(images * VARIANTS + variant)]
            bar.update(len(images) - len(missing) - stored[variant])        # stored by another process meanwhile
            for start in range(0, len(missing), batch_size):
                batch = missing[start:start + batch_size]
                out = teacher.outputs(loader.variant(torch.from_numpy(batch).to(cache.device), variant))
                cache.put(batch * VARIANTS + variant, {field: getattr(out, field).float() for field in cache.files})
                bar.update(len(batch))
            cache.flush()
            if len(missing):
                check_room(cache)


@torch.no_grad()
def fill_epochs(cache, teacher, loader):
    """Store the missing outputs of repeated epochs, one epoch after another, in a random order for each process."""
    epochs, order = cache.layout.repeated_epochs, loader.order
    order.generator.seed()      # another order in each process, so that they store other images first
    loader = TeacherOutputLoader(loader, cache, teacher.outputs)
    with tqdm(total=len(epochs) * order.images_in_batches, desc='filling', unit='img',
              mininterval=0.1 if sys.stderr.isatty() else 60) as bar:
        for number, epoch in enumerate(random.Random().sample(epochs, len(epochs)), start=1):
            order.epoch = epoch + 1
            cache.select(epoch)
            if not cache.epoch_is_full:
                for _, target, *_ in loader:
                    bar.update(len(target))
                    check_room(cache)
            bar.update(number * order.images_in_batches - bar.n)


def check_room(cache):
    """Raise UserError if nothing more can be stored."""
    if not cache.writable:
        raise UserError('--teacher_cache: the disk is full; free some space and run the same command again')


def fill_of_teacher(opt, needs, teacher, data, device):
    """Store the accuracy and all outputs of a teacher. opt: the options of a run with this teacher alone."""
    cache = open_cache(opt, needs, teacher, data, device)
    if not cache or not (cache.writable or cache.full):
        raise UserError(f'--teacher_cache {opt.teacher_cache}: cannot be filled; give a folder with room')
    fold_batchnorm(teacher, data.image_size)
    teacher.to(device, memory_format=memory_format(opt))
    try:
        if teacher.has_classifier and cache.accuracy.value is None:
            test = validate(data.selection_loader, teacher, None, f'--path-t {opt.path_t}', data.selection_split)
            cache.accuracy.save(test[f'{data.selection_split}_acc'])
        with compiled(teacher, opt, device):
            if opt.cache_epochs:
                fill_epochs(cache, teacher, data.train_loader)
            else:
                fill(cache, teacher, data.train_loader, opt.batch_size)
    finally:
        cache.flush()
        print(f'teacher cache: {cache}')


def main():
    opt = student_options(description=' '.join(__doc__.split('\n\n')[::2]))      # without the command
    if not opt.teacher_cache:
        opt = student_options([*sys.argv[1:], '--teacher_cache'])
    if opt.estimate:
        raise UserError('--estimate: estimates a run of train_student.py; leave it out')
    if opt.unlabelled:
        raise UserError(f'--unlabelled {opt.unlabelled}: a run of train_student.py with --teacher_cache stores the '
                        f'outputs for these images itself; leave this script out')
    if opt.multiprocessing_distributed and (mixes(opt) or opt.reprob):
        raise UserError('--multiprocessing-distributed: with --mixup, --cutmix or --reprob the outputs depend on the '
                        'number of processes, and this script is one; let the run fill the cache')
    device, method = select_device(opt.gpu_id.split(',')[0]), get_method(opt.distill)
    opt.model_t, checkpoint = open_teacher(opt)
    data = get_dataloaders(opt, device, views=method.spec.views,
                           inputs=set_preprocessing(opt, open_start(opt), checkpoint))
    if device.type == 'cpu':
        keep_memory()
    nets = nets_of(load_teacher(opt, checkpoint, data, device))
    for teacher_opt, net in zip(options_of_teachers(opt), nets, strict=True):
        fill_of_teacher(teacher_opt, method.spec.needs, net.eval(), data, device)


if __name__ == '__main__':
    run_main(main)
