"""Compare finished runs: a table, and a figure of their accuracy curves and of what the methods learnt.

python scripts/compare.py FOLDER [FOLDER ...] [--figure FILE.png] [--ari [--of METHOD] [--epoch best|last]]

FOLDER is that of a run, or one with runs somewhere below it, as save/TABLE. Runs that differ in nothing but --trial,
--seed and where they ran are one row: mean and standard deviation. Rows that only other options tell apart name these.
"top-1 %" is the best epoch's accuracy, chosen on the test set, which flatters every method; "last %" is that of the
last epoch. The published figure stands beside ours (analysis/published.csv) with its source and, where the source
names it, its epoch: of CIFAR-100 the SemCKD paper's, mean and deviation of 4 trials, else that of RepDistiller's tables
or of the method's own paper; of ImageNet that of the method's own paper.
"""
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from analysis.published import (  # noqa: E402
    Published,
    closed_gap,
    published_figures,
    published_improvement,
    read_table,
    relative_improvement,
)
from analysis.runs import (  # noqa: E402
    ACCURACY_KEYS,
    experiment_labels,
    find_run_folders,
    group_trials,
    published_key,
    read_run,
)  # noqa: E402
from distiller_zoo import get_method  # noqa: E402
from helper.cli import Parser, path, show, table  # noqa: E402
from helper.errors import UserError, printable, reason, run_main  # noqa: E402

FORMATS = ('.png', '.pdf', '.svg', '.jpg', '.webp')
FEWEST_CLASSES = 6      # for which the share of images whose class is among the first five says something


def with_deviation(accuracies: list[float], width: int = 0) -> str:
    """Mean and standard deviation. A single value is padded by `width`, the characters of a deviation."""
    spread = f' ± {stdev(accuracies):.2f}' if len(accuracies) > 1 else ' ' * width
    return f'{mean(accuracies):.2f}{spread}'


def as_published(figure: Published | None) -> str:
    """'76.23 ± 0.04 (SemCKD)', '73.58 (RepDistiller, last epoch)'."""
    if not figure:
        return ''
    spread = '' if figure.deviation is None else f' ± {figure.deviation:.2f}'
    epoch = '' if figure.epoch == 'unknown' else f', {figure.epoch} epoch'
    return f'{figure.top1:.2f}{spread} ({figure.source}{epoch})'


def compare_table(groups: list[list[dict]]) -> str:
    """The experiments as aligned text, with the columns that say something."""
    figures, rows = {group[0]['dataset']: published_figures(group[0]['dataset']) for group in groups}, []
    width = len(' ± 0.00') if any(len(group) > 1 for group in groups) else 0
    for group, label in zip(groups, experiment_labels(groups), strict=True):
        run = group[0]
        best, last = ([run[key] for run in group] for key in ACCURACY_KEYS.values())
        few = run['facts'].get('classes') in range(FEWEST_CLASSES)
        rows.append((run['dataset'], run['model'], label, f'{run["parameters"]:,}', str(len(group)),
                     with_deviation(best, width), with_deviation(last, width),
                     as_published(figures[run['dataset']].get(published_key(run))),
                     '' if few else f'{mean(run["top5"] for run in group):.2f}',
                     f'{mean(run["seconds"] for run in group):.0f}'))
    heads = ('data', 'model', 'trained', 'parameters', 'trials', 'top-1 %', 'last %', 'published', 'top-5 %', 'seconds')
    silent = {0: len({row[0] for row in rows}) == 1, 4: all(row[4] == '1' for row in rows),
              7: not any(row[7] for row in rows), 8: not any(row[8] for row in rows)}
    kept = [i for i in range(len(heads)) if not silent.get(i)]
    head, *rows = ([row[i] for i in kept] for row in (heads, *rows))
    return table(head, rows, ''.join('<<<>>>>>>>'[i] for i in kept))


def notes(groups: list[list[dict]]) -> Iterator[str]:
    """A line for each experiment with a net that predicts one class for all test images."""
    for group, label in zip(groups, experiment_labels(groups), strict=True):
        counts = {epoch: sum(run['one_class'][epoch] for run in group) for epoch in ACCURACY_KEYS}
        if any(counts.values()):
            said = ', '.join(f'{number} in the {epoch} epoch' for epoch, number in counts.items())
            yield (f'{group[0]["model"]}, {label}: of {len(group)} runs {said} predict one class for all test images; '
                   f'such an accuracy is only the share of that class')


def improvement_table(groups: list[list[dict]], ours: str, epoch: str = 'best') -> str:
    """The improvement of the method `ours` over each other one in these experiments, and the published one.

    epoch: of the accuracies, 'best' or 'last'. Raises UserError if there is none.
    """
    datasets, top1 = {group[0]['dataset'] for group in groups}, {}
    if len(datasets) > 1:
        raise UserError('--ari: these runs are of several data sets; give those of one')
    for group, label in zip(groups, experiment_labels(groups), strict=True):
        name = published_key(group[0])
        if name in top1:
            raise UserError(f'--ari: {name[1]}, {label}, and another with other options; give the runs of one of them')
        top1[name] = mean(run[ACCURACY_KEYS[epoch]] for run in group)
    found = relative_improvement(top1, ours)
    if not any(improvement.pairs for improvement in found.values()):
        raise UserError(f'--ari: it needs runs of {ours} and of another method for the same pair of nets, and of the '
                        'student alone (train_teacher.py --model STUDENT), which is worse than that method')
    theirs = published_improvement(ours, epoch) if datasets == {'cifar100'} else {}
    rows = [(method, '' if improvement.percent is None else f'{improvement.percent:.2f}', str(improvement.pairs),
             theirs.get(method, '')) for method, improvement in found.items()]
    gap = closed_gap(top1, ours)
    if gap:
        rows.append(('gap to the teacher closed', f'{gap[0]:.2f}', str(gap[1]), theirs.get('teacher', '')))
    left_out = [f'{method} is not better than the student alone, so this pair does not count: {teacher} -> {student}'
                for method, improvement in found.items() for teacher, student in improvement.left_out]
    heads = f'{get_method(ours).spec.title} over', 'ARI %', 'pairs', 'published'
    return '\n'.join([table(heads, rows, '<>>>'), *left_out])


def figure(groups: list[list[dict]]):
    """Test accuracy by epoch, and the matrices that methods learnt: of each experiment the mean of all trials."""
    from matplotlib.figure import Figure

    from analysis.figures import integer_ticks, wrap_text
    named = [(f'{group[0]["model"]} {label}', group)
             for group, label in zip(groups, experiment_labels(groups), strict=True)]
    learnt = [(f'{picture.capitalize()} of {name}', [run['pictures'][picture] for run in group])
              for name, group in named for picture in group[0]['pictures']
              if len({str([len(row) for row in run['pictures'].get(picture, [])]) for run in group}) == 1]
    fig = Figure((6 + 4 * len(learnt), 4 + 0.2 * len(named)), layout='constrained')
    curves, *maps = fig.subplots(1, 1 + len(learnt), squeeze=False)[0]
    for name, group in named:
        epochs = list(zip(*(run['curve'] for run in group)))        # noqa: B905, as many as all have
        numbers = range(1, len(epochs) + 1)
        curves.plot(numbers, [mean(values) for values in epochs], marker='o', markersize=3, label=name)
        curves.fill_between(numbers, [min(values) for values in epochs], [max(values) for values in epochs], alpha=0.2)
    curves.set(xlabel='epoch', ylabel='test top-1 (%)', title='Accuracy')
    integer_ticks(curves.xaxis)
    fig.legend(loc='outside lower left')        # below the curves, which it must not hide
    curves.grid(alpha=0.3)
    for axis, (title, matrices) in zip(maps, learnt, strict=True):
        average = [[mean(values) for values in zip(*rows, strict=True)] for rows in zip(*matrices, strict=True)]
        image = axis.imshow(average, vmin=0, vmax=1, cmap='viridis')
        for i, row in enumerate(average):
            for j, value in enumerate(row):
                axis.text(j, i, f'{value:.2f}', ha='center', va='center', color='white' if value < 0.6 else 'black')
        axis.set(xlabel='teacher stage', ylabel='student stage', title=wrap_text(title, 3.5),
                 xticks=range(len(average[0])), yticks=range(len(average)))
        axis.set_xticklabels(range(1, len(average[0]) + 1))
        axis.set_yticklabels(range(1, len(average) + 1))
        fig.colorbar(image, ax=axis, shrink=0.8)
    return fig


def save(fig, path: Path) -> None:
    """Write the figure in the format of the file's extension."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'--figure {path}: {reason(error)}') from error


def main():
    parser = Parser(description='Compare finished runs.')
    parser.add_argument('runs', nargs='+', type=path, metavar='FOLDER',
                        help='a run folder, or a folder with run folders in it')
    parser.add_argument('--figure', type=path, help=f'where to write the picture, NAME{" or ".join(FORMATS)}')
    headline = read_table('published_ari.csv')[0]['of']
    parser.add_argument('--ari', action='store_true', help='the average relative improvement over each method')
    parser.add_argument('--of', metavar='METHOD', help=f'the method whose improvement --ari shows; else {headline}')
    parser.add_argument('--epoch', choices=ACCURACY_KEYS,
                        help='the epoch of the accuracies that --ari compares; not given: best')
    opt = parser.parse_args()
    get_method(opt.of or headline, '--of')
    if opt.of and not opt.ari:
        raise UserError(f'--of {opt.of}: says of which method --ari is; add --ari')
    if opt.epoch and not opt.ari:
        raise UserError(f'--epoch {opt.epoch}: is the epoch that --ari compares; add --ari')
    if opt.figure and Path(opt.figure).suffix.lower() not in FORMATS:
        raise UserError(f'--figure {opt.figure}: give the name of a file that ends in {", ".join(FORMATS)}')
    runs, left_out = [], []
    folders = [run for folder in opt.runs for run in find_run_folders(folder) or [folder]]
    for folder in {Path(folder).resolve(): folder for folder in folders}.values():       # each once
        try:
            runs.append(read_run(folder))
        except UserError as error:      # a fetched teacher, an unfinished run
            left_out.append(error)
    if not runs:
        raise left_out[0]
    for error in left_out:
        print(f'left out: {printable(error)}', file=sys.stderr)
    groups = group_trials(runs)
    for group in groups:
        if len({run['seed'] for run in group}) < len(group):
            print(f'note: {group[0]["model"]}, {group[0]["method"]}: trials with the same seed repeat each other',
                  file=sys.stderr)
    show(compare_table(groups))
    for note in notes(groups):
        print(note)
    if opt.ari:
        show(f'\n{improvement_table(groups, opt.of or headline, opt.epoch or "best")}')
    if opt.figure:
        save(figure(groups), Path(opt.figure))
        print(f'\nfigure: {opt.figure}')


if __name__ == '__main__':
    run_main(main)
