"""Plan the runs of own_photos.sh for a folder of photographs, and select the best student.

python scripts/own_photos.py plan SAVE FOLDER [TEACHER] [STUDENT] [--epochs N] [--image_size N] [flags of every run]
python scripts/own_photos.py best SAVE

plan checks the folder and the nets, and writes SAVE/own_photos.toml for reproduce.py. best writes SAVE/best.txt (the
folder of the student with the highest validation accuracy), SAVE/examples (some test images) and SAVE/summary.txt.
"""
import contextlib
import json
import os
import shlex
import shutil
import sys
import zlib
from itertools import count, takewhile
from pathlib import Path
from types import SimpleNamespace

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
from analysis.runs import read_run
from dataset.folder import is_hidden, open_sources, open_whole
from dataset.image import read_rgb
from dataset.source import TEST_SPLITS
from dataset.split import divide
from experiments.plan import plan_runs
from experiments.planned_run import parse_known_flags
from experiments.table_file import ALONE, read_table
from experiments.table_flags import REFUSED, SET_HERE, check_flags
from helper.cli import Parser, number, path, table
from helper.errors import UserError, counted, listed, printable, run_main
from helper.files import make_folder, read_json, read_text, write_atomically
from helper.optim import rate_factors
from models.find import LIBRARIES, build, check_name, get_library, parse_name
from models.load import open_net
from models.start import open_initial, open_published
from option_checkpoints import TEST_PREPROCESSING, set_preprocessing
from options import student_options

TABLE = 'own_photos.toml'         # in SAVE; beside this script, its text with {blanks}
DEFAULT_NETS = ['timm:convnext_tiny', 'timm:mobilenetv3_small_100']     # teacher and student
SHARES = '0.7,0.15,0.15'        # --split of a folder without splits: training, validation and test images
VAL_FRACTION = '0.15'           # of the training images, for a folder without validation images
FEWEST = 10                     # images of each class that are divided
SMALL = 500                     # training images below which batches are smaller, so that an epoch has enough steps
CHECKSUM = '# checksum without this line: '     # the second line of TABLE; it shows whether the table was edited
USAGE = 'sh scripts/own_photos.sh FOLDER [TEACHER] [STUDENT] [flags]'
EXAMPLES = 6                    # test images that are predicted at the end


def plan(save: Path, arguments: list[str]) -> None:
    """Write the table for FOLDER [TEACHER] [STUDENT] [flags].

    A table with runs, and an edited one of the same command, stay as they are.
    Raises UserError for a folder or a net that cannot be used, and for runs of other arguments.
    """
    opt, run_flags = parse(arguments)
    command = printable(shlex.join(['own_photos.sh', *(a for a in arguments if a != '--estimate')]))
    check_folders(save, Path(opt.folder))
    if any((save / name).exists() for name in ('models', 'student_model')):
        check_same_command(save, command)
        print(f'{save}: continues')
        return
    data_flags, n_train = divide_folder(Path(opt.folder))
    teacher, teacher_flags, preprocessing = find_net(opt.teacher, opt.teacher_checkpoint, opt.image_size, 'TEACHER')
    student, student_flags, _ = find_net(opt.student, opt.student_checkpoint, opt.image_size, 'STUDENT')
    is_pretrained_t, is_pretrained_s = bool(teacher_flags), bool(student_flags)
    teacher_epochs = min(opt.epochs, max(10, opt.epochs // 3)) if is_pretrained_t else opt.epochs
    if is_pretrained_t:
        teacher_flags += backbone_flags(teacher, opt.image_size)
    options = ['--dataset', 'folder', '--data_dir', os.path.abspath(opt.folder), *data_flags, '--image_size',
               str(opt.image_size), '--batch_size', '8' if n_train < SMALL else '32', '--opt', 'adamw',
               '--learning_rate', '5e-4', '--weight_decay', '0.05', '--sched', 'cosine']
    # The student alone preprocesses test images as the distilled ones do: like the teacher, unless it is pretrained.
    test_flags = [] if is_pretrained_s else test_image_flags(preprocessing, [*options, *run_flags])
    make_folder(save, f'SAVE {save}')
    text = Path(__file__).with_name(TABLE).read_text().format(
        command=command, title=toml_string(f'Photographs of {Path(opt.folder).resolve().name}'),
        options=toml_string(shlex.join(options)),
        teacher_options=toml_string(shlex.join(
            [*teacher_flags, *schedule_flags(teacher_epochs, is_pretrained_t), *run_flags])),
        student_options=toml_string(shlex.join(
            [*student_flags, *schedule_flags(opt.epochs, is_pretrained_s), *test_flags, *run_flags])),
        pair=toml_string(f'{shlex.quote(teacher)} -> {shlex.quote(student)}'),
        warmup=max(1, opt.epochs // 10))
    if write_table(save / TABLE, text):
        print(f'{save / TABLE}: {teacher} learns for up to {teacher_epochs} epochs, then each {student} for up '
              f'to {opt.epochs}')


def check_folders(save: Path, folder: Path) -> None:
    """Raise UserError for a SAVE among the images, or with a folder `examples` of the user's own."""
    if not os.path.abspath(folder).isprintable():
        raise UserError(f'FOLDER {os.path.abspath(folder)}: has an unprintable character in its name; rename it')
    if folder.resolve() in (save.resolve(), *save.resolve().parents) and not (folder / 'train').is_dir():
        raise UserError(f'SAVE {save}: lies in FOLDER {folder}, whose folders are the classes; set one outside it, '
                        f'such as SAVE=../NAME')
    if (save / 'examples').exists() and not (save / TABLE).exists():
        raise UserError(f'SAVE {save}: has a folder `examples` already; set another one, SAVE=save/NAME')


def write_table(file: Path, text: str) -> bool:
    """Write the table, whose first line is the command. Returns whether it was written.

    An edited table of the same command stays; one of another command is renamed.
    """
    if file.exists() and is_edited(earlier := read_text(file, f'{file}:')):
        if earlier.partition('\n')[0] == text.partition('\n')[0]:
            print(f'{file}: stays as it is, with your changes')
            return False
        old = next(path for number in count(1) if not (path := file.with_name(f'{file.name}.{number}')).exists())
        os.replace(file, old)
        print(f'{file}: was written for another command; that file is now {old}')
    command, _, rest = text.partition('\n')
    write_atomically(file, f'{command}\n{CHECKSUM}{_crc(command, rest)}\n{rest}'.encode())
    return True


def is_edited(text: str) -> bool:
    """Whether a table differs from the one that write_table has written."""
    command, _, rest = text.partition('\n')
    checksum, _, rest = rest.partition('\n')
    return checksum != f'{CHECKSUM}{_crc(command, rest)}'


def _crc(command, rest):
    return f'{zlib.crc32(f"{command} {rest}".encode()):08x}'


def parse(arguments: list[str]):
    """(the options, the flags of every run). The names come first, because a value of a flag looks like a name."""
    names = [*takewhile(lambda argument: not argument.startswith('-'), arguments)]
    if not 1 <= len(names) <= 3:
        raise UserError(f'{" ".join(names) or "FOLDER"}: give a folder, then up to two nets, then flags: {USAGE}')
    parser = Parser(description='Write the table of runs for a folder of photographs.')
    add = parser.add_argument
    add('--epochs', type=number(int, low=1, high=10**4), default=60,
        help='epochs of each student at most; a pretrained teacher gets a third of them, or ten if that is more')
    add('--image_size', type=number(int, low=32, high=512), default=224, help='height and width in pixels')
    for net in ('teacher', 'student'):
        add(f'--{net}_checkpoint', type=path, metavar='PATH',
            help=f'start the {net} from the weights in this file or folder, if they do not name their net')
    add('--estimate', action='store_true', help='own_photos.sh prints the hours, and stops')
    opt, flags = parse_known_flags(parser, arguments[len(names):])
    check_flags(flags, 'own_photos.sh', REFUSED | dict.fromkeys(('--dataset', '--data-dir', '--split'), SET_HERE))
    opt.folder, opt.teacher, opt.student = [*names, *DEFAULT_NETS[len(names) - 1:]]
    return opt, flags


def check_same_command(save: Path, command: str) -> None:
    """Raise UserError unless the runs in `save` were planned by the same command."""
    file = save / TABLE
    earlier = read_text(file, f'SAVE {save}: has runs, but its table').split('\n')[0].removeprefix('# ')
    if earlier != command:
        raise UserError(f'SAVE {save}: has the runs of {earlier}; give those arguments, or set another folder, '
                        f'SAVE=save/NAME')


def divide_folder(folder: Path) -> tuple[list[str], int]:
    """(the flags that divide the images of `folder`, its number of training images). Raises UserError."""
    if not folder.is_dir():
        raise UserError(f'FOLDER {folder}: no such folder; give one with images in {folder}/CLASS/*')
    folders = {entry.name for entry in folder.iterdir() if entry.is_dir()}
    if 'train' in folders and folders & {*TEST_SPLITS}:
        parts, classes = open_sources(SimpleNamespace(data_dir=str(folder), val_fraction=None))
        train, flags, share = parts['train'], [], 1.0
        if 'val' not in parts:
            flags, share = ['--val_fraction', VAL_FRACTION], 1 - float(VAL_FRACTION)
    else:
        train, classes = open_whole(SimpleNamespace(data_dir=str(folder), split=SHARES))
        flags, share = ['--split', SHARES], float(SHARES.split(',')[0])
    counts = train.labels.bincount(minlength=len(classes)).tolist()
    if len(classes) < 2:
        raise UserError(f'FOLDER {folder}: holds the class {printable(classes[0])} alone; give two or more')
    few = [f'{name} ({count})' for name, count in zip(classes, counts, strict=True) if count < FEWEST]
    if few and flags:
        raise UserError(f'FOLDER {folder}: too few images to divide in the class {listed(few, 5)}; give each class '
                        f'{FEWEST} or more')
    whole = 'image' if '--split' in flags else 'training image'
    print(f'{folder}: {len(classes)} classes, {counted(len(train.labels), whole)}, ' + (
        f'divided by {" ".join(flags)}' if flags else 'and validation and test images'))
    return flags, round(share * len(train.labels))


def find_net(net: str, weights: str | None, image_size: int, label: str) -> tuple[str, list[str], dict]:
    """(the net's name, the flags that load pretrained weights, their preprocessing). Without weights: no flags, {}.

    net: a name, or a file or folder of weights that names its net. weights: --teacher_checkpoint, --student_checkpoint.
    label: TEACHER or STUDENT, for messages. Prints which weights the net starts from. Raises UserError.
    """
    if os.path.exists(net) and not weights:
        name, _ = open_net(net, flag=label)
        weights = net
    elif net.endswith(('.pth', '.pt', '.tar', '.safetensors')) or net.startswith(('/', './', '../')):
        raise UserError(f'{label} {net}: no such file or folder')
    else:
        name = check_name(net, image_size, label)
    if weights:
        inputs = open_initial(weights, name, label).inputs
        print(f'{label} {name}: starts from the weights in {weights}')
        return name, ['--initial_checkpoint', os.path.abspath(weights)], inputs
    library = get_library(name)
    plain = parse_name(name, label)[0] if library else name
    if not library or not LIBRARIES[library].has_published(plain, label):
        print(f'{label} {name}: starts from random weights, because none are published')
        return name, [], {}
    try:
        inputs = open_published(name).inputs
    except UserError:
        _, dot, tag = plain.partition('.')
        print(f'{label} {name}: starts from random weights: the published ones cannot be downloaded; download '
              f'them on another machine, and give --{label.lower()}_checkpoint PATH')
        return name.replace(dot + tag, '', 1), [], {}
    print(f'{label} {name}: starts from its published weights')
    return name, ['--pretrained'], inputs


def backbone_flags(name: str, image_size: int) -> list[str]:
    """The flags that lower the learning rate of pretrained layers: by timm's layer groups, if the net has them."""
    try:
        rate_factors(build(name, 2, image_size), SimpleNamespace(layer_decay=0.75, backbone_lr=1.0))
    except UserError:       # has no groups
        return ['--backbone_lr', '0.1']
    return ['--layer_decay', '0.75']


def test_image_flags(preprocessing: dict, flags: list[str]) -> list[str]:
    """The flags that let a student without a teacher preprocess test images as with a teacher of this `preprocessing`.

    flags: of all runs.
    """
    opt = student_options(['--path-t', 'TEACHER', *flags])
    set_preprocessing(opt, None, {'inputs': preprocessing}, resumes=False)
    return [word for option in TEST_PREPROCESSING if option not in opt.flags.given and getattr(opt, option) is not None
            for word in (f'--{option}', str(getattr(opt, option)))]


def schedule_flags(epochs: int, is_pretrained: bool) -> list[str]:
    """The flags for epochs, patience and warm-up, and with pretrained weights an epoch for the classifier alone."""
    flags = ['--epochs', str(epochs), '--patience', str(max(10, epochs // 3))]
    if epochs >= 5:
        flags += ['--warmup_epochs', str(min(3, epochs // 5)), '--warmup_lr', '1e-4']
        flags += ['--freeze_epochs', '1'] if is_pretrained else []
    return flags


def toml_string(text: str) -> str:
    """The text as a TOML string."""
    return json.dumps(printable(text), ensure_ascii=False)


def best(save: Path) -> None:
    """Write best.txt, examples and summary.txt of the finished runs. Raises UserError if a run is not finished."""
    runs = plan_runs(read_table(save / TABLE), str(save), [])
    results = {run: read_run(str(run.folder)) for run in runs}
    val = {run: read_json(run.folder / 'val_best_metrics.json', f'{run.folder}') for run in runs}

    def rank(run):      # without the test set
        return val[run]['val_acc'], -val[run]['val_loss']

    students = [run for run in runs if run.cells]
    candidates = {      # label in the summary -> runs; the best of them is shown
        'teacher': [run for run in runs if not run.cells],
        'student alone': [run for run in students if results[run]['distill'] == ALONE],
        'best distilled': [run for run in students if results[run]['distill'] != ALONE]}
    rows = []
    for label, members in candidates.items():
        if members:
            run = max(members, key=rank)
            names = ', '.join(dict.fromkeys([run.net, *(row for row, _ in run.cells)]))
            rows.append((label, names, f'{val[run]["val_acc"]:.2f}', f'{results[run]["top1"]:.2f}'))
    accuracies = table(('top-1 %', '', 'validation', 'test'), rows, '<<>>')
    winner = max(students, key=rank)
    files = test_files(winner.opt)
    write_atomically(save / 'best.txt', f'{winner.folder}\n'.encode())
    write_atomically(save / 'summary.txt', f"""\
{accuracies}
{counted(len(files), "test image")}, measured once for each run: one image is {100 / len(files):.2f} points

best on the validation set: {winner.cells[0][0]}, {winner.folder}
report: {save}/report.html
export: {save}/export, with MODEL_CARD.md to fill in
to change rows or seeds: edit {save / TABLE}, and give the same command again
""".encode())
    copy_examples(files, save / 'examples')
    print(f'{winner.cells[0][0]} is the best on the validation set: {winner.folder}')


def copy_examples(files: list[str], folder: Path) -> None:
    """Copy EXAMPLES readable images, evenly spaced in `files`, into a folder; their names begin with their folders'.

    Earlier copies are removed. Raises UserError for other files in the folder.
    """
    names = {'_'.join(Path(file).parts[-2:]): file for file in files}
    folder.mkdir(exist_ok=True)
    earlier = [name for name in os.listdir(folder) if not is_hidden(name)]
    if foreign := sorted({*earlier} - names.keys()):
        raise UserError(f'{folder}: holds {listed(foreign, 3)}, which is no copy of a test image; move it away')
    for name in earlier:
        (folder / name).unlink()
    step, copied = -(-len(names) // EXAMPLES), 0
    for name in [name for start in range(step) for name in [*names][start::step]]:
        with contextlib.suppress(UserError):        # --skip_bad_images: unreadable
            read_rgb(names[name])
            shutil.copy(names[name], folder / name)
            copied += 1
        if copied == EXAMPLES:
            break


def test_files(opt) -> list[str]:
    """The files of the test images of a run with these options."""
    if not opt.split:
        return open_sources(opt)[0]['test'].files
    source, _ = open_whole(opt)
    return [source.files[i] for i in divide(source.labels, source.names, opt.split)['test']]


def main():
    step, save, *arguments = sys.argv[1:] if len(sys.argv) > 2 else ('', '')
    if step == 'plan':
        plan(Path(save), arguments)
    elif step == 'best' and not arguments:
        best(Path(save))
    else:
        raise UserError('give  plan SAVE FOLDER [TEACHER] [STUDENT] [flags]  or  best SAVE; sh scripts/own_photos.sh '
                        'does all')


if __name__ == '__main__':
    run_main(main)
