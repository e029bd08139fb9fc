"""Compare finished runs: a table, and a figure of their accuracy curves and of SemCKD's attention.

python scripts/compare.py RUN_FOLDER [RUN_FOLDER ...] [--figure FILE.png]
"""
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from helper.arguments import Parser  # noqa: E402
from helper.errors import UserError, run_main  # noqa: E402
from helper.text import table  # noqa: E402


def read_run(folder: str) -> dict:
    """What the table and the figure need of one run. Raises UserError for a folder that holds none."""
    try:
        parameters, best, history = (json.loads((Path(folder) / name).read_text())
                                     for name in ('parameters.json', 'test_best_metrics.json', 'history.json'))
        student = 'model_s' in parameters
        return {
            'model': parameters['model_s' if student else 'model'],
            'method': f'{parameters["distill"]}, taught by {parameters["model_t"]}' if student else 'alone',
            'parameters': round(parameters['Total params'] * 1e6),
            'top1': best['test_acc'], 'top5': best['test_acc_top5'],
            'seconds': parameters['Total time'] * (3600 if student else 1),
            'curve': [epoch['test_acc'] for epoch in history],
            'attention': history[-1].get('attention'),
        }
    except OSError as error:
        raise UserError(f'{folder}: {error.strerror} ({Path(error.filename).name}); give the folder of a run, '
                        f'as save/models/NAME or save/student_model/NAME') from error
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise UserError(f'{folder}: its JSON files are not those of a run ({error})') from error


def compare_table(runs: list[dict]) -> str:
    """The runs as aligned text."""
    rows = [(run['model'], run['method'], f'{run["parameters"]:,}', f'{run["top1"]:.2f}', f'{run["top5"]:.2f}',
             f'{run["seconds"]:.0f}') for run in runs]
    return table(('model', 'trained', 'parameters', 'top-1 %', 'top-5 %', 'seconds'), rows, '<<>>>>')


def figure(runs: list[dict], path: Path) -> None:
    """Test accuracy by epoch, and beside it the mean attention of each run that learnt one."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    attentive = [run for run in runs if run['attention']]
    fig, axes = plt.subplots(1, 1 + len(attentive), figsize=(6 + 4 * len(attentive), 4), squeeze=False,
                             layout='constrained')
    curves, *maps = axes[0]
    for run in runs:
        curves.plot(range(1, len(run['curve']) + 1), run['curve'], marker='o', markersize=3,
                    label=f'{run["model"]} {run["method"]}')
    curves.set(xlabel='epoch', ylabel='test top-1 (%)', title='Accuracy')
    curves.legend()
    curves.grid(alpha=0.3)
    for axis, run in zip(maps, attentive, strict=True):
        attention = run['attention']
        image = axis.imshow(attention, vmin=0, vmax=1, cmap='viridis')
        for i, row in enumerate(attention):
            for j, value in enumerate(row):
                axis.text(j, i, f'{value:.2f}', ha='center', va='center', color='white' if value < 0.6 else 'black')
        axis.set(xlabel='teacher stage', ylabel='student stage', title=f'Attention of {run["model"]}, {run["method"]}',
                 xticks=range(len(attention[0])), yticks=range(len(attention)))
        axis.set_xticklabels(range(1, len(attention[0]) + 1))
        axis.set_yticklabels(range(1, len(attention) + 1))
        fig.colorbar(image, ax=axis, shrink=0.8)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fig.savefig(path, dpi=120)
    except (OSError, ValueError) as error:
        raise UserError(f'--figure {path}: {" ".join(str(error).split())}') from error


def main():
    parser = Parser(description='Compare finished runs.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='folder that a train script wrote')
    parser.add_argument('--figure', type=Path, help='where to write the picture')
    opt = parser.parse_args()
    runs, left_out = [], []
    for folder in opt.runs:
        try:
            runs.append(read_run(folder))
        except UserError as error:      # a fetched teacher, an unfinished run
            left_out.append(error)
    if not runs:
        raise left_out[0]
    for error in left_out:
        print(f'left out: {error}', file=sys.stderr)
    print(compare_table(runs))
    if opt.figure:
        figure(runs, opt.figure)
        print(f'\nfigure: {opt.figure}')


if __name__ == '__main__':
    run_main(main)
