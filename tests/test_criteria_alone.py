"""Criteria in another project: the installed package, the table of docs/criteria.md, errors."""
import ast
import inspect
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT, build

import distiller_zoo as zoo
from distiller_zoo import distiller_dict
from options import student_options

PAGE = (ROOT / 'docs/criteria.md').read_text()
PYTHON_BLOCKS = re.findall(r'```python\n(.*?)```', PAGE, re.S)
# method -> argument of its function -> the attribute of the distiller with the value
OF_FUNCTIONS = {'dkd': {'alpha': 'dkd_alpha', 'beta': 'dkd_beta', 'temperature': 'temperature'},
                'ofa': {'gamma': 'modulation'}, 'ctkd': {'loops': 'loops'},
                **dict.fromkeys(('wkdl', 'wkdf'), {'start': 'decay_from'}),
                **dict.fromkeys(('kd', 'srd', 'vkd', 'nd'), {'T': 'temperature'}),
                'abkd': {'alpha': 'ab_alpha', 'beta': 'ab_beta', 'temperature': 'temperature'}}


def code(cell):
    """The code spans in a cell of the table."""
    return re.findall('`([^`]+)`', cell)


def table():
    """method -> (name -> arguments of each class and function, calls of the classes, CIFAR-100, ImageNet)."""
    rows = [[cell.strip() for cell in line.strip('|').split('|')] for line in PAGE.splitlines()
            if line.startswith('| `')]
    return {method.strip('`'): (dict(span[:-1].split('(', 1) for span in code(made)), code(calls), cifar100, imagenet)
            for method, made, calls, _, cifar100, imagenet in rows}


TABLE = table()


def published(cell):
    """'1, 0, 1; `T=4, k=2`; warm-up 20' -> ([1, 0, 1], {'T': 4, 'k': 2}, 20)."""
    weights, warm_up = cell.partition(';')[0].split(','), re.search(r'warm-up (\d+)', cell)
    arguments = {keyword.arg: ast.literal_eval(keyword.value) for span in code(cell)
                 for keyword in ast.parse(f'f({span})', mode='eval').body.keywords}
    return [float(weight) for weight in weights], arguments, int(warm_up[1]) if warm_up else 1


def arguments_of(function):
    """The arguments of a class, a function or a method, as 'a, b=1'."""
    parameters = [p.replace(annotation=inspect.Parameter.empty) for p in inspect.signature(function).parameters.values()
                  if p.name not in ('self', 'args', 'kwargs')]
    return str(inspect.Signature(parameters))[1:-1]


def test_every_criterion_is_in_the_table():
    assert {*TABLE} <= {*distiller_dict}        # a method of a user's own may keep its criterion
    parts = {'ABF', 'MLPEmbed', 'Embed', 'entropy_weights', 'gram_mahalanobis', 'standardize_logits'}      # of others
    parts |= {'MultiTeacherKL', 'CAMKDFeatureLoss'}     # of several teachers
    assert {name for made, *_ in TABLE.values() for name in made} == {*zoo.__all__} - parts


@pytest.mark.parametrize('method', TABLE)
def test_signatures_of_the_table(method):
    made, calls, *_ = TABLE[method]
    assert {name: arguments_of(getattr(zoo, name)) for name in made} == made
    assert calls == [f'({arguments_of(getattr(zoo, name).forward)})' for name in made
                     if inspect.isclass(getattr(zoo, name))]


@pytest.mark.parametrize('method, dataset', [(method, dataset) for method, cells in TABLE.items() for dataset in (
    ('cifar100',) if cells[-1] == '–' else ('cifar100', 'imagenet'))])
def test_published_values_of_the_table(method, dataset, monkeypatch):
    """A run without flags has the weights of the table. Its classes get the arguments of the table, else defaults."""
    made, _, cifar100, imagenet = TABLE[method]
    weights, named, warm_up = published(cifar100 if dataset == 'cifar100' else imagenet)
    opt = student_options(['--path-t', 'x', '--distill', method, '--model_s', 'resnet8', '--batch_size', '8',
                           '--dataset', dataset])
    assert [opt.gamma, opt.alpha, opt.beta] == weights and (opt.loss_warmup_epochs or 1) == warm_up
    want, given = dict(named), {}
    for cls in (getattr(zoo, name) for name in made if inspect.isclass(getattr(zoo, name))):
        defaults = {p.name: p.default for p in inspect.signature(cls).parameters.values() if p.default is not p.empty}
        want = {**{name: value for name, value in defaults.items() if value}, **want}
        record_arguments(monkeypatch, cls, given)
    distiller, *_ = build(method, size=32, **{**vars(opt), 'model_t': 'resnet14'})
    given |= {name: getattr(distiller, attribute) for name, attribute in OF_FUNCTIONS.get(method, {}).items()}
    unused = {'correlation': {'dim_in'}, 'sdd': {'alpha', 'beta'},
              'nd': {'dropout'}, 'wkdf': {'width'}}      # sdd's dkd, layers of nd and wkdf
    for name in want.keys() - unused.get(method, set()):
        assert given[name] == want[name], name


def record_arguments(monkeypatch, cls, given):
    """Record in `given` the arguments of each new object of a class."""
    init, signature = cls.__init__, inspect.signature(cls)

    def recording(self, *args, **kwargs):
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given.update(bound.arguments)
        init(self, *args, **kwargs)
    monkeypatch.setattr(cls, '__init__', recording)


@pytest.mark.parametrize('method', TABLE)
def test_docstrings_have_the_published_values(method):
    made, _, *cells = TABLE[method]
    classes = [getattr(zoo, name) for name in made]
    text = ' '.join(' '.join(f'{cls.__doc__} {getattr(cls, "forward", cls).__doc__}' for cls in classes).split())
    for cell in cells[:1 if cells[1] == '–' else 2]:
        (_, alpha, beta), named, _ = published(cell)
        for value in (f'weight {beta or alpha:g}', *(f'{name} {value:g}' for name, value in named.items())):
            assert re.search(rf'\b{re.escape(value)}(?!\.?\d)', text), value


def test_every_docstring_has_the_shapes():
    """Docstrings say input -> output, unless the only input is a number or a layer."""
    for name in zoo.__all__:
        criterion = getattr(zoo, name)
        text = criterion.forward.__doc__ if 'forward' in vars(criterion) else criterion.__doc__
        assert text and ('->' in text or name in ('ofd_margin', 'reversal_strength', 'weight_factor')), name


INSTALLED = ['distiller_zoo/__init__.py', *(f'distiller_zoo/criteria/{file.name}' for file in
                                            (ROOT / 'distiller_zoo' / 'criteria').glob('*.py'))]


def test_pip_installs_the_criteria_alone(monkeypatch):
    setuptools = pytest.importorskip('setuptools', '77')
    monkeypatch.chdir(ROOT)
    distribution = setuptools.Distribution({'script_name': 'setup.py'})
    distribution.parse_config_files(['pyproject.toml'])
    command = distribution.get_command_obj('build_py')
    command.ensure_finalized()
    assert {file for _, _, file in command.find_all_modules()} == {*INSTALLED}
    assert distribution.metadata.name == 'distiller-zoo' and distribution.install_requires == ['torch>=2.11']


def test_the_installed_package_works_beside_others(tmp_path, monkeypatch):
    """In a project with packages of its own names; the code of docs/criteria.md runs there."""
    for file in INSTALLED:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    theirs = ('models', 'helper', 'dataset', 'options')
    for name in theirs:
        (tmp_path / name).mkdir()
        (tmp_path / name / '__init__.py').write_text("raise AssertionError('imported by the criteria')")
    for name in [name for name in sys.modules if name.partition('.')[0] in ('distiller_zoo', *theirs)]:
        monkeypatch.delitem(sys.modules, name)      # undone after the test
    monkeypatch.syspath_prepend(tmp_path)
    scope = {}
    for block in PYTHON_BLOCKS:
        exec(block, scope)
        assert scope['loss'] > 0
    assert all(f.grad.abs().sum() > 0 for f in scope['feats_s'])
    installed = sys.modules['distiller_zoo']
    assert installed.__file__ == str(tmp_path / 'distiller_zoo' / '__init__.py')
    with pytest.raises(ImportError, match='distiller_zoo.distiller_dict needs the whole repository: clone it'):
        _ = installed.distiller_dict


def test_batches_of_an_unusable_size():
    attention = zoo.SelfA(1, 1, 8, [4], [4])
    with pytest.raises(ValueError, match='batches of input_channel=8 samples, but this one has 5; .* drop_last=True'):
        attention([torch.ones(5, 4, 2, 2)], [torch.ones(5, 4, 2, 2)])
    for criterion in (zoo.RKDLoss(), zoo.Correlation()):
        with pytest.raises(ValueError, match='compares the samples of a batch: give at least two'):
            criterion(torch.ones(1, 4), torch.ones(1, 4))


def test_crd_by_arguments_and_by_an_options_object():
    sizes = {'s_dim': 6, 't_dim': 8, 'n_data': 12, 'feat_dim': 4, 'nce_t': 0.1, 'nce_m': 0.4}
    index, contrast = torch.arange(3), torch.arange(12).reshape(3, 4)
    losses = []
    for make in (lambda: zoo.CRDLoss(**sizes), lambda: zoo.CRDLoss(SimpleNamespace(**sizes))):
        torch.manual_seed(0)
        losses.append(make()(torch.ones(3, 6), torch.ones(3, 8), index, contrast))
    assert losses[0] == losses[1]
    assert zoo.CRDLoss(s_dim=6, t_dim=8, n_data=12).embed_s.linear.weight.shape == (128, 6)
    with pytest.raises(ValueError, match='CRDLoss: s_dim=6, t_dim=8, n_data=0; give all three'):
        zoo.CRDLoss(s_dim=6, t_dim=8)
