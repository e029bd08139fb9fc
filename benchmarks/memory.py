"""The peak memory and the time of a step of every method, without and with --grad_checkpointing; no first stages.

On a GPU the peak is the one of torch.cuda. On a CPU it is the peak of all tensors, which torch's profiler reports with
each allocation: exact, the same in every run, and without what oneDNN allocates for itself.
"""
import gc
import json
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from distiller_zoo import distiller_dict
from helper.cli import number
from helper.loops import train_epoch
from models.grad_checkpointing import turn_on_grad_checkpointing

from .common import CLASSES, RepeatedBatch, build, peak_memory, reset_peak_memory, seconds

SIDES = {'without': False, 'with': True}


def add_arguments(add):
    add('--pixels', type=number(int, low=8, high=4096), default=224, help='height and width of the images')


def random_batch(method, opt, device):
    """(images (N, 3, S, S), or a stack of them for several views, labels (N,), index (N,))."""
    images = torch.randn(opt.batch_size, 3, opt.pixels, opt.pixels)
    images = images.to(device, memory_format=torch.channels_last)
    views = len(distiller_dict[method].spec.views)
    index = torch.arange(opt.batch_size)
    return images if views == 1 else torch.stack([images] * views), (index % CLASSES).to(device), index.to(device)


def train_both(pair, opt, device):
    """Make opt.rounds steps of both sides, in turn. Returns [(side, seconds, peak MiB)]; on a CPU, of CPU time."""
    task = build(pair, opt, device, size=opt.pixels)
    loader = RepeatedBatch(random_batch(pair.split(',')[2], opt, device), 1)
    student, steps = task[0].student, []
    turn_on_grad_checkpointing(student, opt.pixels, pair)
    for _ in range(opt.rounds):
        for side, student.grad_checkpointing in SIDES.items():
            reset_peak_memory(device)
            start = time.process_time()
            with record_function(side):
                wall = seconds(lambda: train_epoch(1, loader, *task), device)
            cpu = time.process_time() - start
            steps.append((side, wall if device.type == 'cuda' else cpu, peak_memory(device)))
    return steps


def profiled_peaks(profiler) -> dict:
    """side -> peak MiB of the tensors on the CPU that were made since the profiler was started."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'trace.json'
        profiler.export_chrome_trace(str(file))
        events = json.loads(file.read_text())['traceEvents']
    steps = [(event['name'], event['ts'], event['ts'] + event['dur']) for event in events
             if event['name'] in SIDES and event.get('cat') == 'user_annotation']
    totals = sorted((event['ts'], event['args']['Total Allocated'], event['args']['Bytes']) for event in events
                    if event['name'] == '[memory]')
    before = totals[0][1] - totals[0][2]
    return {side: max(total - before for name, start, end in steps if name == side
                      for at, total, _ in totals if start <= at <= end) / 2**20 for side in SIDES}


def measure_pair(pair, opt, device):
    """A row: the peak without and with, the seconds of a step without, and the ratios of with to without."""
    gc.collect()        # the nets of the method before
    if device.type == 'cuda':
        steps = train_both(pair, opt, device)
        peaks = {side: max(peak for name, _, peak in steps if name == side) for side in SIDES}
    else:
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            steps = train_both(pair, opt, device)
        peaks = profiled_peaks(profiler)
    times = {side: median(s for name, s, _ in steps if name == side) for side in SIDES}
    return {'method': pair.split(',')[2], **{f'MiB {side}': peaks[side] for side in SIDES},
            'memory ratio': peaks['with'] / peaks['without'], 's a step': times['without'],
            'time ratio': times['with'] / times['without']}


def measure(opt, device):
    """A row for each pair; for a pair without a method, a row for each method. The first one is measured twice."""
    pairs = [','.join([*pair.split(',')[:2], method]) for pair in opt.pair or ['ResNet34,ResNet18']
             for method in pair.split(',')[2:] or distiller_dict]
    measure_pair(pairs[0], opt, device)     # to warm up
    for pair in pairs:
        row = measure_pair(pair, opt, device)
        print(row, file=sys.stderr, flush=True)
        yield row
