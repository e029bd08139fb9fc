"""--latency: parameters, multiplications, disk, memory and time of a network in each format."""
import contextlib
from dataclasses import replace

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode

from analysis import figures
from helper.cli import table
from helper.device import environment
from helper.files import write_json

from .deployed_net import DeployedNet
from .formats import FORMATS, Export
from .runtime_process import RuntimeProcess
from .verify import Evaluations

FILES = ('latency.json', 'latency.png', 'latency.svg')
BATCH = 64              # for the throughput
ROUNDS = 10             # after one to warm up
SINGLES = 10            # single images a round
RUNTIMES = {'safetensors': 'PyTorch', 'pt2': 'torch.export', 'onnx': 'ONNX', 'fp16': 'ONNX fp16', 'int8': 'ONNX int8'}
DIGITS = {'MB': 2, 'p50 ms': 2, 'p95 ms': 2, 'top-1 %': 2}      # after the point; of other numbers none
COLUMNS = ('net', 'runtime', 'parameters', 'MACs', 'MB', 'peak MB', 'p50 ms', 'p95 ms', f'images/s at {BATCH}',
           'top-1 %')


def measure(export: Export, names: list[str], results: Evaluations, teacher: DeployedNet | None,
            threads: int) -> tuple[str, str]:
    """Write FILES, for an export and its teacher in the formats `names`. Returns (a table, a line that compares them).
    The teacher is exported into a temporary folder, and not verified."""
    nets = {f'student {export.network.name}': (export, {name: results.formats[name].top1 for name in names})}
    if teacher:
        folder = export.folder.with_name('teacher')
        folder.mkdir()
        calibration = export.calibration and replace(export.calibration, held_out=None)
        of_teacher, top1 = Export(teacher, export.dtype, folder, calibration), {}
        for name in names:
            if fault := of_teacher.write(name):
                print(f'{teacher.name}: not measured as {FORMATS[name].description} ({fault})')
            else:
                top1[name] = results.teacher.top1 if FORMATS[name].agreement is None else None
        nets = {f'teacher {teacher.name}': (of_teacher, top1), **nets}
    rows, machine = measure_rows(nets, threads), environment()['machine']
    note = f'on {threads} thread{"s"[:threads > 1]}'
    write_json(export.folder / FILES[0], {'machine': machine, 'threads': threads, 'rows': rows})
    figures.save_figure(draw_figure(rows, note), export.folder / 'latency')
    cells = [['' if v is None else f'{v:.{DIGITS.get(key, 0)}f}' if isinstance(v, float) else
              f'{v:,}' if isinstance(v, int) else v for key, v in row.items()] for row in rows]
    text = table(COLUMNS, cells, '<<' + '>' * (len(COLUMNS) - 2))
    # The line shows the last exact format that both have.
    runtimes = [row['runtime'] for row in rows if row['net'].startswith('teacher') and row['top-1 %'] is not None]
    runtime = (runtimes or [rows[0]['runtime']])[-1]
    line = [f'{row["net"]}: {row["MB"]:.2f} MB, {row["p50 ms"]:.2f} ms an image, top-1 {row["top-1 %"]:.2f} %'
            for row in reversed(rows) if row['runtime'] == runtime]
    return f'{note}, {machine.partition(", threads")[0]}:\n{text}', ' | '.join([*line, runtime])


def count_macs(network: DeployedNet) -> int:
    """Multiply-accumulate operations for one image, in convolutions, linear layers and attention."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        network.net(network.example(1, 'uint8'))
    return counter.get_total_flops() // 2


def measure_rows(nets: dict[str, tuple[Export, dict]], threads: int) -> list[dict]:
    """A row of COLUMNS for each net and format, measured on `threads` threads.

    nets: name -> (its Export, {format: top-1 in %, or None} of the files to measure). The files run in processes that
    take turns, so that other load on the machine affects all of them alike.
    """
    files = [(name, export, form, top1[form]) for name, (export, top1) in nets.items()
             for form in RUNTIMES if form in top1]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(RuntimeProcess(export.file(form), threads)) for _, export, form, _ in files]
        images, batches = ([export.network.example(size, export.dtype).numpy() for _, export, _, _ in files]
                           for size in (1, BATCH))
        single = _time_in_turns(processes, images, ROUNDS, SINGLES)
        peaks = [process.peak for process in processes]
        many_seconds = _time_in_turns(processes, batches, ROUNDS // 2, 1)
    rows = []
    for (name, export, form, top1), one, many, peak in zip(files, single, many_seconds, peaks, strict=True):
        p50, p95 = np.percentile(one, [50, 95]) * 1e3
        rows.append(dict(zip(COLUMNS, (
            name, RUNTIMES[form], export.network.parameters, count_macs(export.network),
            export.file(form).stat().st_size / 1e6, peak / 1e6, p50, p95, BATCH / float(np.median(many)), top1),
            strict=True)))
    return rows


def compare_int8(export: Export) -> str:
    """A line: the speed of the file in 8 bits against that in 32 bits, for one image at a time on one thread."""
    plain, int8 = files = [export.file(form) for form in ('onnx', 'int8')]
    image = export.network.example(1, export.dtype).numpy()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(RuntimeProcess(file, 1)) for file in files]
        seconds = _time_in_turns(processes, [image, image], ROUNDS, SINGLES)
    ratio = float(np.median(np.divide(*seconds)))
    return f'{int8.name}: {"faster" if ratio > 1 else "not faster"} here than {plain.name}, {ratio:.2f} times its ' \
           f'speed for one image on 1 thread'


def _time_in_turns(processes, batches, rounds, count):
    """The seconds of each run of each process on its batch: `count` runs a round, after an unmeasured round."""
    seconds = [[] for _ in processes]
    for turn in range(rounds + 1):
        for process, batch, times in zip(processes, batches, seconds, strict=True):
            new = process.run(batch, count)[1]
            times += [*new] if turn else []
    return seconds


@figures.figure_style()
def draw_figure(rows: list[dict], note: str) -> Figure:
    """A bar for each row: the median latency of one image, with accuracy and size beside it. note: on the axis."""
    fig = Figure(figsize=(7, 0.8 + 0.34 * len(rows)), layout='constrained')
    axes = fig.add_subplot()
    colours = dict(zip(dict.fromkeys(row['net'] for row in rows), (figures.GREY, figures.BLUE), strict=False))
    bars = axes.barh([f'{row["net"]}, {row["runtime"]}' for row in rows], [row['p50 ms'] for row in rows],
                     color=[colours[row['net']] for row in rows])
    axes.bar_label(bars, [f'{row["p50 ms"]:.2f} ms, {row["MB"]:.2f} MB' + (
        '' if row['top-1 %'] is None else f', {row["top-1 %"]:.2f} %') for row in rows], padding=4)
    axes.invert_yaxis()
    axes.margins(x=0.4)
    axes.spines[['top', 'right']].set_visible(False)
    axes.set(xlabel=f'median ms an image, {note}; beside it: size and top-1 of the test set')
    return fig
