"""A step of every method, and its peak memory, compared with soft labels alone, for one pair; without first stages."""
import torch

from distiller_zoo import SOFT_LABELS, distiller_dict
from helper.device import select_device
from helper.errors import reason
from helper.loops import train_epoch

from .common import RepeatedBatch, alternate, build, memory_loader, new_process, peak_memory, reset_peak_memory


def training(method, opt, device):
    """A function that trains opt.steps steps of a method on one batch, with the nets of --pair."""
    teacher, student = (opt.pair or ['resnet32x4,resnet8x4'])[0].split(',')[:2]
    images, target, index = next(iter(memory_loader(opt, device)))
    views = len(distiller_dict[method].spec.views)
    loader = RepeatedBatch((images if views == 1 else torch.stack([images] * views), target, index), opt.steps)
    task = build(f'{teacher},{student},{method}', opt, device)
    return lambda: train_epoch(1, loader, *task)


def peak(method, opt):
    """The peak memory of a round in MiB, after a round to warm up."""
    device = select_device(opt.gpu_id, only_check=True)
    train = training(method, opt, device)
    train()
    reset_peak_memory(device)
    train()
    return peak_memory(device)


def peak_in_new_process(method, opt):
    """peak(method, opt), or None if it fails."""
    with new_process() as process:
        try:
            return process.submit(peak, method, opt).result()
        except Exception as error:      # out of memory, or killed for it
            print(f'{method}: memory not measured ({reason(error)})')
            return None


def measure(opt, device):
    """A row for each method: ms a step, all methods in turn in every round; and its memory unless --brief."""
    median = alternate({method: training(method, opt, device) for method in distiller_dict}, opt.rounds, device)
    rows = [{'method': method, 'ms a step': 1000 * s / opt.steps, f'times {SOFT_LABELS}': s / median[SOFT_LABELS]}
            for method, s in median.items()]
    for row in () if opt.brief else rows:
        row['peak MiB'] = peak_in_new_process(row['method'], opt)
    return rows
