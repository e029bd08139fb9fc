"""Measure the test accuracy of students in 32 bits, in 8 bits with each kind of ranges, and after --qat.

python scripts/compare_int8.py RUN_OR_CHECKPOINT ... [--csv FILE]

'same class' is the share of test images that the file and the network in PyTorch assign to the same class; a --qat
student's network computes with rounded values. minmax, entropy and percentile quantise every layer; best is the file of
export_student.py --int8, which may leave layers in float.
"""
import csv
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
from dataclasses import replace

from analysis.run_checkpoint import RunCheckpoint, add_data_flags
from export import verify
from export.formats import FORMATS, Export
from export.int8 import METHODS, write_int8
from helper.cli import Parser, path
from helper.errors import UserError, run_main
from scripts.export_student import int8_calibration, open_run


def options():
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument('runs', type=path, nargs='+', metavar='RUN_OR_CHECKPOINT', help='run folders or checkpoints')
    parser.add_argument('--csv', type=path, metavar='FILE', help='also write the rows to this file')
    add_data_flags(parser)
    if missing := [library for library in FORMATS['int8'].needs if find_spec(library) is None]:
        parser.error(f'needs {" and ".join(missing)}; pip install -r requirements-export.txt')
    return parser.parse_args()


def measure(run: RunCheckpoint, opt) -> dict:
    """Return {'32 bits' or a kind of 8-bit file: its verify.Evaluation on the test set}."""
    settings = SimpleNamespace(**vars(opt), model=None, int8_ranges=None, calibration=None)
    data, network, order = open_run(settings, run)
    with tempfile.TemporaryDirectory() as folder:
        export = Export(network, 'uint8', Path(folder), None)
        if network.rounded:
            _write(export, 'int8')
            files, net = {'--qat': export.file('int8')}, network.rounded
        else:
            best = int8_calibration(settings, data, 'uint8', order)
            _write(export, 'onnx')
            plain, files, net = export.file('onnx'), {}, network.net
            calibrations = {method: replace(best, held_out=None, methods=(method, )) for method in METHODS}
            for name, calibration in {**calibrations, 'best': best}.items():
                files[name] = Path(folder, f'{name}_int8.onnx')
                write_int8(plain, files[name], net, 'uint8', calibration, FORMATS['int8'].agreement)
        results = verify.evaluate(net, files, data.test_loader, 'uint8', order=order)
        if network.rounded:
            results.network = verify.evaluate(network.net, {}, data.test_loader, 'uint8', order=order).network
    return {'32 bits': results.network, **results.formats}


def _write(export, name):
    """Write the file of a format. Raises UserError if its exporter cannot."""
    if fault := export.write(name):
        raise UserError(f'RUN_OR_CHECKPOINT {export.network.checkpoint}: cannot be exported to ONNX ({fault})')


def main():
    opt, rows = options(), []
    for given in opt.runs:
        run = RunCheckpoint.find(given, 'RUN_OR_CHECKPOINT')
        for name, result in measure(run, opt).items():
            if result.failure:
                raise UserError(f'RUN_OR_CHECKPOINT {given}: {name}: {result.failure}')
            rows.append({'run': run.checkpoint.parent.name, 'bits': name, 'top-1 %': round(result.top1, 2),
                         'same class %': round(result.agreement, 2)})
            print('  '.join(map(str, rows[-1].values())), flush=True)
    if opt.csv:
        with open(opt.csv, 'w', newline='', encoding='utf-8') as file:
            writer = csv.DictWriter(file, rows[0].keys())
            writer.writeheader()
            writer.writerows(rows)


if __name__ == '__main__':
    run_main(main)
