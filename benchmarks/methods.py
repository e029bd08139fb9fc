"""A step of every method, and its peak memory, compared with soft labels alone, for one pair of nets; without first
stages."""
import multiprocessing

import torch

from distiller_zoo import SOFT_LABELS, distiller_dict
from helper.compile import keep_memory
from helper.device import select_device
from helper.loops import train_epoch

from .common import Ready, alternate, begin_peak, build, peak_memory
from .loader import loaders


def prepare(method, opt, device):
    """(a loader of one batch, what train_epoch needs beside it) for a method with the nets of --pair."""
    pair = (opt.pair or ['resnet32x4,resnet8x4'])[0].split(',')[:2]
    images, target, index = next(iter(loaders(opt, device)[0]))
    views = len(distiller_dict[method].spec.views)
    batch = images if views == 1 else torch.stack([images] * views), target, index
    return Ready(batch, opt.steps), build([*pair, method], opt, device)


def memory(method, opt, connection):
    """In a process of its own: MiB at the peak of a round, after one to warm up."""
    device = select_device(opt.gpu_id, quiet=True)
    if device.type == 'cpu':
        keep_memory()
    loader, run = prepare(method, opt, device)
    train_epoch(1, loader, *run)
    begin_peak(device)
    train_epoch(1, loader, *run)
    connection.send(peak_memory(device))


def in_a_process(method, opt):
    """memory() of a method; None where there is no answer."""
    context = multiprocessing.get_context('spawn')
    here, there = context.Pipe()
    process = context.Process(target=memory, args=(method, opt, there), daemon=True)
    process.start()
    there.close()
    try:
        return here.recv()
    except EOFError:
        return None
    finally:
        process.join()


def measure(opt, device):
    """A row for each method: ms a step, all methods by turns within every round; and unless --brief, its memory."""
    runs = {method: prepare(method, opt, device) for method in distiller_dict}
    images = next(iter(runs.values()))[0].n_samples
    speed = alternate({method: lambda loader=loader, run=run: train_epoch(1, loader, *run)
                       for method, (loader, run) in runs.items()}, images, opt, device)
    rows = [{'method': method, 'ms a step': opt.batch_size / s * 1000, f'times {SOFT_LABELS}': speed[SOFT_LABELS] / s}
            for method, s in speed.items()]
    runs.clear()
    for row in () if opt.brief else rows:
        row['peak MiB'] = in_a_process(row['method'], opt)
    return rows
