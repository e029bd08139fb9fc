"""Ask a teacher all that runs with --teacher_cache will ask it, with a progress bar.

python scripts/fill_teacher_cache.py --path-t FILE --dataset NAME [any other flag of train_student.py]

Takes the command of a run: --distill decides what is kept (logits, and for some methods the embedding). Ctrl-C loses
nothing, and the same command goes on; several of them, started at the same time, share the work.
"""
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: E402, F401, before torch: it sets how threads wait

# isort: split
import numpy as np  # noqa: E402
import torch  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dataset import get_dataloaders  # noqa: E402
from dataset.memory import VARIANTS  # noqa: E402
from dataset.teacher_cache import open_cache  # noqa: E402
from distiller_zoo import get_method  # noqa: E402
from helper.compile import compiled, keep_memory  # noqa: E402
from helper.device import memory_format, select_device  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402
from helper.loops import validate  # noqa: E402
from models.fold import fold_batchnorm  # noqa: E402
from models.load import load_net  # noqa: E402
from options import open_teacher, student_options  # noqa: E402


@torch.no_grad()
def fill(cache, teacher, loader, batch_size):
    """Ask for every form that is not there, form by form, in an order that differs between processes."""
    forms, images = random.Random().sample(range(VARIANTS), VARIANTS), np.arange(loader.n_samples)
    before = cache.has(np.arange(VARIANTS * len(images))).reshape(-1, VARIANTS).sum(0)       # of each form
    with tqdm(total=VARIANTS * len(images), initial=int(before.sum()), desc='filling', unit='img',
              mininterval=0.1 if sys.stderr.isatty() else 60) as bar:
        for form in forms:
            left = images[~cache.has(images * VARIANTS + form)]
            bar.update(len(images) - len(left) - before[form])      # which another process has filled
            for batch in np.split(left, range(batch_size, len(left), batch_size)) if len(left) else ():
                out = teacher.outputs(loader.variant(torch.from_numpy(batch).to(cache.device), form))
                cache.put(batch * VARIANTS + form, {kind: getattr(out, kind).float() for kind in cache.files})
                bar.update(len(batch))
            cache.flush()
            if len(left) and not cache.writable:
                raise UserError('--teacher_cache: the disk is full; make room, and the same command goes on')


def main():
    opt = student_options(description=__doc__)
    if not opt.teacher_cache:
        opt = student_options([*sys.argv[1:], '--teacher_cache'])
    if opt.estimate:
        raise UserError('--estimate: estimates a run of train_student.py; leave it out')
    device, method = select_device(opt.gpu_id.split(',')[0]), get_method(opt.distill)
    opt.model_t, checkpoint = open_teacher(opt)
    data = get_dataloaders(opt, device)
    teacher = load_net(opt.path_t, checkpoint, opt.model_t, data).eval()
    cache = open_cache(opt, method.spec.needs, teacher, data, device)
    if not cache or not (cache.writable or cache.full):
        raise UserError(f'--teacher_cache {opt.teacher_cache}: cannot be filled; give a folder with room')
    if device.type == 'cpu':
        keep_memory()
    fold_batchnorm(teacher, data.image_size)
    teacher.to(device, memory_format=memory_format(opt))
    try:
        if cache.accuracy is None:
            test = validate(data.test_loader, teacher, source=f'--path-t {opt.path_t}')
            cache.save_accuracy(test['test_acc'])
        with compiled(teacher, opt, device):
            fill(cache, teacher, data.train_loader, opt.batch_size)
    finally:
        cache.flush()
        print(f'teacher cache: {cache}')


if __name__ == '__main__':
    run_main(main)
