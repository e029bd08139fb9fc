"""Draw what a teacher's students have learnt of it: t-SNE, correlations of classes, CKA, Grad-CAM and calibration.

python scripts/visualize.py STUDENT [STUDENT ...]
python scripts/visualize.py --path-t TEACHER.pth STUDENT.pth [...] --dataset NAME [--only cka gradcam]

A student is the folder of its run, whose best checkpoint is drawn, or a checkpoint. What is not given here (teacher,
data set and its folder) is read from the run's parameters.json. Each figure is written to --output as PNG, SVG and, for
its numbers, JSON.
"""
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: E402, F401, before torch: it sets how threads wait

# isort: split
import torch  # noqa: E402
from torch import Tensor, nn  # noqa: E402

from analysis import figures, metrics  # noqa: E402
from analysis.run_checkpoint import RunCheckpoint, add_data_flags, data_options, teacher_open_args  # noqa: E402
from dataset import get_dataloaders  # noqa: E402
from distiller_zoo import load_inference_net  # noqa: E402
from helper.cli import Parser, number, path, table  # noqa: E402
from helper.device import select_device  # noqa: E402
from helper.errors import UserError, printable, run_main  # noqa: E402
from helper.files import write_json  # noqa: E402
from models.base import Net  # noqa: E402
from models.find import get_library, is_user_file  # noqa: E402
from models.load import load_net, open_net  # noqa: E402

ROWS, MOST_ROWS = 5, 50     # images of Grad-CAM that are drawn unasked, and at most
FEWEST = 4                  # images that t-SNE and CKA need
LONGEST = 40                # characters of a net's name, and of a class's


@dataclass(eq=False)
class Shown:
    """A net of the figures, the flag that gave it, and its logits for the whole test set (N, classes)."""

    name: str
    flag: str
    checkpoint: str
    net: nn.Module
    logits: Tensor | None = None

    def check(self, values: Tensor) -> Tensor:
        """What this net gives for images. Raises UserError where it is not finite."""
        if not values.isfinite().all():
            raise UserError(f'{self.flag} {self.checkpoint}: what it gives is not finite, so the run diverged; '
                            f'leave it out')
        return values


@dataclass
class Subject:
    """All that a figure may need. Those who draw one are called with it and return (the figure, its numbers)."""

    teacher: Shown
    students: list[Shown]
    data: object
    opt: object
    target: Tensor | None = None        # (N,), of the test images in the order of the logits
    images: dict[int, Tensor] = field(default_factory=dict)     # number -> (3, H, W), as the nets see it
    numbers: dict[str, list[int]] = field(default_factory=dict)     # figure -> the test images that it shows

    @property
    def everyone(self) -> list[Shown]:
        return [self.teacher, *self.students]

    def with_stages(self, shown: list[Shown]) -> list[Shown]:
        return [one for one in shown if isinstance(one.net, Net)]

    def batch(self, figure: str) -> tuple[list[int], Tensor]:
        """(numbers, images (N, 3, H, W)) of the test images of a figure, without those that cannot be read."""
        numbers = [n for n in self.numbers[figure] if n in self.images]
        if len(numbers) < (1 if figure == 'gradcam' else FEWEST):
            raise UserError(f'--only: too few of the test images of {figure} can be read; leave it out')
        return numbers, torch.stack([self.images[n] for n in numbers])

    def class_name(self, label: int) -> str:
        name = printable(self.data.classes[label])
        return name if len(name) <= LONGEST else f'{name[:LONGEST - 1]}…'


def draw_tsne(subject):
    numbers, images = subject.batch('tsne')
    labels = subject.data.test_labels[numbers]
    batch, seed = subject.opt.data.batch_size, subject.opt.seed
    points = {one.name: metrics.tsne(one.check(metrics.embeddings(one.net, images, batch)), seed)
              for one in subject.with_stages(subject.everyone)}
    classes = [subject.class_name(label) for label in labels.unique().tolist()]
    figure = figures.tsne({name: xy.numpy() for name, xy in points.items()}, labels.numpy(), classes)
    return figure, {'images': numbers, 'labels': labels.tolist(),
                    'points': {name: xy.tolist() for name, xy in points.items()}}


def draw_correlations(subject):
    found = {one.name: metrics.correlation_difference(one.logits, subject.teacher.logits) for one in subject.students}
    classes = [subject.class_name(label) for label in range(subject.data.num_classes)]
    return figures.correlations({name: difference.numpy() for name, difference in found.items()}, classes), {
        'images': len(subject.target), 'classes': [printable(name) for name in subject.data.classes],
        'mean difference': {name: d.mean().item() for name, d in found.items()}}


def draw_cka(subject):
    numbers, images = subject.batch('cka')
    students = subject.with_stages(subject.students)
    found = metrics.stage_cka(subject.teacher.net, [one.net for one in students], images)
    found = {one.name: matrix for one, matrix in zip(students, found, strict=True)}
    figure = figures.cka({name: matrix.numpy() for name, matrix in found.items()}, subject.teacher.name)
    return figure, {'images': len(numbers), 'rows': 'student', 'columns': 'teacher',
                    'cka': {name: matrix.tolist() for name, matrix in found.items()}}


def draw_grad_cam(subject):
    numbers, images = subject.batch('gradcam')
    labels = subject.data.test_labels[numbers]
    drawn, said = {}, {}
    for one in subject.with_stages(subject.everyone):
        try:
            maps, logits = metrics.grad_cam(one.net, images.to(subject.data.test_loader.device))
        except LookupError as error:
            print(f'{one.name}: {error}, so it is not in gradcam')
            continue
        probability, predicted = logits.softmax(1).cpu().max(1)
        words = [f'{subject.class_name(label)}, {sure:.0%}'
                 for label, sure in zip(predicted.tolist(), probability.tolist(), strict=True)]
        drawn[one.name] = maps.cpu().numpy(), words, (predicted == labels).tolist()
        said[one.name] = {'predicted': predicted.tolist(), 'probability': probability.tolist()}
    if not drawn:
        raise UserError('--only: gradcam can show none of these nets; leave it out')
    pixels = subject.data.test_loader.normalise.to_pixels(images.to(subject.data.test_loader.device)).cpu()
    figure = figures.grad_cam(pixels.numpy(), [f'image {n}' for n in numbers],
                              [subject.class_name(label) for label in labels.tolist()], drawn)
    return figure, {'images': numbers, 'labels': labels.tolist(), 'nets': said}


def draw_calibration(subject):
    teacher, target = subject.teacher.logits, subject.target
    found, numbers, rows = {}, {}, []
    for one in subject.everyone:
        of = found[one.name] = metrics.calibration(one.logits, target)
        taught = one is not subject.teacher
        said = numbers[one.name] = {
            'checkpoint': one.checkpoint, 'top-1 %': metrics.top1(one.logits, target),
            'agreement %': metrics.top1(one.logits, teacher.argmax(1)) if taught else None,
            'KL': metrics.mean_kl(one.logits, teacher) if taught else None, 'ECE %': of.ece * 100,
            'NLL': nn.functional.cross_entropy(one.logits, target).item()}
        rows.append((one.name, *('' if value is None else f'{value:.{digits}f}' for value, digits in zip(
            [*said.values()][1:], (2, 2, 4, 2, 4), strict=True))))
        said['bins'] = {name: getattr(of, name).tolist() for name in ('count', 'confidence', 'accuracy')}
    print(f'\n{table(("net", *[*said][1:-1]), rows, "<>>>>>")}\n')
    return figures.calibration(found), {'images': len(target), 'nets': numbers}


DRAW = {'tsne': draw_tsne, 'correlations': draw_correlations, 'cka': draw_cka, 'gradcam': draw_grad_cam,
        'calibration': draw_calibration}
OF_ALL_IMAGES = {'correlations', 'calibration'}      # figures of the logits for the whole test set


def options():
    """(the options, the students). What was not given and a run's parameters.json has is filled in."""
    parser = Parser(description="Draw what a teacher's students have learnt of it.")
    add = parser.add_argument
    add('students', nargs='+', type=path, metavar='STUDENT', help="a run's folder, or a checkpoint")
    add('--path-t', type=path, help="the teacher's checkpoint; not given: that of the runs")
    add('--output', type=path, default='./save/figures', help='folder of the figures')
    add('--only', nargs='+', choices=DRAW, default=[*DRAW], help='draw these figures alone')
    add('--samples', type=number(int, low=FEWEST, high=10**5), default=1000,
        help='test images of t-SNE and of CKA, or all if there are fewer')
    add('--classes', type=number(int, low=1, high=20), default=10,
        help='classes of t-SNE and Grad-CAM, drawn by --seed')
    add('--images', nargs='+', type=number(int, low=0), metavar='N',
        help=f'numbers of the test images of Grad-CAM; not given: the first of each of {ROWS} classes')
    add('--seed', type=number(int, low=0, high=2**32 - 1), default=0,
        help='of the choice of images and classes, and of t-SNE')
    add('--gpu_id', default='0', help='the GPU to compute on; cpu forces the CPU')
    add_data_flags(parser)
    opt = parser.parse_args()
    students = [RunCheckpoint.find(given, 'STUDENT') for given in opt.students]
    if opt.images and len(opt.images) > MOST_ROWS:
        parser.error(f'--images: {len(opt.images)} images; give at most {MOST_ROWS}')
    check_alike(students, opt)
    for student in students:
        student.check_metrics()
    opt.path_t, opt.teacher = teacher_of(students) if opt.path_t is None else (opt.path_t, {})
    opt.data = data_options(next((student for student in students if student.parameters), students[0]), opt)
    return opt, students


def check_alike(students, opt):
    """Raises UserError for runs of different data."""
    first, *others = [student for student in students if student.parameters] or [None]
    for other in others:
        for name in ('dataset', 'image_size', 'fit', 'data_dir'):
            here, there = (student.parameters.get(name) for student in (first, other))
            if here != there and (name == 'dataset' or first.parameters.get('dataset') == 'folder'
                                  and getattr(opt, name) is None):
                raise UserError(f'STUDENT {other}: a run with --{name} {there}, but {first} with {here}; give runs '
                                f'on the same data')


def teacher_of(students):
    """(the teacher's checkpoint of these runs, arguments of open_net). Raises UserError for none and for several."""
    taught, opened = {}, {}     # checksum -> path, path -> arguments of open_net
    for student in students:
        file, said = student.trusted_parameters.get('path_t'), student.trusted_parameters.get('model_t')
        if isinstance(file, str):
            taught.setdefault(str(student.trusted_parameters.get('teacher (checksum)', file)), file)
            named = isinstance(said, str) and not is_user_file(said) and not get_library(file)
            opened[file] = {'name': said if named else None, **teacher_open_args(student.trusted_parameters)}
    if len(taught) != 1:
        what = f'these students learnt from several teachers, {", ".join(taught.values())}; give the one to compare ' \
               f'with' if taught else "none of these students says who taught it; give a teacher's checkpoint"
        raise UserError(f'--path-t: {what}')
    file, = taught.values()
    return file, opened[file]


def load(opt, students, data, device):
    """(teacher, students) as Shown, on the device. The teacher itself is not among the students."""
    name, state = open_net(opt.path_t, **opt.teacher)
    shown = [Shown(f'{name} (teacher)', '--path-t', opt.path_t, load_net(opt.path_t, state, name, data))]
    found = {student.checkpoint.resolve(): student for student in students}
    found.pop(Path(opt.path_t).resolve(), None)
    if not found:
        raise UserError(f'STUDENT {students[0]}: is the teacher; give a student of it')
    for student in found.values():
        arch, net = load_inference_net(str(student), data, 'STUDENT', checkpoint=student.state)
        name = label(arch, student.trusted_parameters, {one.name for one in shown})
        shown.append(Shown(name, 'STUDENT', str(student), net))
    for one in shown:
        one.net.to(device).eval().requires_grad_(False)
    return shown[0], shown[1:]


def label(arch, parameters, taken):
    """What a student is called: its net and its method, and what tells it from those whose names are taken."""
    name = arch
    if 'distill' in parameters:
        name = f'{parameters.get("model_s")} {parameters["distill"]}'
    elif 'model' in parameters:
        name = f'{parameters["model"]} alone'
    name, trial = (printable(text)[:LONGEST] for text in (name, parameters.get('trial')))
    names = [name, f'{name}, trial {trial}', *(f'{name} ({n})' for n in range(2, len(taken) + 3))]
    return next(text for text in names if text not in taken)


def choose_images(subject, opt):
    """Say which test images each figure is made of."""
    labels, draw = subject.data.test_labels, torch.Generator().manual_seed(opt.seed)
    classes = torch.randperm(subject.data.num_classes, generator=draw)[:opt.classes].sort().values
    order = torch.randperm(len(labels), generator=draw)
    of_class = [(labels == label).nonzero()[:1, 0].tolist() for label in classes[:ROWS]]
    subject.numbers = {'cka': order[:opt.samples].tolist(),
                       'tsne': order[torch.isin(labels[order], classes)][:opt.samples].tolist(),
                       'gradcam': opt.images or sum(of_class, [])}
    if max(subject.numbers['gradcam'], default=0) >= len(labels):
        raise UserError(f'--images {max(opt.images)}: the test set of {opt.data.dataset} has the images 0 to '
                        f'{len(labels) - 1}')


def read_test_set(subject, names):
    """Fill in what these figures need of the test set, in one pass over it."""
    everyone = subject.everyone if OF_ALL_IMAGES & {*names} else []
    wanted = {n for name in names for n in subject.numbers.get(name, ())}
    subject.target, logits, subject.images = metrics.read_test_set(
        subject.data.test_loader, [one.net for one in everyone], wanted)
    for one, found in zip(everyone, logits, strict=True):
        one.logits = one.check(found)


def can_be_drawn(subject, names):
    """Those of the figures `names` that these nets and images allow; a line for what is left out."""
    plain = subject.with_stages(subject.students)
    stages = [name for name in names if name in ('tsne', 'cka', 'gradcam')]
    for one in subject.students:
        if stages and one not in plain:
            print(f'{one.name}: the network that it deploys gives no stages, so it is not in {", ".join(stages)}')
    left = [name for name in names if name != 'cka' or plain]
    for name in ('tsne', 'cka'):
        if name in left and len(subject.numbers[name]) < FEWEST:
            print(f'{name}: left out, it needs at least {FEWEST} test images')
            left.remove(name)
    if 'gradcam' in left and not subject.numbers['gradcam']:
        print('gradcam: left out, none of the chosen classes has a test image; choose some with --images')
        left.remove('gradcam')
    return left


def make_output(folder):
    """Make the folder and see that it can be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f'--output {folder}: cannot be written ({error.strerror}); give a folder that you may write'
                        ) from error


def main():
    opt, students = options()
    device = select_device(opt.gpu_id, quiet=True)
    data = get_dataloaders(opt.data, device)
    subject = Subject(*load(opt, students, data, device), data, opt)
    choose_images(subject, opt)
    names = can_be_drawn(subject, [name for name in DRAW if name in opt.only])
    folder = Path(opt.output)
    make_output(folder)
    read_test_set(subject, names)
    for name in names:
        figure, numbers = DRAW[name](subject)
        figures.save_figure(figure, folder / name)
        write_json(folder / f'{name}.json', numbers)
        print(f'{name}: {folder / name}.png, .svg, .json')


if __name__ == '__main__':
    run_main(main)
