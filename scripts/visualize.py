"""Compare students with their teacher in figures: t-SNE, class correlations, CKA, Grad-CAM, calibration, confusion
matrices, the accuracy of each class, and the images that a student gets wrong with the highest confidence.

python scripts/visualize.py STUDENT [STUDENT ...]
python scripts/visualize.py --path-t TEACHER.pth STUDENT.pth [...] --dataset NAME [--only cka gradcam]

STUDENT is a run folder, whose best checkpoint is used, or a checkpoint. The teacher and the data that are not given as
flags are read from the run's parameters.json. Each figure is written to --output as PNG and SVG, and its numbers as
JSON.
"""
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import helper  # noqa: F401, before torch: it sets how threads wait

# isort: split
import torch

from analysis import figures, metrics
from analysis.comparison import DRAW, LONGEST, NEEDED, ComparedNet, Comparison
from analysis.run_checkpoint import RunCheckpoint, add_data_flags, data_options
from dataset import get_dataloaders
from distiller_zoo import load_inference_net
from helper.cli import Parser, as_list, number, path
from helper.device import select_device
from helper.errors import UserError, printable, run_main
from helper.files import make_folder, write_json
from models.load import load_net, open_net

ROWS, MOST_ROWS = 5, 50     # Grad-CAM's images: by default, and at most


def options():
    """(the options, the students). opt.data comes from the runs unless flags set it, opt.teacher without --path-t."""
    parser = Parser(description='Compare students with their teacher in figures.')
    add = parser.add_argument
    add('students', nargs='+', type=path, metavar='STUDENT', help='a run folder or a checkpoint')
    add('--path-t', type=path, help="the teacher's checkpoint; if omitted, the teacher of the runs")
    add('--model_t', help='the net of --path-t, for a checkpoint that does not name it')
    add('--output', type=path, default='./save/figures', help='the folder for the figures')
    add('--only', nargs='+', choices=DRAW, default=[*DRAW], help='draw only these figures')
    add('--samples', type=number(int, low=NEEDED['tsne'], high=10**5), default=1000,
        help='number of test images for t-SNE and CKA, at most')
    add('--classes', type=number(int, low=1, high=20), default=10,
        help='number of classes for t-SNE and Grad-CAM, selected by --seed')
    add('--images', nargs='+', type=number(int, low=0), metavar='N',
        help=f'the test images for Grad-CAM, by number; if omitted, the first image of each of {ROWS} classes')
    add('--mistakes', type=number(int, low=1, high=100), default=12,
        help='number of wrong images to show of each student, at most')
    add('--seed', type=number(int, low=0, high=2**32 - 1), default=0,
        help='the seed of t-SNE and of the selection of images and classes')
    add('--gpu_id', default='0', help='the GPU to use; cpu forces the CPU')
    add_data_flags(parser)
    opt = parser.parse_args()
    students = [RunCheckpoint.find(given, 'STUDENT') for given in opt.students]
    if opt.images and len(opt.images) > MOST_ROWS:
        parser.error(f'--images: {len(opt.images)} images; give at most {MOST_ROWS}')
    if opt.model_t and not opt.path_t:
        parser.error(f'--model_t {opt.model_t}: has no effect without --path-t; leave it out')
    check_same_data(students, opt)
    for student in students:
        student.check_metrics()
    opt.teacher = None if opt.path_t else find_teacher(students)
    opt.data, opt.inputs = data_options(next((student for student in students if student.parameters), students[0]), opt)
    return opt, students


def check_same_data(students, opt):
    """Raises UserError for runs on different data."""
    first, *others = [student for student in students if student.parameters] or [None]
    for other in others:
        for name in ('dataset', 'image_size', 'fit', 'data_dir'):
            value, expected = (student.parameters.get(name) for student in (other, first))
            if value != expected and (name == 'dataset' or first.parameters.get('dataset') == 'folder'
                                      and getattr(opt, name) is None):
                raise UserError(f'STUDENT {other}: a run with --{name} {value}, but {first} has {expected}; give runs '
                                f'on the same data')


def find_teacher(students):
    """(a student, the number of the teacher in its teachers(), its file). Raises UserError for no or several teachers.
    """
    teachers = {}       # checksum -> teacher
    for student in students:
        checksums = dict(enumerate(as_list(student.trusted_parameters.get('teacher (checksum)'))))
        for index, (file, _) in enumerate(student.teachers()):
            teachers.setdefault(str(checksums.get(index) or file), (student, index, file))
    if not teachers:
        raise UserError("--path-t: none of these students names its teacher; give a teacher's checkpoint")
    if len(teachers) > 1:
        raise UserError(f'--path-t: these students have several teachers, '
                        f'{", ".join(file for *_, file in teachers.values())}; give the one to compare with')
    return next(iter(teachers.values()))


def load_nets(opt, students, data, device):
    """The teacher and the students on the device. If the teacher is among the students, it is left out there."""
    if opt.teacher:
        student, index, file = opt.teacher
        name, _, teacher = student.open_teacher(index, data)
    else:
        file = opt.path_t
        name, checkpoint = open_net(file, opt.model_t)
        teacher = load_net(file, checkpoint, name, data)
    nets = [ComparedNet(f'{name} (teacher)', '--path-t', file, teacher)]
    by_file = {student.checkpoint.resolve(): student for student in students}
    by_file.pop(Path(file).resolve(), None)
    if not by_file:
        raise UserError(f'STUDENT {students[0]}: is the teacher; give one of its students')
    for student in by_file.values():
        arch, net = load_inference_net(str(student), data, 'STUDENT', checkpoint=student.state)
        name = name_net(arch, student.trusted_parameters, {other.name for other in nets})
        nets.append(ComparedNet(name, 'STUDENT', str(student), net))
    for net in nets:
        net.net.to(device).eval().requires_grad_(False)
    return nets


def name_net(arch, parameters, taken):
    """A student's name: its net and method, with its trial or a number if the name is taken."""
    name = arch
    if 'distill' in parameters:
        name = f'{parameters.get("model_s")} {parameters["distill"]}'
    elif 'model' in parameters:
        name = f'{parameters["model"]} alone'
    name, trial = (printable(text)[:LONGEST] for text in (name, parameters.get('trial')))
    names = [name, f'{name}, trial {trial}', *(f'{name} ({n})' for n in range(2, len(taken) + 3))]
    return next(text for text in names if text not in taken)


def select_images(data, opt):
    """figure -> numbers of the test images that it shows."""
    labels, generator = data.test_labels, torch.Generator().manual_seed(opt.seed)
    classes = torch.randperm(data.num_classes, generator=generator)[:opt.classes].sort().values
    order = torch.randperm(len(labels), generator=generator)
    firsts = [n for label in classes[:ROWS] for n in (labels == label).nonzero()[:1, 0].tolist()]
    if max(opt.images or [0]) >= len(labels):
        raise UserError(f'--images {max(opt.images)}: the test set of {opt.data.dataset} has the images 0 to '
                        f'{len(labels) - 1}')
    return {'cka': order[:opt.samples].tolist(),
            'tsne': order[torch.isin(labels[order], classes)][:opt.samples].tolist(), 'gradcam': opt.images or firsts}


def select_figures(comparison):
    """The figures of --only that these nets and images allow, in the order of DRAW; prints what is left out."""
    names = [name for name in DRAW if name in comparison.opt.only]
    of_stages = [name for name in names if name in NEEDED]
    without_stages = [net for net in comparison.students if not net.has_stages]
    for net in without_stages if of_stages else ():
        print(f'{net.name}: the network that it deploys has no stages, so it is not in {", ".join(of_stages)}')
    for name in of_stages:
        if name == 'cka' and len(without_stages) == len(comparison.students):
            names.remove(name)
        elif len(comparison.numbers[name]) < NEEDED[name]:
            print(f'{name}: left out, the selected classes have fewer than {NEEDED[name]} test images')
            names.remove(name)
    return names


def read_test_set(comparison, names):
    """Read what these figures need of the test set in one pass, and in a second one the images of `mistakes`."""
    loader, nets = comparison.data.test_loader, comparison.nets if {*names} - {*NEEDED} else []
    numbers = {n for name in names for n in comparison.numbers.get(name, ())}
    comparison.index, comparison.target, logits, comparison.images = metrics.read_test_set(
        loader, [net.net for net in nets], numbers)
    for net, values in zip(nets, logits, strict=True):
        net.logits = net.check(values)
    if 'mistakes' in names:
        for net in comparison.students:
            net.mistakes = metrics.surest_mistakes(net.logits, comparison.target, comparison.opt.mistakes)
        wrong = {*comparison.index[[row for net in comparison.students for row in net.mistakes]].tolist()}
        comparison.images |= metrics.read_test_set(loader, [], wrong - comparison.images.keys()).images


def main():
    opt, students = options()
    device = select_device(opt.gpu_id, only_check=True)
    data = get_dataloaders(opt.data, device, inputs=opt.inputs)
    teacher, *students = load_nets(opt, students, data, device)
    comparison = Comparison(teacher, students, data, opt, numbers=select_images(data, opt))
    names, folder = select_figures(comparison), Path(opt.output)
    make_folder(folder, f'--output {folder}')
    read_test_set(comparison, names)
    if 'mistakes' in names and not any(net.mistakes for net in comparison.students):
        print('mistakes: left out, the students get no test image wrong')
        names.remove('mistakes')
    for name in names:
        figure, numbers = DRAW[name](comparison)
        figures.save_figure(figure, folder / name)
        write_json(folder / f'{name}.json', numbers)
        print(f'{name}: {folder / name}.png, .svg, .json')


if __name__ == '__main__':
    run_main(main)
