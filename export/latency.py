"""What a network costs where it is used: parameters, arithmetic, disk, memory, time; in every format, in turn."""
import contextlib
import tempfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from torch.utils.flop_counter import FlopCounterMode

from analysis import figures
from helper.cli import table
from helper.errors import UserError

from .deployed_net import DeployedNet
from .formats import FORMATS, Export
from .runtime_process import RuntimeProcess

BATCH = 64              # of the throughput
ROUNDS = 10             # of each side, in turn, after one to warm up
SINGLES = 10            # images one by one in a round
SIDES = {'safetensors': 'PyTorch', 'pt2': 'torch.export', 'onnx': 'ONNX', 'fp16': 'ONNX fp16', 'int8': 'ONNX int8'}
EXACT = {'MB': 2, 'p50 ms': 2, 'p95 ms': 2, 'top-1 %': 2}
SHOWN = ('net', 'runtime', 'parameters', 'MACs', 'MB', 'peak MB', 'p50 ms', 'p95 ms', f'images/s at {BATCH}', 'top-1 %')


def macs(student: DeployedNet) -> int:
    """Multiplications with an addition for one image: convolutions, linear layers and attention."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        student.net(student.example(1, 'uint8'))
    return counter.get_total_flops() // 2


def measure(nets: dict[str, tuple[Export, list[str], dict]], threads: int) -> list[dict]:
    """A row for each net and format: disk, memory and time on `threads` threads, with what is given of its accuracy.

    nets: what a net is called -> (its Export, names of formats whose files lie in its folder, {format: top-1 in %}).
    Every file runs in a process of its own; all of them take turns, so that what else the machine does falls on all.
    """
    with contextlib.ExitStack() as stack:
        sides = [(name, export, form, stack.enter_context(RuntimeProcess(export.folder / FORMATS[form].file, threads)))
                 for name, (export, formats, _) in nets.items() for form in SIDES if form in formats]
        single, whole = [[] for _ in sides], [[] for _ in sides]
        for turn in range(ROUNDS + 1):
            for i, (_, export, _, process) in enumerate(sides):
                seconds = process.ask(export.student.example(1, export.dtype).numpy(), SINGLES)[1]
                single[i] += [*seconds] if turn else []
        peaks = [process.peak for *_, process in sides]
        for turn in range(ROUNDS // 2 + 1):
            for i, (_, export, _, process) in enumerate(sides):
                seconds = process.ask(export.student.example(BATCH, export.dtype).numpy())[1]
                whole[i] += [*seconds] if turn else []
    rows = []
    for (name, export, form, _), one, many, peak in zip(sides, single, whole, peaks, strict=True):
        p50, p95 = np.percentile(one, [50, 95]) * 1e3
        rows.append(dict(zip(SHOWN, (
            name, SIDES[form], export.student.parameters, macs(export.student),
            (export.folder / FORMATS[form].file).stat().st_size / 1e6, peak / 1e6, p50, p95,
            BATCH / float(np.median(many)), nets[name][2].get(form)), strict=True)))
    return rows


@contextlib.contextmanager
def exported(student: DeployedNet, formats: Iterable[str], dtype: str, calibration):
    """(an Export of this net in a temporary folder, the formats that could be written), unchecked: for measure()."""
    with tempfile.TemporaryDirectory() as folder:
        export, written = Export(student, dtype, Path(folder), calibration), []
        for name in formats:
            try:
                FORMATS[name].write(export, export.folder / FORMATS[name].file)
                written.append(name)
            except UserError:
                raise
            except Exception as error:      # an exporter can stumble over a net in any way
                print(f'{student.name}: not measured as {FORMATS[name].words} ({type(error).__name__})')
        yield export, written


def show(rows: list[dict]) -> str:
    """The rows as a table."""
    cells = [['' if v is None else f'{v:.{EXACT.get(key, 0)}f}' if isinstance(v, float) else
              f'{v:,}' if isinstance(v, int) else v for key, v in row.items()] for row in rows]
    return table(SHOWN, cells, '<<' + '>' * (len(SHOWN) - 2))


@figures.figure_style()
def picture(rows: list[dict], words: str) -> Figure:
    """Accuracy against the median latency of one image, a mark for each row. words: under the axis."""
    fig = Figure(figsize=(6, 4), layout='constrained')
    axes = fig.add_subplot()
    marks = dict(zip(dict.fromkeys(row['runtime'] for row in rows), 'os^Dv', strict=False))
    colours = dict(zip(dict.fromkeys(row['net'] for row in rows), (figures.BLUE, figures.WRONG), strict=False))
    for row in rows:
        if row['top-1 %'] is not None:
            axes.plot(row['p50 ms'], row['top-1 %'], marks[row['runtime']], color=colours[row['net']],
                      label=f'{row["net"]}, {row["runtime"]}', alpha=0.8)
    axes.set(xlabel=f'median ms an image, {words}', ylabel='top-1 of the test set in %', xscale='log')
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter('{x:g}')
    axes.xaxis.set_minor_formatter('')
    axes.legend(fontsize=7)
    return fig
