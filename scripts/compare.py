"""Compare finished runs in a table, and in a figure of their accuracy curves and of the matrices that methods learnt.

python scripts/compare.py FOLDER [FOLDER ...] [--figure FILE.png] [--ari [--of METHOD] [--epoch best|last]]

FOLDER is a run folder, or a folder that contains run folders, such as save/TABLE. Runs that differ only in --trial,
--seed and the machine form one row, with mean and standard deviation. Rows with the same nets and method name the
options in which they differ. "top-1 %" is the test accuracy of the best epoch, "last %" of the last epoch. A line
says on which set the best epoch was chosen; on the test set, its accuracy is optimistic. The published accuracies
(analysis/published.csv) are shown with their source and, if known, their epoch: for CIFAR-100 from the SemCKD paper,
mean and deviation of 4 trials, else from RepDistiller or the method's paper; for ImageNet from the method's paper. A
second table has, for the best epoch, the means over the classes and the classes with the lowest accuracy.
"""
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from analysis import classes, published, runs
from distiller_zoo import get_method
from helper.cli import Parser, path, show, table
from helper.errors import UserError, printable, reason, run_main

FORMATS = ('.png', '.pdf', '.svg', '.jpg', '.webp')
FEWEST_CLASSES = 6      # with fewer, top-5 says nothing


def format_mean(accuracies: list[float], width: int = 0) -> str:
    """Mean and standard deviation. width: of the padding that replaces the deviation of a single value."""
    deviation = f' ± {stdev(accuracies):.2f}' if len(accuracies) > 1 else ' ' * width
    return f'{mean(accuracies):.2f}{deviation}'


def format_published(figure: published.Published | None) -> str:
    """'76.23 ± 0.04 (SemCKD)', '73.58 (RepDistiller, last epoch)'."""
    if not figure:
        return ''
    deviation = '' if figure.deviation is None else f' ± {figure.deviation:.2f}'
    epoch = '' if figure.epoch == 'unknown' else f', {figure.epoch} epoch'
    return f'{figure.top1:.2f}{deviation} ({figure.source}{epoch})'


def compare_table(groups: list[list[dict]]) -> str:
    """The experiments as aligned text, without columns that are empty or the same in all rows."""
    width = len(' ± 0.00') if any(len(group) > 1 for group in groups) else 0
    rows = []
    for group, label in zip(groups, runs.experiment_labels(groups), strict=True):
        run = group[0]
        has_few_classes = run['properties'].get('classes') in range(FEWEST_CLASSES)
        rows.append({
            'data': run['dataset'], 'model': run['model'], 'trained': label, 'parameters': f'{run["parameters"]:,}',
            'trials': str(len(group)),
            'top-1 %': format_mean([run['top1'] for run in group], width),
            'last %': format_mean([run['last'] for run in group], width),
            'published': format_published(published.published_figures(run['dataset']).get(runs.published_key(run))),
            'top-5 %': '' if has_few_classes else f'{mean(run["top5"] for run in group):.2f}',
            'seconds': f'{mean(run["seconds"] for run in group):.0f}'})
    values = {head: {row[head] for row in rows} for head in rows[0]}
    hidden = {head for head in ('published', 'top-5 %') if values[head] == {''}} | \
        ({'data'} if len(values['data']) == 1 else set()) | ({'trials'} if values['trials'] == {'1'} else set())
    heads = [head for head in values if head not in hidden]
    alignment = ''.join('<' if head in ('data', 'model', 'trained') else '>' for head in heads)
    return table(heads, [[row[head] for head in heads] for row in rows], alignment)


def class_table(groups: list[list[dict]]) -> str:
    """The means over the classes in the best epoch, and the worst classes; '' if no experiment's runs have them all."""
    rows = []
    for group, label in zip(groups, runs.experiment_labels(groups), strict=True):
        if report := classes.mean_report([run['class_report'] for run in group]):
            means = [classes.two_digits(report[key]) for key in classes.MEANS]
            rows.append((group[0]['dataset'], group[0]['model'], label, *means, classes.worst_text(report['classes'])))
    heads = 'data', 'model', 'trained', *(f'{name} %' for name in classes.MEANS.values()), 'worst classes'
    first = 1 if len({row[0] for row in rows}) == 1 else 0      # the data are shown if they differ
    return table(heads[first:], [row[first:] for row in rows], '<<<>>><'[first:]) if rows else ''


def one_class_notes(groups: list[list[dict]]) -> Iterator[str]:
    """A line for each experiment with a net that predicts one class for all images that chose its epoch."""
    for group, label in zip(groups, runs.experiment_labels(groups), strict=True):
        counts = {epoch: sum(run['one_class'][epoch] for run in group) for epoch in runs.ACCURACY_KEYS}
        if any(counts.values()):
            text = ', '.join(f'{number} in the {epoch} epoch' for epoch, number in counts.items())
            yield (f'{group[0]["model"]}, {label}: of {len(group)} runs {text} predict one class for all images; '
                   f'such an accuracy is only the share of that class')


def selection_note(groups: list[list[dict]]) -> str:
    """A line that says on which set the best epochs were chosen."""
    which = runs.chosen_on(run for group in groups for run in group)
    advice = {'test': ', so their accuracies are optimistic: compare the last epochs', 'validation': ''}.get(
        which, '; on the test set, accuracies are optimistic')
    return f'best epochs are chosen on the {which} set{advice}'


def improvement_table(groups: list[list[dict]], ours: str, epoch: str = 'best') -> str:
    """The improvement of the method `ours` over each other one, and the published one. Raises UserError without any."""
    datasets, top1 = {group[0]['dataset'] for group in groups}, {}
    if len(datasets) > 1:
        raise UserError('--ari: these runs are on several data sets; give runs on one of them')
    for group, label in zip(groups, runs.experiment_labels(groups), strict=True):
        key = runs.published_key(group[0])
        if key in top1:
            raise UserError(f'--ari: {key[1]}, {label}, and another with other options; give the runs of one of them')
        top1[key] = mean(run[runs.ACCURACY_KEYS[epoch]] for run in group)
    improvements = published.relative_improvement(top1, ours)
    if not any(improvement.pairs for improvement in improvements.values()):
        raise UserError(f'--ari: it needs runs of {ours} and of another method for the same pair of nets, and of the '
                        'student alone (train_teacher.py --model STUDENT), which is worse than that method')
    theirs = published.published_improvement(ours, epoch) if datasets == {'cifar100'} else {}
    rows = [(method, '' if improvement.percent is None else f'{improvement.percent:.2f}', str(improvement.pairs),
             theirs.get(method, '')) for method, improvement in improvements.items()]
    if gap := published.closed_gap(top1, ours):
        rows.append(('gap to the teacher closed', f'{gap[0]:.2f}', str(gap[1]), theirs.get('teacher', '')))
    left_out = [f'{method} is not better than the student alone, so this pair does not count: {teacher} -> {student}'
                for method, improvement in improvements.items() for teacher, student in improvement.left_out]
    heads = f'{get_method(ours).spec.title} over', 'ARI %', 'pairs', 'published'
    return '\n'.join([table(heads, rows, '<>>>'), *left_out])


def draw_figure(groups: list[list[dict]]):
    """Test accuracy by epoch, and the matrices that methods learnt; of each experiment the mean over its trials."""
    import numpy as np
    from matplotlib.figure import Figure

    from analysis.figures import draw_matrix, integer_ticks, wrap_text
    named = [(f'{group[0]["model"]} {label}', group)
             for group, label in zip(groups, runs.experiment_labels(groups), strict=True)]
    learnt = [(f'{name.capitalize()} of {experiment}', [run['pictures'][name] for run in group])
              for experiment, group in named for name in group[0]['pictures']
              if len({np.shape(run['pictures'].get(name, [])) for run in group}) == 1]
    fig = Figure((6 + 4 * len(learnt), 4 + 0.2 * len(named)), layout='constrained')
    curve_axis, *matrix_axes = fig.subplots(1, 1 + len(learnt), squeeze=False)[0]
    for name, group in named:
        epochs = min(len(run['curve']) for run in group)
        curves, numbers = np.array([run['curve'][:epochs] for run in group]), range(1, epochs + 1)
        curve_axis.plot(numbers, curves.mean(0), marker='o', markersize=3, label=name)
        curve_axis.fill_between(numbers, curves.min(0), curves.max(0), alpha=0.2)
    which = runs.chosen_on(run for group in groups for run in group)
    curve_axis.set(xlabel='epoch', ylabel=f'{which} top-1 (%)', title='Accuracy')
    integer_ticks(curve_axis.xaxis)
    curve_axis.grid(alpha=0.3)
    fig.legend(loc='outside lower left')        # outside, so that it hides no curve
    for axis, (title, matrices) in zip(matrix_axes, learnt, strict=True):
        average = np.mean(matrices, axis=0)
        image = draw_matrix(axis, average, *(range(1, count + 1) for count in average.shape))
        axis.set(xlabel='teacher stage', ylabel='student stage', title=wrap_text(title, 3.5))
        fig.colorbar(image, ax=axis, shrink=0.8)
    return fig


def save_figure(fig, file: Path) -> None:
    """Write the figure in the format of the file's extension. Raises UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(file, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'--figure {file}: {reason(error)}') from error


def read_runs(folders: list[str]) -> list[dict]:
    """The runs in these folders, each once; prints those that cannot be read. Raises UserError if none can."""
    finished, errors = [], []
    run_folders = [run for folder in folders for run in runs.find_run_folders(folder) or [folder]]
    for folder in {Path(folder).resolve(): folder for folder in run_folders}.values():
        try:
            finished.append(runs.read_run(folder))
        except UserError as error:      # for example a downloaded teacher or an unfinished run
            errors.append(error)
    if not finished:
        raise errors[0]
    untested = [error for error in errors if isinstance(error, runs.UntestedRun)]
    for error in errors if len(untested) < 2 else [error for error in errors if error not in untested]:
        print(f'left out: {printable(error)}', file=sys.stderr)
    if len(untested) > 1:
        print(f'left out: {len(untested)} runs with --no_test, which have no figures of the test set', file=sys.stderr)
    return finished


def main():
    headline = published.read_table('published_ari.csv')[0]['of']
    parser = Parser(description='Compare finished runs.')
    parser.add_argument('runs', nargs='+', type=path, metavar='FOLDER',
                        help='a run folder, or a folder that contains run folders')
    parser.add_argument('--figure', type=path, help=f'draw a figure into the file NAME{" or ".join(FORMATS)}')
    parser.add_argument('--ari', action='store_true', help='show the average relative improvement over each method')
    parser.add_argument('--of', metavar='METHOD',
                        help=f'the method whose improvement --ari shows; if omitted, {headline}')
    parser.add_argument('--epoch', choices=runs.ACCURACY_KEYS, help='the epoch that --ari compares; if omitted, best')
    opt = parser.parse_args()
    get_method(opt.of or headline, '--of')
    for name in ('of', 'epoch'):
        if getattr(opt, name) and not opt.ari:
            raise UserError(f'--{name} {getattr(opt, name)}: has no effect without --ari; add --ari')
    if opt.figure and Path(opt.figure).suffix.lower() not in FORMATS:
        raise UserError(f'--figure {opt.figure}: give a file name that ends in {", ".join(FORMATS)}')
    groups = runs.group_trials(read_runs(opt.runs))
    for group in groups:
        if len({run['seed'] for run in group}) < len(group):
            print(f'note: {group[0]["model"]}, {group[0]["method"]}: trials with the same seed repeat each other',
                  file=sys.stderr)
    show(compare_table(groups))
    print(selection_note(groups))
    if text := class_table(groups):
        show(f'\n{text}')
    for note in one_class_notes(groups):
        print(note)
    if opt.ari:
        show(f'\n{improvement_table(groups, opt.of or headline, opt.epoch or "best")}')
    if opt.figure:
        save_figure(draw_figure(groups), Path(opt.figure))
        print(f'\nfigure: {opt.figure}')


if __name__ == '__main__':
    run_main(main)
