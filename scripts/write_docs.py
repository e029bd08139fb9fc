"""Write the parts of README.md, docs/ and run_cifar_distill.sh that repeat the declarations of the methods.

python scripts/write_docs.py                # after a method was added or its `spec` changed
python scripts/write_docs.py --check        # change nothing; exit code 1 and a line for each file that is out of date
"""
import re
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))
from distiller_zoo import SOFT_LABELS, distiller_dict, get_method
from helper.cli import Parser, comma_list
from helper.errors import UserError, run_main
from options import student_options

WEIGHTS = ('gamma', 'alpha', 'beta')
RESULTS_COLUMNS = 4     # methods side by side in the README's table


def published_options(method: str, dataset: str) -> dict:
    """option -> the value of a run without flags."""
    opt = student_options(['--path-t', 'x', '--distill', method, '--dataset', dataset])
    return get_method(method).published_options(opt)


def weights_and_flags(options: dict, usual: dict) -> tuple[str, str]:
    """('1, 0, 2', '`--kd_T 1`'): the weights, and a flag for each other option whose value is not that in `usual`."""
    flags = [f'`--{name} {comma_list(value).removesuffix(".0")}`' for name, value in options.items()
             if name not in WEIGHTS and value not in (None, usual.get(name))]
    return ', '.join(f'{options[name]:g}' for name in WEIGHTS), ', '.join(flags)


def methods_table() -> str:
    """Markdown: paper, what is compared, and the published values of every method."""
    rows = ['| `--distill` | method | compares | gamma, alpha, beta | other flags | ImageNet, if different |',
            '|---|---|---|---|---|---|']
    usual = published_options(SOFT_LABELS, 'cifar100')
    for name, method in distiller_dict.items():
        options, imagenet = (published_options(name, dataset) for dataset in ('cifar100', 'imagenet'))
        weights, flags = weights_and_flags(options, usual)
        weights_imagenet, flags_imagenet = weights_and_flags(imagenet, options)
        changed = '; '.join(filter(None, (weights_imagenet if weights_imagenet != weights else '', flags_imagenet)))
        spec = method.spec
        rows.append(f'| `{name}` | {spec.title}, {spec.paper} | {spec.uses} | {weights} | {flags} | {changed} |')
    return '\n'.join(rows)


def methods_paragraph() -> str:
    titles = ', '.join(method.spec.title for method in distiller_dict.values())
    return textwrap.fill(f'The {len(distiller_dict)} methods are {titles}.', 120, break_on_hyphens=False)


def features_paragraph() -> str:
    names = ', '.join(f'`{name}`' for name, method in distiller_dict.items() if method.spec.features_only)
    return textwrap.fill(f'These methods read only features: {names}.', 120, break_on_hyphens=False)


def results_table(section: str) -> str:
    """The last epoch's accuracies in a section of docs/results.md: several methods in a row, in order by columns."""
    text = (ROOT / 'docs/results.md').read_text().partition(f'## {section}\n')[2].partition('\n## ')[0]
    cells = [f'{title} | {last}' for title, last in re.findall(r'^\| ([^|]+) \| `\w+` \|.*\| ([^|]+) \|$', text, re.M)]
    height = -(-len(cells) // RESULTS_COLUMNS)
    cells += [' | '] * (height * RESULTS_COLUMNS - len(cells))
    rows = [f'| {" | ".join(cells[row::height])} |' for row in range(height)]
    return '\n'.join(['| method | top-1 % ' * RESULTS_COLUMNS + '|', '|---|---' * RESULTS_COLUMNS + '|', *rows])


def shell_variables() -> str:
    """The lists that run_cifar_distill.sh reads. Methods with an auxiliary teacher come last."""
    names = sorted((name for name, method in distiller_dict.items() if method.spec.learns_classes),
                   key=lambda name: distiller_dict[name].spec.auxiliary_teacher)
    first_stage = [name for name in names if distiller_dict[name].spec.first_stage]
    first, = filter(None, (method.spec.auxiliary_teacher for method in distiller_dict.values()))
    weights = [float(published_options(first, 'cifar100')[name]) for name in WEIGHTS]
    return '\n'.join([f'ALL="{" ".join(names)}"', f'FIRST_STAGE="{" ".join(first_stage)}"',
                      f'{first.upper()}_WEIGHTS="-r {{}} -a {{}} -b {{}}"'.format(*weights) +
                      f' {first.upper()}_NAME="{first}_r:{{}}_a:{{}}_b:{{}}"'.format(*weights)])


BLOCKS = {'README.md': {'methods': methods_paragraph,
                        'results': lambda: results_table('CIFAR-10 with a tenth of the images'),
                        'newer': lambda: results_table('Methods of 2024 to 2026')},
          'docs/methods.md': {'methods': methods_table},
          'docs/teachers.md': {'features': features_paragraph},
          'scripts/run_cifar_distill.sh': {'methods': shell_variables}}


def with_block(text: str, name: str, content: str, file: str) -> str:
    """`text` with `content` between its two lines that name the block."""
    pattern = rf'(^.*\b{name}: written by scripts/write_docs\.py.*\n)(?:.*\n)*?(.*\bend of {name}\b)'
    text, count = re.subn(pattern, lambda match: f'{match[1]}{content}\n{match[2]}', text, flags=re.M)
    if count != 1:
        raise UserError(f'{file}: needs the lines "{name}: written by scripts/write_docs.py" and "end of {name}"')
    return text


def main():
    parser = Parser(description='Write the generated parts of the docs.')
    parser.add_argument('--check', action='store_true', help='only report the files that are out of date')
    check = parser.parse_args().check
    stale = []
    for file, blocks in BLOCKS.items():
        old = text = (ROOT / file).read_text()
        for name, content in blocks.items():
            text = with_block(text, name, content(), file)
        if text == old:
            continue
        stale.append(file)
        if not check:
            (ROOT / file).write_text(text)
        print(f'{file}: {"out of date; run python scripts/write_docs.py" if check else "written"}')
    sys.exit(bool(check and stale))


if __name__ == '__main__':
    run_main(main)
