"""Compare finished runs: a table, and a figure of their accuracy curves and of SemCKD's attention.

python scripts/compare.py RUN_FOLDER [RUN_FOLDER ...] [--figure FILE.png] [--ari]

Runs that differ in nothing but --trial, --seed and where they ran are one row: mean and standard deviation. Rows that
only other options tell apart name these. On CIFAR-100 the published figure stands beside ours (scripts/published.csv):
the SemCKD paper's, mean and deviation of 4 trials, and where it has none that of RepDistiller's tables.
"""
import csv
import math
import os
import re
import sys
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helper.arguments import Parser, path  # noqa: E402
from helper.errors import UserError, printable, reason, run_main  # noqa: E402
from helper.files import read_json  # noqa: E402
from helper.resume import FREE  # noqa: E402
from helper.text import table  # noqa: E402

OF_A_TRIAL = FREE - {'epochs'} | {'Total time'}     # what may differ between trials of one experiment

# SemCKD over each, in percent, as the paper's last column has it: the mean over its seven pairs of nets.
PUBLISHED_ARI = {'kd': 72.65, 'hint': 71.92, 'attention': 75.21, 'similarity': 64.95, 'vid': 64.11, 'hkd': 61.23}
PUBLISHED_GAP = 68.34       # the teacher's figure in that column
FORMATS = ('.png', '.pdf', '.svg', '.jpg', '.webp')


def read_run(folder: str) -> dict:
    """What the table and the figure need of one run. Raises UserError for a folder that holds none."""
    if not os.path.isfile(Path(folder) / 'history.json'):
        raise UserError(f'{folder}: holds no history.json; give the folder of a run, as save/models/NAME or '
                        f'save/student_model/NAME')
    parameters, best, history = (read_json(Path(folder) / name, f'{folder}: {name}')
                                 for name in ('parameters.json', 'test_best_metrics.json', 'history.json'))
    try:
        if parameters.get('Total time') is None:
            raise UserError(f'{folder}: not finished; train on with --resume auto')
        if any(isinstance(item, (dict, list)) for value in parameters.values() if isinstance(value, (dict, list))
               for item in value):
            raise ValueError('an option is nested')
        student, attention = 'model_s' in parameters, matrix(history[-1].get('attention'))
        return {
            'experiment': {name: value for name, value in parameters.items()
                           if name not in OF_A_TRIAL and value is not None} | (
                {'data_dir': str(Path(parameters['data_dir']))} if parameters['dataset'] == 'folder' else {}),
            'seed': parameters.get('seed'),
            'dataset': printable(parameters['dataset']),
            'model': printable(parameters['model_s' if student else 'model']),
            'teacher': printable(first_teacher(parameters)) if student else '',
            'distill': printable(parameters['distill']) if student else 'alone',
            'method': printable(f'{parameters["distill"]}, taught by {parameters["model_t"]}') if student else 'alone',
            'parameters': round(parameters['Total params'] * 1e6),
            'top1': finite(best['test_acc']), 'top5': finite(best['test_acc_top5']),
            'seconds': finite(parameters['Total time']) * (3600 if student else 1),
            'curve': [finite(epoch['test_acc']) for epoch in history],
            'attention': attention,
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f'{folder}: its JSON files are not those of a run ({reason(error)})') from error


def finite(number) -> float:
    if not math.isfinite(number):
        raise ValueError(f'a figure is {number}')
    return float(number)


def matrix(rows):
    """A list of equally long lists of figures, or None. Raises ValueError for other values."""
    if rows is None:
        return None
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError('the attention is no matrix')
    return [[finite(value) for value in row] for row in rows]


def first_teacher(parameters: dict) -> str:
    """The teacher by which published tables name a run: for HKD, the one that taught the auxiliary teacher."""
    data = re.escape(parameters['dataset'])
    taught = re.match(rf'S[:~].+_T[:~](.+?)_{data}_', Path(parameters['path_t']).parent.name)
    return taught[1] if taught and parameters['distill'] == 'hkd' else parameters['model_t']


def trials(runs: list[dict]) -> list[list[dict]]:
    """The runs, those of one experiment together."""
    found = []
    for run in runs:
        alike = [group for group in found if group[0]['experiment'] == run['experiment']]
        if alike:
            alike[0].append(run)
        else:
            found.append([run])
    return found


def published() -> dict[tuple, tuple]:
    """(teacher or '', student, method or 'alone') -> (top-1 in percent, its standard deviation or None, source)."""
    figures = {}
    with open(Path(__file__).with_name('published.csv'), newline='') as file:
        for row in csv.DictReader(file):
            name = row['teacher'], row['student'], row['method']
            figures.setdefault(name, (float(row['top1']), float(row['std']) if row['std'] else None, row['source']))
    return figures


def identity(run: dict) -> tuple:
    """How published() names what a run trained."""
    return run['teacher'], run['model'], run['distill']


def with_deviation(top1: float, deviation: float | None, width: int = 0) -> str:
    """The two figures; without a deviation, as wide as with one of `width` characters."""
    return f'{top1:.2f}' + (' ' * width if deviation is None else f' ± {deviation:.2f}')


def labels(groups: list[list[dict]]) -> list[str]:
    """How each experiment was trained, with the options that tell it from another of the same nets and method."""
    found = []
    for group in groups:
        run = group[0]
        like = [other[0]['experiment'] for other in groups
                if all(other[0][key] == run[key] for key in ('dataset', 'model', 'teacher', 'method'))]
        names = sorted({name for other in like for name in other})
        found.append(', '.join([run['method'], *(printable(f'{name} {run["experiment"].get(name)}') for name in names
                                                 if any(other.get(name) != like[0].get(name) for other in like))]))
    return found


def compare_table(groups: list[list[dict]]) -> str:
    """The experiments as aligned text, with the columns that say something."""
    figures, rows = published(), []
    width = len(' ± 0.00') if any(len(group) > 1 for group in groups) else 0
    for group, label in zip(groups, labels(groups), strict=True):
        run, top1 = group[0], [run['top1'] for run in group]
        figure = figures.get(identity(run)) if run['dataset'] == 'cifar100' else None
        rows.append((run['dataset'], run['model'], label, f'{run["parameters"]:,}', str(len(group)),
                     with_deviation(mean(top1), stdev(top1) if len(top1) > 1 else None, width),
                     f'{with_deviation(*figure[:2])} ({figure[2]})' if figure else '',
                     f'{mean(run["top5"] for run in group):.2f}', f'{mean(run["seconds"] for run in group):.0f}'))
    heads = ('data', 'model', 'trained', 'parameters', 'trials', 'top-1 %', 'published', 'top-5 %', 'seconds')
    silent = {0: len({row[0] for row in rows}) == 1, 4: all(row[4] == '1' for row in rows),
              6: not any(row[6] for row in rows)}
    kept = [i for i in range(len(heads)) if not silent.get(i)]
    head, *rows = ([row[i] for i in kept] for row in (heads, *rows))
    return table(head, rows, ''.join('<<<>>>>>>'[i] for i in kept))


def relative_improvement(top1: dict[tuple, float]) -> dict[str, tuple[float, int]]:
    """method -> (average relative improvement of SemCKD over it in percent, over how many pairs of nets).

    (SemCKD - method) / (method - student alone), the mean over all pairs for which `top1` has the three.
    Chen et al., AAAI 2021, arXiv 2012.03236.
    """
    found = {}
    for (teacher, student, method), other in top1.items():
        semckd, alone = top1.get((teacher, student, 'semckd')), top1.get(('', student, 'alone'))
        if method not in ('semckd', 'alone') and None not in (semckd, alone) and other != alone:
            found.setdefault(method, []).append((semckd - other) / (other - alone) * 100)
    return {method: (mean(values), len(values)) for method, values in found.items()}


def closed_gap(top1: dict[tuple, float]) -> tuple[float, int] | None:
    """(how much of the gap from students alone to their teachers SemCKD closes, in percent, over how many pairs).

    The sum of all improvements over the sum of all gaps. The paper does not define its figure for the teacher, 68.34;
    this reading comes nearest: 68.47 from its rounded table.
    """
    pairs = [(semckd, top1.get(('', student, 'alone')), top1.get(('', teacher, 'alone')))
             for (teacher, student, method), semckd in top1.items() if method == 'semckd']
    pairs = [pair for pair in pairs if None not in pair]
    gap = sum(teacher - alone for _, alone, teacher in pairs)
    return (sum(semckd - alone for semckd, alone, _ in pairs) / gap * 100, len(pairs)) if gap else None


def improvement_table(groups: list[list[dict]]) -> str:
    """SemCKD's improvement over each method in these experiments, and the published one.

    Raises UserError where they have none.
    """
    datasets, top1 = {group[0]['dataset'] for group in groups}, {}
    if len(datasets) > 1:
        raise UserError('--ari: these runs are of several data sets; give those of one')
    for group, label in zip(groups, labels(groups), strict=True):
        name = identity(group[0])
        if name in top1:
            raise UserError(f'--ari: {name[1]}, {label}, and another with other options; give the runs of one of them')
        top1[name] = mean(run['top1'] for run in group)
    ours = relative_improvement(top1)
    if not ours:
        raise UserError('--ari: it needs runs of semckd and of another method for the same pair of nets, and of the '
                        'student alone (train_teacher.py --model STUDENT), which is not exactly as good as that method')
    theirs = PUBLISHED_ARI if datasets == {'cifar100'} else {}
    rows = [(method, f'{percent:.2f}', str(pairs), f'{theirs[method]:.2f}' if method in theirs else '')
            for method, (percent, pairs) in ours.items()]
    gap = closed_gap(top1)
    if gap:
        published = f'{PUBLISHED_GAP:.2f}' if theirs else ''
        rows.append(('gap to the teacher closed', f'{gap[0]:.2f}', str(gap[1]), published))
    return table(('SemCKD over', 'ARI %', 'pairs', 'published'), rows, '<>>>')


def figure(groups: list[list[dict]], path: Path) -> None:
    """Test accuracy by epoch, and the attention that was learnt: of each experiment the mean of all trials."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    named = [(f'{group[0]["model"]} {label}', group) for group, label in zip(groups, labels(groups), strict=True)]
    attentive = [(name, group) for name, group in named if all(run['attention'] for run in group)]
    fig, axes = plt.subplots(1, 1 + len(attentive), figsize=(6 + 4 * len(attentive), 4), squeeze=False,
                             layout='constrained')
    curves, *maps = axes[0]
    for name, group in named:
        epochs = list(zip(*(run['curve'] for run in group)))        # noqa: B905, as many as all have
        numbers = range(1, len(epochs) + 1)
        curves.plot(numbers, [mean(values) for values in epochs], marker='o', markersize=3, label=name)
        curves.fill_between(numbers, [min(values) for values in epochs], [max(values) for values in epochs], alpha=0.2)
    curves.set(xlabel='epoch', ylabel='test top-1 (%)', title='Accuracy')
    curves.xaxis.get_major_locator().set_params(integer=True)
    curves.legend()
    curves.grid(alpha=0.3)
    for axis, (name, group) in zip(maps, attentive, strict=True):
        attention = [[mean(values) for values in zip(*rows, strict=True)]
                     for rows in zip(*(run['attention'] for run in group), strict=True)]
        image = axis.imshow(attention, vmin=0, vmax=1, cmap='viridis')
        for i, row in enumerate(attention):
            for j, value in enumerate(row):
                axis.text(j, i, f'{value:.2f}', ha='center', va='center', color='white' if value < 0.6 else 'black')
        axis.set(xlabel='teacher stage', ylabel='student stage', title=f'Attention of {name}',
                 xticks=range(len(attention[0])), yticks=range(len(attention)))
        axis.set_xticklabels(range(1, len(attention[0]) + 1))
        axis.set_yticklabels(range(1, len(attention) + 1))
        fig.colorbar(image, ax=axis, shrink=0.8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'--figure {path}: {" ".join(str(error).split())}') from error


def show(text: str) -> None:
    """Print, with +- where the terminal has no ±."""
    try:
        '±'.encode(sys.stdout.encoding or 'utf-8')
    except UnicodeEncodeError:
        text = text.replace('±', '+-')
    print(text)


def main():
    parser = Parser(description='Compare finished runs.')
    parser.add_argument('runs', nargs='+', type=path, metavar='RUN', help='folder that a train script wrote')
    parser.add_argument('--figure', type=path, help=f'where to write the picture, NAME{" or ".join(FORMATS)}')
    parser.add_argument('--ari', action='store_true', help="SemCKD's average relative improvement over each method")
    opt = parser.parse_args()
    if opt.figure and Path(opt.figure).suffix.lower() not in FORMATS:
        raise UserError(f'--figure {opt.figure}: give the name of a file that ends in {", ".join(FORMATS)}')
    runs, left_out = [], []
    for folder in {Path(folder).resolve(): folder for folder in opt.runs}.values():      # each once
        try:
            runs.append(read_run(folder))
        except UserError as error:      # a fetched teacher, an unfinished run
            left_out.append(error)
    if not runs:
        raise left_out[0]
    for error in left_out:
        print(f'left out: {printable(error)}', file=sys.stderr)
    groups = trials(runs)
    for group in groups:
        if len({run['seed'] for run in group}) < len(group):
            print(f'note: {group[0]["model"]}, {group[0]["method"]}: trials with the same seed repeat each other',
                  file=sys.stderr)
    show(compare_table(groups))
    if opt.ari:
        show(f'\n{improvement_table(groups)}')
    if opt.figure:
        figure(groups, Path(opt.figure))
        print(f'\nfigure: {opt.figure}')


if __name__ == '__main__':
    run_main(main)
