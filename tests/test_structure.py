"""The rooms of the repository: who imports whom. No arrow leads back up, and there is no circle."""
import ast
import sys
from graphlib import TopologicalSorter

import pytest
from conftest import ROOT

# A room may import from those below it. Files of the top floor and what a person runs stand above all.
FLOORS = (('cpu_kernels', 'distiller_zoo.criteria'), ('helper',), ('models',), ('dataset', 'distiller_zoo'),
          ('options',), ('analysis',), ('experiments', 'export'),
          ('train_teacher', 'train_student', 'scripts', 'benchmarks'))
HEIGHT = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}


def room_of(module):
    """helper.run -> helper, distiller_zoo.criteria.dkd -> distiller_zoo.criteria."""
    parts = module.split('.')
    return next(name for name in ('.'.join(parts[:2]), parts[0]) if name in HEIGHT)


def modules():
    """name -> file, as helper.run."""
    files = [*ROOT.glob('*.py'), *(file for room in HEIGHT for file in (ROOT / room).rglob('*.py'))]
    return {'.'.join(file.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): file for file in files}


def imports(name, file, known):
    """The modules of the repository that a file imports, within functions too."""
    package = name if file.name == '__init__.py' else name.rpartition('.')[0]
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = '.'.join(filter(None, (package if node.level else '', node.module)))
            found |= {base, *(f'{base}.{alias.name}' for alias in node.names)}
    return {module for module in found if module in known and module != name}


def graph():
    known = modules()
    return {name: imports(name, file, known) for name, file in known.items()}


def test_no_arrow_leads_up():
    for name, imported in graph().items():
        for other in imported:
            here, there = room_of(name), room_of(other)
            assert here == there or HEIGHT[there] < HEIGHT[here], f'{name} imports {other}'


def test_no_circle():
    """A package's own __init__ collects its files, which may import each other and not the package."""
    arrows = {name: {other for other in imported if not name.startswith(f'{other}.')}
              for name, imported in graph().items()}
    list(TopologicalSorter(arrows).static_order())


def test_the_criteria_need_torch_alone():
    """Also where a project has a `models` or `helper` of its own."""
    for name, file in modules().items():
        if name == 'distiller_zoo' or room_of(name) == 'distiller_zoo.criteria':
            for node in ast.walk(ast.parse(file.read_text())):
                absolute = [alias.name for alias in node.names] if isinstance(node, ast.Import) else \
                    [node.module] if isinstance(node, ast.ImportFrom) and not node.level else []
                assert {module.partition('.')[0] for module in absolute} <= {'torch', *sys.stdlib_module_names}, file


def test_the_tests_share_by_conftest():
    for file in (ROOT / 'tests').glob('test_*.py'):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not (node.module or '').startswith('test_'), f'{file.name} imports {node.module}'


@pytest.mark.parametrize('room', ['helper'])
def test_rooms_stay_small(room):
    """About as many files as a newcomer can hold in the head; a run is five: folder, state, resume, signals, epochs."""
    assert len([file for file in (ROOT / room).glob('*.py') if file.name != '__init__.py']) <= 18
