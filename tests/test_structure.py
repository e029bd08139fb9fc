"""Which packages import which: no package imports one from a higher layer, and no import is circular."""
import ast
import re
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

# A package may import only from the layers before its own.
LAYERS = (('cpu_kernels', 'distiller_zoo.criteria'), ('helper',), ('models',), ('dataset', 'distiller_zoo'),
          ('option_checks',), ('option_checkpoints',), ('options',), ('analysis',), ('experiments', 'export'),
          ('train_teacher', 'train_student', 'scripts', 'benchmarks'))
LAYER = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}


def package_of(module):
    """helper.run -> helper, distiller_zoo.criteria.dkd -> distiller_zoo.criteria."""
    parts = module.split('.')
    return next(name for name in ('.'.join(parts[:2]), parts[0]) if name in LAYER)


def modules():
    """The module's name, such as helper.run -> its file."""
    files = [*ROOT.glob('*.py'), *(file for package in LAYER for file in (ROOT / package).rglob('*.py'))]
    return {'.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): file for file in files}


def imports(name, file, known):
    """The modules of the repository that a file imports, also within functions."""
    package = name if file.name == '__init__.py' else name.rpartition('.')[0]
    imported = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, (package if node.level else '', node.module)))
            imported |= {base, *(f'{base}.{alias.name}' for alias in node.names)}
    return {module for module in imported if module in known and module != name}


def import_graph():
    """The module's name -> the modules of the repository that it imports."""
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def test_imports_only_from_lower_layers():
    for name, imported in import_graph().items():
        for other in imported:
            importer, source = package_of(name), package_of(other)
            assert importer == source or LAYER[source] < LAYER[importer], f'{name} imports {other}'


def test_no_circular_import():
    """The __init__ of a package collects its files, which may import each other but not the package."""
    edges = {name: {other for other in imported if not name.startswith(f'{other}.')}
             for name, imported in import_graph().items()}
    list(TopologicalSorter(edges).static_order())


def test_the_criteria_need_only_torch():
    """A project may have packages of its own with the names `models` and `helper`."""
    for name, file in modules().items():
        if name == 'distiller_zoo' or package_of(name) == 'distiller_zoo.criteria':
            for node in ast.walk(ast.parse(file.read_text())):
                absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                    [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert {module.partition('.')[0] for module in absolute} <= {'torch', *sys.stdlib_module_names}, file


PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', ROOT / 'analysis' / 'README.md', *(ROOT / 'docs').glob('*.md')]


def anchors_of(page):
    """The anchors that GitHub makes of a page's headings."""
    text = re.sub(r'```.*?```', '', page.read_text(), flags=re.S)
    headings = re.findall(r'^#+ (.*)$', text, re.M)
    return {re.sub(r'[^\w -]', '', heading.lower()).replace(' ', '-') for heading in headings}


@pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)
def test_links_of_the_docs(page):
    for link in re.findall(r'\]\((?!https?:)([^)]+)\)', page.read_text()):
        file, _, anchor = link.partition('#')
        target = page.parent / file if file else page
        assert target.exists() and (not anchor or anchor in anchors_of(target)), link


def test_files_of_the_docs():
    """Python files and shell scripts that a page names exist; * stands for several."""
    for page in PAGES:
        for name in re.findall(r'`([a-z_/]*[a-z0-9_*]+\.(?:py|sh))`', page.read_text()):
            assert any(any(ROOT.glob(f'{folder}{name}')) for folder in ('', '*/', '*/*/')), f'{page.name}: {name}'


def test_tests_do_not_import_each_other():
    """What several test files share is in conftest.py."""
    for file in (ROOT / 'tests').glob('test_*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or '').startswith('test_'), f'{file.name} imports {node.module}'


def test_helper_stays_small():
    """helper/ has at most 22 files, five of them for a run: folder, state, resume, signals, epochs."""
    assert len([file for file in (ROOT / 'helper').glob('*.py') if file.name != '__init__.py']) <= 22
