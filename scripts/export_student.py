"""Export what a run deploys: checked files for PyTorch, torch.export and ONNX, with a model card.

python scripts/export_student.py RUN_OR_CHECKPOINT --out DIR [--formats safetensors pt2 onnx] [--int8] [--fp16]
python scripts/export_student.py RUN_OR_CHECKPOINT --out DIR --latency

A run is its folder, whose best checkpoint is taken. Every file is loaded again by its own runtime in a process of its
own and compared with the network in PyTorch on the whole test set; one that differs by too much is not written.
"""
import contextlib
import errno
import os
import shutil
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: E402, F401, before torch: it sets how threads wait

# isort: split
import torch  # noqa: E402

from analysis import figures  # noqa: E402
from analysis.run_checkpoint import RunCheckpoint, add_data_flags, data_options, teacher_open_args  # noqa: E402
from dataset import get_dataloaders  # noqa: E402
from export import latency, model_card, verify  # noqa: E402
from export.deployed_net import open_deployed_net  # noqa: E402
from export.formats import FORMATS, Export  # noqa: E402
from export.runtime import CONFIG  # noqa: E402
from helper.cli import Parser, number, path  # noqa: E402
from helper.device import surroundings  # noqa: E402
from helper.errors import UserError, printable, reason, run_main  # noqa: E402
from helper.files import write_json  # noqa: E402
from helper.launch import STOP_SIGNALS  # noqa: E402
from models.classes import class_order  # noqa: E402
from models.find import is_user_file  # noqa: E402
from models.load import load_net, open_net  # noqa: E402

USUAL = ('safetensors', 'pt2', 'onnx')
CARD = ('MODEL_CARD.md', model_card.CARD)
LATENCY = ('latency.json', 'latency.png', 'latency.svg')
STUDENTS = {form.file for form in FORMATS.values()}
OURS = {CONFIG, *CARD, *LATENCY, *STUDENTS}


def options():
    """(the options, the formats that are wanted, the run)."""
    parser = Parser(description='Export what a run deploys, check it and describe it.')
    add = parser.add_argument
    add('run', type=path, metavar='RUN_OR_CHECKPOINT', help="a run's folder, or a checkpoint")
    add('--out', type=path, required=True, help='the folder to write; it must be new, empty or an earlier export')
    add('--formats', nargs='+', choices=USUAL, default=[*USUAL],
        help='safetensors: weights and config.json; pt2: torch.export; onnx: ONNX')
    add('--int8', action='store_true', help='ONNX in 8 bits too, with a scale for each channel')
    add('--fp16', action='store_true', help='ONNX in 16 bits too')
    add('--input', choices=('uint8', 'float'), default='uint8',
        help='what the exported files take: images of 0 to 255, or of 0 to 1')
    add('--calibration', type=number(int, low=1, high=10**6),
        help='training images from which --int8 takes the ranges of values; not given: 512')
    add('--model', metavar='FILE.py:FUNCTION', help='the net of the checkpoint, where it is one of a file of yours')
    add('--latency', action='store_true', help='measure memory and time of every format, beside the teacher')
    add('--threads', type=number(int, low=1, high=1024), help='of --latency; not given: 1')
    add('--path-t', type=path,
        help="the teacher's checkpoint; not given: that of the run, if it is there and unchanged")
    add('--model_t', metavar='NET', help="the teacher's net, where its file does not say it")
    add_data_flags(parser)
    opt = parser.parse_args()
    for name, wanted, usual in (('calibration', 'int8', 512), ('threads', 'latency', 1)):
        if getattr(opt, name) is not None and not getattr(opt, wanted):
            parser.error(f'--{name} {getattr(opt, name)}: without --{wanted} it does nothing; add --{wanted}')
        setattr(opt, name, getattr(opt, name) or usual)
    formats = [*dict.fromkeys(opt.formats), *(name for name in ('int8', 'fp16') if getattr(opt, name))]
    for name in formats:
        if missing := [library for library in FORMATS[name].needs if find_spec(library) is None]:
            parser.error(f'{FORMATS[name].file}: needs {" and ".join(missing)}; '
                         f'pip install -r requirements-export.txt')
    try:
        out = Path(opt.out).resolve()       # where a link leads: the link stays
        found = {file.name for file in out.glob('*')}
        others = out.exists() and not out.is_dir() or found - OURS or (found and not found & STUDENTS)
    except (OSError, RuntimeError) as error:        # RuntimeError: links in a ring
        parser.error(f'--out {opt.out}: cannot be written ({reason(error)}); give a new folder')
    if others:
        parser.error(f'--out {opt.out}: holds other things than an export; give a new folder')
    if out == Path.cwd() or out.is_mount():
        parser.error(f'--out {opt.out}: cannot be replaced by a new folder while it is in use; give a folder in it')
    run = RunCheckpoint.find(opt.run, 'RUN_OR_CHECKPOINT')
    if not run.parameters and opt.dataset is None:
        parser.error(f'--dataset: {run} has no parameters.json beside it that says on which data it is tested; give '
                     f'--dataset and --data_dir')
    return opt, formats, run


def calibration_images(data, dtype, wanted):
    """A function that gives so many training images as small batches: a folder has them by class, so from all over."""
    n = min(wanted, data.n_train)

    def batches():
        loader = data.unaugmented_loader([i * data.n_train // n for i in range(n)])
        for images, *_ in loader:
            for part in images.split(8):
                yield verify.pixels(loader, part, dtype)
    return batches


def write_formats(export, names):
    """({name: why it could not be written})."""
    faults = {}
    for name in names:
        print(f'writing {FORMATS[name].file}', flush=True)
        try:
            FORMATS[name].write(export, export.folder / FORMATS[name].file)
        except (UserError, OSError):
            raise
        except Exception as error:      # an exporter can stumble over a net in any way
            if shutil.disk_usage(export.folder).free < 2**20:       # each says so in its own way
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            faults[name] = f'{type(error).__name__}: {reason(error)}'
    return faults


def open_teacher(opt, run, data):
    """(the net as it sees the loader's images, the same net as if it were shipped), or None where there is none.

    Of the run's own teacher, a line says why it is left out. Raises UserError for one that --path-t names.
    """
    def load(file, said, **as_given):
        name, checkpoint = open_net(file, opt.model_t or said, **as_given)
        return (load_net(file, checkpoint, name, data).eval(),
                open_deployed_net(file, data, '--path-t', name, checkpoint))

    file, known = run.trusted_parameters.get('path_t'), run.trusted_parameters.get('teacher (checksum)')
    if opt.path_t or not isinstance(file, str):
        return load(opt.path_t, None) if opt.path_t else None
    said = run.parameters.get('model_t')        # not by the user: the code of a file it names is not run
    try:
        if not Path(file).exists():
            raise UserError(f'--path-t {file}: no such file')
        named = said if isinstance(said, str) and not is_user_file(said) else None
        teacher = load(file, named, **teacher_open_args(run.parameters))
        if known not in (None, teacher[0].checksum):
            raise UserError(f'--path-t {file}: no longer the net that taught {run}')
    except UserError as error:
        print(f'without the teacher: {printable(error)}; give it by --path-t')
        return None
    return teacher


def measure_cost(opt, export, formats, outcomes, teacher):
    """Write the files of LATENCY into the export's folder. Returns (the rows, the teacher's first)."""
    dtype = export.dtype
    top1 = {name: outcomes.formats[name].top1 for name in formats}
    with latency.exported(teacher, formats if teacher else [], dtype, export.calibration) as (of_teacher, written):
        nets = {f'student {export.student.name}': (export, formats, top1)}
        if teacher:
            nets = {f'teacher {teacher.name}': (of_teacher, written, dict.fromkeys(
                [name for name in written if FORMATS[name].agreement is None], outcomes.teacher.top1)), **nets}
        rows = latency.measure(nets, opt.threads)
    words = f'on {opt.threads} thread{"s"[:opt.threads > 1]}'
    write_json(export.folder / LATENCY[0], {'machine': surroundings()['machine'], 'threads': opt.threads, 'rows': rows})
    figures.save_figure(latency.picture(rows, words), export.folder / 'latency')
    return f'{words}, {surroundings()["machine"].partition(", threads")[0]}:\n{latency.show(rows)}', rows


@contextlib.contextmanager
def new_folder(out):
    """A folder to write an export into, which takes the place of `out` when it is whole; what is there stays till then.

    Raises UserError where it cannot be written.
    """
    shown, out = out, out.resolve()
    before = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in STOP_SIGNALS
              if signal.getsignal(number) == signal.SIG_DFL}        # so that what is half-written is removed
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix='.export') as temporary:
            folder, old = (Path(temporary) / name for name in ('new', 'old'))
            folder.mkdir()
            yield folder
            for file in folder.iterdir():
                file.chmod(0o644)
            try:
                if out.exists():
                    out.rename(old)
                folder.rename(out)
            except BaseException:
                with contextlib.suppress(OSError):      # there is none, or another export has taken the place
                    old.rename(out)
                raise
    except OSError as error:
        raise UserError(f'--out {shown}: cannot be written ({error.strerror or reason(error)}); what was there before '
                        f'is whole') from error
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def summary(rows):
    """What distilling is for, in one line: the student beside the teacher, both in the format that they have last."""
    alike = [row['runtime'] for row in rows if row['net'].startswith('teacher') and row['top-1 %'] is not None]
    alike = (alike or [rows[0]['runtime']])[-1]
    return ' | '.join(f'{row["net"]}: {row["MB"]:.2f} MB, {row["p50 ms"]:.2f} ms an image, top-1 {row["top-1 %"]:.2f} %'
                      for row in reversed(rows) if row['runtime'] == alike) + f' | {alike}'


def main():
    opt, wanted, run = options()
    dtype = 'uint8' if opt.input == 'uint8' else 'float32'
    data = get_dataloaders(data_options(run, opt), torch.device('cpu'))
    student = open_deployed_net(str(run), data, 'RUN_OR_CHECKPOINT', opt.model, run.state)
    run.check_metrics()
    if (student.size, len(student.config['classes'])) != (data.image_size, data.num_classes):
        raise UserError(f'--dataset: has {data.num_classes} classes and images of {data.image_size} pixels, but {run} '
                        f'is for {len(student.config["classes"])} and {student.size}; give the data of its run')
    if student.config['inputs']['fit'] != data.fit:
        raise UserError(f'--fit {data.fit}: {run} was trained with --fit {student.config["inputs"]["fit"]}; give that')
    order = class_order(student.config['classes'], data, f'RUN_OR_CHECKPOINT {run}')
    if order is not None:
        print(f'{run}: has the classes of the data in another order; the exported files keep its order')
    teacher = open_teacher(opt, run, data)
    out = Path(opt.out)
    with new_folder(out) as folder:
        export = Export(student, dtype, folder, calibration_images(data, dtype, opt.calibration))
        faults = write_formats(export, wanted)
        written = [name for name in wanted if name not in faults]
        print(f'checking {len(written)} files on {len(data.test_labels)} test images, each by its own runtime',
              flush=True)
        outcomes = verify.compare(student.net, folder, written, data.test_loader, dtype, teacher and teacher[0], order)
        faults |= {name: fault for name in written if (fault := outcomes.formats[name].fault(FORMATS[name].agreement))}
        for name in faults:
            (folder / FORMATS[name].file).unlink(missing_ok=True)
        good = [name for name in written if name not in faults]
        if not good:
            raise UserError('nothing is exported: ' + '; '.join(f'{FORMATS[n].file}: {faults[n]}' for n in faults))
        text, rows = measure_cost(opt, export, good, outcomes, teacher and teacher[1]) if opt.latency else ('', [])
        write_json(folder / CONFIG, export.config)
        facts = model_card.describe(student, run.trusted_parameters, outcomes, folder, good, dtype, run.trusted)
        facts['measured on'] = printable(opt.dataset or run.parameters['dataset'])
        facts['to be filled in'] |= model_card.filled_in(out / CARD[0])
        write_json(folder / CARD[1], facts)
        (folder / CARD[0]).write_text(model_card.as_markdown(facts, student.config, text), encoding='utf-8')
    print(f'{student.name}: top-1 {outcomes.network.top1:.2f} in PyTorch')
    if facts['gives one class alone'] is not None:
        print(f'warning: {student.name} predicts the class {printable(facts["gives one class alone"])} for all '
              f'{outcomes.network.seen} test images: it cannot tell classes apart, and "the same first class" below '
              f'says nothing about the files')
    for name in good:
        found = outcomes.formats[name]
        print(f'{printable(out / FORMATS[name].file)}: top-1 {found.top1:.2f}, the same first class for '
              f'{found.agreement:.2f} %, logits differ by up to {found.difference:.1e}')
    print(f'{printable(out / CARD[0])}: fill in {", ".join(model_card.TO_FILL_IN)}')
    if rows:
        print(f'\n{text}\n\n{summary(rows)}')
    if faults:
        raise UserError('not written: ' + '; '.join(f'{FORMATS[name].file}: {fault}' for name, fault in faults.items()))


if __name__ == '__main__':
    run_main(main)
