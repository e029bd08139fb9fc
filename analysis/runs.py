"""Finished runs, read from their folders and grouped into trials of one experiment."""
import contextlib
import math
import os
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import mean

from distiller_zoo import distiller_dict
from helper.cli import as_list, current_options, plus_list
from helper.errors import UserError, printable, reason
from helper.files import read_json
from helper.loops import SPLITS
from helper.records import is_out_of_patience, predicts_one_class, selection_of
from helper.resume import CLASS_NAMES, IMAGES
from helper.run_folder import folder_name
from models.ensemble import NOT_GIVEN
from options import flags

from .classes import read_class_report
from .published import method_key, non_default_options

ACCURACY_KEYS = {'best': 'top1', 'last': 'last'}        # epoch -> key of its accuracy in read_run's dictionary
DATA_PROPERTIES = ('classes', 'training images', 'labels (checksum)', CLASS_NAMES, IMAGES)
ENVIRONMENT = ('machine', 'versions', 'command')       # in parameters.json, of the process that finished the run


class UntestedRun(UserError):
    """A run with --no_test has no figures of the test set."""


def read_run(folder: str, needs_test: bool = True) -> dict:
    """The settings and results of one run. Raises UserError for a folder without a finished run.

    Accuracies are of the test set, except the `curve`, whose split `chosen_on` names: 'test' or 'validation'. Those of
    a run with --no_test are None, or with needs_test an UntestedRun is raised.
    """
    if not os.path.isfile(Path(folder) / 'history.json'):
        raise UserError(f'{folder}: holds no history.json; give the folder of a run, as save/models/NAME or '
                        f'save/student_model/NAME')

    def read(name):
        return read_json(Path(folder) / name, f'{folder}: {name}')

    parameters, history = read('parameters.json'), read('history.json')
    try:
        parameters = current_options(parameters)
        split = selection_of(history[-1])
        if f'{split}_acc' not in history[-1]:
            raise UserError(f'{folder}: has no accuracy, because its net was trained without classes '
                            f'(--distill {parameters["distill"]}); leave it out')
        is_tested = split == 'test' or not parameters.get('no_test')
        if needs_test and not is_tested:
            raise UntestedRun(f'{folder}: has no figures of the test set, because it was trained with --no_test; give '
                              f'its command without that flag')
        if parameters.get('Total time') is None:
            raise UserError(f'{folder}: not finished; train on with --resume auto')
        # Without a validation set, the test set is measured after each epoch, so that the history has its figures.
        best = read(f'{"test" if is_tested else split}_best_metrics.json')
        last = history[-1] if split == 'test' or not is_tested else read('test_last_metrics.json')
        if any(isinstance(item, (dict, list)) for value in parameters.values() if isinstance(value, (dict, list))
               for item in value):
            raise ValueError('an option is nested')
        is_student = 'model_s' in parameters
        options, properties = split_parameters(parameters, is_student)
        options['best epoch chosen on'] = SPLITS[split]     # so that such runs are not averaged with others
        matrices = [{printable(name): check_matrix(value) for name, value in epoch.items()
                     if not isinstance(value, (int, float, dict, type(None)))} for epoch in history]
        rates = [finite(epoch['train']['images_per_second']) for epoch in history if 'train' in epoch]
        best_epochs = [epoch for epoch in history if epoch.get('epoch') == best.get('epoch')]
        run = {
            'experiment': options, 'properties': properties,
            'seed': parameters.get('seed'),
            'dataset': printable(parameters['dataset']),
            'parameters': round(parameters['Total params'] * 1e6),
            'top1': finite(best['test_acc']) if is_tested else None,
            'top5': finite(best['test_acc_top5']) if is_tested else None,
            'last': finite(last['test_acc']) if is_tested else None, 'chosen_on': SPLITS[split],
            'one_class': {'best': any(map(predicts_one_class, best_epochs)), 'last': predicts_one_class(history[-1])},
            'seconds': finite(parameters['Total time']) * (3600 if is_student else 1),
            'class_report': read_class_report(Path(folder), best.get('epoch')),
            'curve': [finite(epoch[f'{split}_acc']) for epoch in history],
            'stopped_early': is_out_of_patience(history, parameters.get('patience')),
            'pictures': matrices[-1], 'pictures_by_epoch': matrices,
            'images_per_second': mean(rates) if rates else None,
            **{name: printable(parameters.get(name, '')) for name in ENVIRONMENT},
        }
        _check_best_metrics(folder, split, read(f'{split}_best_metrics.json'), best_epochs)
        names = _names_of_student(parameters, options) if is_student else \
            {'model': parameters['model'], 'teacher': '', 'distill': 'alone', 'method': 'alone'}
        return {**run, **{key: printable(name) for key, name in names.items()}}
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f'{folder}: its JSON files are not those of a run ({reason(error)})') from error


def _names_of_student(parameters, options):
    return {'model': parameters['model_s'], 'teacher': original_teacher(parameters),
            'distill': method_key(parameters['distill'], non_default_options(parameters, options)),
            'method': f'{parameters["distill"]}, taught by {_describe_teachers(parameters)}'}


def _describe_teachers(parameters):
    """The names of the teachers' nets, with their heads by --teacher_head."""
    names = as_list(parameters['model_t'])
    heads = as_list(parameters.get('teacher_head') or len(names) * [NOT_GIVEN])
    return plus_list([name if head == NOT_GIVEN else f'{name} with a {head} head'
                      for name, head in zip(names, heads, strict=True)])


def _check_best_metrics(folder, split, metrics, best_epochs):
    """Raise UserError unless the file of the best epoch's metrics agrees with history.json."""
    accuracy, in_history = metrics[f'{split}_acc'], [epoch[f'{split}_acc'] for epoch in best_epochs]
    if in_history and in_history != [accuracy]:
        raise UserError(f'{folder}: {split}_best_metrics.json says top-1 {accuracy} of epoch {metrics["epoch"]}, but '
                        f'history.json {in_history[0]}; --resume auto writes both again')


def chosen_on(runs: Iterable[dict]) -> str:
    """The split that chose the best epochs of these runs: 'test', 'validation', or 'test or validation'."""
    return ' or '.join(sorted({run['chosen_on'] for run in runs})) or SPLITS['test']


def read_or_empty(path: Path, kind: type):
    """The value of a JSON file; an empty one of this kind if the file is missing or damaged."""
    with contextlib.suppress(UserError):
        content = read_json(path, '')
        return content if isinstance(content, kind) else kind()
    return kind()


def find_run_folders(folder: str) -> list[str]:
    """All run folders in this one, including itself; links to folders are not followed."""
    return sorted(inner for inner, _, files in os.walk(folder) if 'history.json' in files)


def split_parameters(parameters: dict, is_student: bool) -> tuple[dict, dict]:
    """(the options that decide what a run computes, the properties of its data, its teacher and its processes).

    Options that did not exist yet when it ran have their defaults.
    """
    known = flags(is_student)
    names = {*known.defaults.keys() - (known.may_differ - {'epochs'}), 'model_t'}
    options = {name: value for name, value in {**known.defaults, **parameters}.items()
               if name in names and value is not None}
    if parameters['dataset'] == 'folder':
        options['data_dir'] = str(Path(parameters['data_dir']))
    if parameters.get('unlabelled') is not None:
        options['unlabelled'] = parameters['unlabelled']
    others = {*known.defaults, *ENVIRONMENT, 'model_t', 'Total time', 'filled_in', 'debug'}
    return options, {name: value for name, value in parameters.items() if name not in others}


def finite(number) -> float:
    """The number. Raises ValueError for NaN and infinity."""
    if not math.isfinite(number):
        raise ValueError(f'a figure is {number}')
    return float(number)


def check_matrix(rows) -> list[list[float]]:
    """The rows of a matrix as floats. Raises ValueError for other values."""
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError('a picture is no matrix')
    return [[finite(value) for value in row] for row in rows]


def original_teacher(parameters: dict) -> str:
    """The teacher of a run; if it is an auxiliary teacher, the one that taught it, as in published tables.

    Several teachers are joined by +.
    """
    dataset = re.escape(folder_name(parameters['dataset']))
    method = distiller_dict.get(parameters['distill'])
    names = []
    for path, name in zip(as_list(parameters['path_t']), as_list(parameters['model_t']), strict=True):
        taught = re.match(rf'S[:~].+_T[:~](.+?)_{dataset}_', Path(path).parent.name)
        names.append(taught[1] if taught and method and method.spec.auxiliary_teacher else name)
    return plus_list(names)


def group_trials(runs: list[dict]) -> list[list[dict]]:
    """The runs, grouped by experiment: with the same options and properties; older runs have fewer properties."""
    return group_runs(runs, lambda group, run: all(
        run['experiment'] == other['experiment'] and have_same_properties(run, other, run['properties'])
        for other in group))


def group_runs(runs: list, fits: Callable) -> list[list]:
    """Put each run into the first group with fits(group, run), else into a new one."""
    groups = []
    for run in runs:
        if group := next((group for group in groups if fits(group, run)), None):
            group.append(run)
        else:
            groups.append([run])
    return groups


def have_same_properties(run: dict, other: dict, names: Iterable[str] = DATA_PROPERTIES) -> bool:
    """Whether two runs agree in these properties (by default those of their data), as far as both record them."""
    return all(run['properties'][name] == other['properties'][name] for name in names
               if name in run['properties'] and name in other['properties'])


def experiment_labels(groups: list[list[dict]]) -> list[str]:
    """The method of each experiment, with what distinguishes it from the others of the same nets."""
    labels = []
    for group in groups:
        run = group[0]
        alike = [other[0] for other in groups
                 if all(other[0][key] == run[key] for key in ('dataset', 'model', 'teacher', 'method'))]
        settings = {**run['properties'], **run['experiment']}
        labels.append(', '.join([run['method'], *(printable(f'{name} {settings[name]}') if name in settings else
                                                  f'without {name}' for name in distinguishing_settings(alike))]))
    return labels


def distinguishing_settings(runs: list[dict]) -> list[str]:
    """The names of few options and properties that tell these runs apart, selected greedily."""
    def count(names):
        return len({str([{**run['properties'], **run['experiment']}.get(name) for name in names]) for run in runs})

    candidates = [*sorted({name for run in runs for name in run['experiment']}),
                  *sorted({name for run in runs for name in run['properties']})]
    names = []
    while candidates and count(best := max([[*names, name] for name in candidates], key=count)) > count(names):
        names = best
    return names


def published_key(run: dict) -> tuple:
    """The key of a run in published_figures()."""
    return run['teacher'], run['model'], run['distill']
