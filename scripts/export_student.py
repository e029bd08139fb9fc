"""Export the network that a run deploys to PyTorch, torch.export and ONNX, verify every file, and write a model card.

python scripts/export_student.py RUN_OR_CHECKPOINT --out DIR [--formats safetensors pt2 onnx] [--int8] [--fp16]
python scripts/export_student.py RUN_OR_CHECKPOINT --out DIR --latency
python scripts/export_student.py RUN_OR_CHECKPOINT --out DIR --web [--web_teacher]

Of a run folder, the best checkpoint is exported. Each file is loaded by its own runtime in a new process and compared
with the network in PyTorch on the whole test set. A file outside the tolerance is not written.
"""
import contextlib
import shlex
import signal
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
import torch

from analysis.run_checkpoint import RunCheckpoint, add_data_flags, data_options
from dataset import get_dataloaders
from export import latency, model_card, verify, web
from export.deployed_net import open_deployed_net
from export.formats import FORMATS, Export
from export.int8 import METHODS, Calibration
from export.runtime import CONFIG
from helper.cli import Parser, as_list, number, path
from helper.errors import UserError, counted, printable, reason, run_main
from helper.files import write_json
from helper.launch import STOP_SIGNALS
from models.classes import class_order
from models.ensemble import Ensemble
from models.load import load_net, open_net
from models.quantisation import CALIBRATION_IMAGES

DEFAULT_FORMATS = ('safetensors', 'pt2', 'onnx')
CARD = ('MODEL_CARD.md', model_card.CARD)
NETWORK_FILES = {form.file for form in FORMATS.values()}
EXPORT_FILES = {CONFIG, *CARD, *latency.FILES, *NETWORK_FILES, *web.FILES}


def options():
    """(the options, the formats to write, the run)."""
    parser = Parser(description='Export the network that a run deploys, verify every file, and write a model card.')
    add = parser.add_argument
    add('run', type=path, metavar='RUN_OR_CHECKPOINT', help='a run folder or a checkpoint')
    add('--out', type=path, required=True, help='the folder to write; it must be new, empty or an earlier export')
    add('--formats', nargs='+', choices=DEFAULT_FORMATS, default=[*DEFAULT_FORMATS],
        help='safetensors: weights with config.json; pt2: torch.export; onnx: ONNX')
    add('--int8', action='store_true', help='also write ONNX in 8 bits, quantised by channel')
    add('--fp16', action='store_true', help='also write ONNX in 16 bits')
    add('--input', choices=('uint8', 'float'), default='uint8',
        help='the images that the exported files take: uint8 from 0 to 255, or float from 0 to 1')
    add('--calibration', type=number(int, low=1, high=10**6),
        help='number of training images that give the ranges of --int8, and of others on which they are compared; if '
             f'omitted, {CALIBRATION_IMAGES}')
    add('--int8_ranges', choices=METHODS,
        help='how --int8 finds the ranges of the activations; if omitted, the best of all on held-out training images')
    add('--model', metavar='FILE.py:FUNCTION', help='the net of the checkpoint, if it is in a file of yours')
    add('--latency', action='store_true', help='measure memory and time of every format, for the teacher too')
    add('--threads', type=number(int, low=1, high=1024), help='number of threads for --latency; if omitted, 1')
    add('--web', action='store_true', help='also write the folder web, a page that runs the student in a browser')
    add('--web_teacher', action='store_true', help='show the teacher beside the student in the page of --web')
    add('--web_runtime', type=path, metavar='FILE.tgz',
        help=f'{web.PACKAGE} of the npm registry; if omitted, --web downloads it once into the cache folder')
    add('--path-t', type=path, help="the teacher's checkpoint; if omitted, the one of the run if it still exists")
    add('--model_t', metavar='NET', help="the teacher's net, if its checkpoint does not name it")
    add_data_flags(parser)
    opt = parser.parse_args()
    for name, required, default in (('calibration', 'int8', None), ('int8_ranges', 'int8', None),
                                    ('threads', 'latency', 1)):
        if getattr(opt, name) is not None and not getattr(opt, required):
            parser.error(f'--{name} {getattr(opt, name)}: has no effect without --{required}; add --{required}')
        setattr(opt, name, getattr(opt, name) or default)
    for name in ('web_teacher', 'web_runtime'):
        if getattr(opt, name) and not opt.web:
            parser.error(f'--{name}: has no effect without --web; add --web')
    names = [*dict.fromkeys(opt.formats), *(name for name in ('int8', 'fp16') if getattr(opt, name))]
    if opt.web and not web.ONNX_FILES.keys() & names:
        parser.error('--web: the page runs an ONNX file; add onnx to --formats, or --int8 or --fp16')
    for name in names:
        if missing := [library for library in FORMATS[name].needs if find_spec(library) is None]:
            parser.error(f'{FORMATS[name].file}: needs {" and ".join(missing)}; '
                         f'pip install -r requirements-export.txt')
    check_out(opt.out)
    run = RunCheckpoint.find(opt.run, 'RUN_OR_CHECKPOINT')
    if not run.parameters and opt.dataset is None:
        parser.error(f'--dataset: {run} has no parameters.json beside it that names its data; give --dataset and '
                     f'--data_dir')
    return opt, names, run


def check_out(given):
    """Raises UserError if an export cannot replace this folder."""
    try:
        out = Path(given).resolve()         # a link stays, and the folder that it points to is replaced
        files = {file.relative_to(out).as_posix() for pattern in ('*', f'{web.FOLDER}/*') for file in out.glob(pattern)}
        is_export = files <= EXPORT_FILES and (not files or files & NETWORK_FILES)
        is_blocked = out.exists() and not out.is_dir() or not is_export
    except (OSError, RuntimeError) as error:        # RuntimeError: a loop of links
        raise UserError(f'--out {given}: cannot be written ({reason(error)}); give a new folder') from error
    if is_blocked:
        raise UserError(f'--out {given}: holds other things than an export; give a new folder')
    if out == Path.cwd() or out.is_mount():
        raise UserError(f'--out {given}: cannot be replaced by a new folder while it is in use; give a folder in it')


def int8_calibration(opt, data, dtype, order):
    """Random training images for --int8: one part gives the ranges, which are compared on another of the same size.

    Raises UserError for fewer than two images.
    """
    if data.n_train < 2:
        raise UserError(f'--int8: some training images give the ranges, which are compared on others, but the data '
                        f'have {counted(data.n_train, "training image")}; give data with at least two, or leave it out')
    count = min(opt.calibration or CALIBRATION_IMAGES, -(-data.n_train // 2))
    shuffled = torch.randperm(data.n_train, generator=torch.Generator().manual_seed(0))
    calibrating, held_out = (part.sort()[0].tolist() for part in (shuffled[:count], shuffled[count:2 * count]))

    def batches():
        loader = data.unaugmented_loader(calibrating)
        for images, *_ in loader:
            for part in images.split(8):
                yield verify.pixels(loader, part, dtype)
    return Calibration(batches, lambda: data.unaugmented_loader(held_out), order,
                       (opt.int8_ranges, ) if opt.int8_ranges else METHODS)


def open_teacher(opt, run, data):
    """(the teacher for the loader's images, or the Ensemble of several; a single one as a DeployedNet, or None).

    (None, None) if there is none. Raises UserError only for a teacher that --path-t names.
    """
    def pair(file, name, checkpoint, net):
        deployed = None if net.head_checksum else open_deployed_net(file, data, '--path-t', name, checkpoint)
        return net.eval(), deployed

    if opt.path_t:
        name, checkpoint = open_net(opt.path_t, opt.model_t)
        return pair(opt.path_t, name, checkpoint, load_net(opt.path_t, checkpoint, name, data))
    if not run.teachers():
        return None, None
    nets = []
    try:
        checksums = as_list(run.parameters.get('teacher (checksum)'))
        for number, (file, _) in enumerate(run.teachers()):
            if not Path(file).exists():
                raise UserError(f'--path-t {file}: no such file')
            nets.append(pair(file, *run.open_teacher(number, data, opt.model_t)))
            if checksums[number:] and checksums[number] not in (None, nets[-1][0].checksum):
                raise UserError(f'--path-t {file}: no longer the net that taught {run}')
    except UserError as error:
        print(f'without the teacher: {printable(error)}; give it by --path-t')
        return None, None
    if len(nets) == 1:
        return nets[0]
    return Ensemble([net for net, _ in nets], run.teacher_weights(len(nets))).eval(), None


@contextlib.contextmanager
def new_folder(out):
    """A folder that replaces `out` at the end of the block; after an exception, `out` stays as it was."""
    given, out = out, out.resolve()
    handlers = {number: signal.signal(number, lambda number, _: sys.exit(128 + number)) for number in STOP_SIGNALS
                if signal.getsignal(number) == signal.SIG_DFL}      # so that a signal removes unfinished files
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix='.export') as temporary:
            folder, old = (Path(temporary) / name for name in ('new', 'old'))
            folder.mkdir()
            yield folder
            for file in folder.rglob('*'):
                file.chmod(0o755 if file.is_dir() else 0o644)
            try:
                if out.exists():
                    out.rename(old)
                folder.rename(out)
            except BaseException:
                with contextlib.suppress(OSError):      # there is no old one, or another export has replaced it
                    old.rename(out)
                raise
    except OSError as error:
        raise UserError(f'--out {given}: cannot be written ({error.strerror or reason(error)}); an earlier file is '
                        f'unchanged') from error
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def open_run(opt, run):
    """Return (data, network, order), with `order` as in verify.evaluate. Raises UserError."""
    options, inputs = data_options(run, opt)
    data = get_dataloaders(options, torch.device('cpu'), inputs=inputs)
    network = open_deployed_net(str(run), data, 'RUN_OR_CHECKPOINT', opt.model, run.state)
    run.check_metrics()
    classes, fit = network.config['classes'], network.config['inputs']['fit']
    if (network.size, len(classes)) != (data.image_size, data.num_classes):
        raise UserError(f'--dataset: has {data.num_classes} classes and images of {data.image_size} pixels, but {run} '
                        f'is for {len(classes)} and {network.size}; give the data of its run')
    for name in ('int8_ranges', 'calibration'):
        if network.rounded and (value := getattr(opt, name)):
            raise UserError(f'--{name} {value}: {run} was trained with --qat, which sets the ranges; leave it out')
    if fit != data.fit:
        raise UserError(f'--fit {data.fit}: {run} was trained with --fit {fit}; give that')
    order = class_order(classes, data, f'RUN_OR_CHECKPOINT {run}')
    if order is not None:
        print(f'{run}: has the classes of the data in another order; the exported files keep its order')
    return data, network, order


def main():
    opt, names, run = options()
    data, network, order = open_run(opt, run)
    teacher, deployed_teacher = open_teacher(opt, run, data)
    if opt.web_teacher and not deployed_teacher:
        raise UserError(f'--web_teacher: {run} has no teacher that can be opened; give it by --path-t')
    web_runtime = web.read_runtime(opt.web_runtime) if opt.web else {}
    dtype, out = {'uint8': 'uint8', 'float': 'float32'}[opt.input], Path(opt.out)
    calibration = int8_calibration(opt, data, dtype, order) if opt.int8 else None
    with new_folder(out) as folder:
        export, faults = Export(network, dtype, folder, calibration), {}
        for name in names:
            print(f'writing {FORMATS[name].file}', flush=True)
            faults[name] = export.write(name)
        written = [name for name in names if not faults[name]]
        print(f'checking {counted(len(written), "file")} on {counted(len(data.test_labels), "test image")}, each by '
              f'its own runtime', flush=True)
        files = {name: export.file(name) for name in written}
        qat_file = {'int8': files.pop('int8')} if network.rounded and 'int8' in files else {}
        results = verify.evaluate(network.net, files, data.test_loader, dtype, teacher, order)
        if qat_file:
            rounded = verify.evaluate(network.rounded, qat_file, data.test_loader, dtype, order=order)
            results.formats |= rounded.formats
            export.file_details['int8']['rounded network top-1 %'] = rounded.network.top1
            faults['int8'] = rounded.formats['int8'].fault_of_qat(rounded.network)
        faults |= {name: results.formats[name].fault(FORMATS[name].agreement) for name in files}
        faults = {name: fault for name, fault in faults.items() if fault}
        fault_text = '; '.join(f'{FORMATS[name].file}: {fault}' for name, fault in faults.items())
        for name in faults:
            export.file(name).unlink(missing_ok=True)
        names = [name for name in names if name not in faults]
        if not names:
            raise UserError(f'nothing is exported: {fault_text}')
        if opt.web:
            if not web.ONNX_FILES.keys() & names:
                raise UserError(f'--web: nothing is exported, because the page has no ONNX file to run: {fault_text}')
            page_file = web.write(export, names, deployed_teacher if opt.web_teacher else None, web_runtime)
        table, summary, comparison = '', '', ''
        if opt.latency:
            print('measuring memory and time of each file, for the teacher too' if deployed_teacher else
                  'measuring memory and time of each file', flush=True)
            table, summary = latency.measure(export, names, results, deployed_teacher, opt.threads)
        elif {'onnx', 'int8'} <= {*names}:
            comparison = latency.compare_int8(export)
        write_json(folder / CONFIG, export.config)
        card = model_card.describe(export, names, results, run, printable(opt.dataset or run.parameters['dataset']))
        card['to be filled in'] |= model_card.read_filled_in(out / CARD[0])
        write_json(folder / CARD[1], card)
        (folder / CARD[0]).write_text(model_card.as_markdown(card, network.config, table), encoding='utf-8')
    rounded_top1 = export.file_details.get('int8', {}).get('rounded network top-1 %')
    print(f'{network.name}: top-1 {results.network.top1:.2f} in PyTorch'
          + ('' if rounded_top1 is None else f', {rounded_top1:.2f} with the rounding of --qat'))
    if (constant := card['gives one class alone']) is not None:
        print(f'warning: {network.name} predicts the class {printable(constant)} for all {results.network.images} test '
              f'images: it cannot tell classes apart, and "the same class" below says nothing about the files')
    for name in names:
        result = results.formats[name]
        print(f'{printable(out / FORMATS[name].file)}: top-1 {result.top1:.2f}, the same class for '
              f'{result.agreement:.2f} %, logits differ by up to {result.difference:.1e}')
    if comparison:
        print(comparison)
    print(f'{printable(out / CARD[0])}: fill in {", ".join(model_card.TO_FILL_IN)}')
    if opt.web:
        page = out / web.FOLDER
        print(f'{printable(page)}: a page that runs {page_file}; start python -m http.server -b 127.0.0.1 -d '
              f'{printable(shlex.quote(str(page)))} and open http://127.0.0.1:8000')
    if table:
        print(f'\n{table}\n\n{summary}')
    if faults:
        raise UserError(f'not written: {fault_text}')


if __name__ == '__main__':
    run_main(main)
