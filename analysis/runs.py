"""A run's folder as others read it, and which runs are trials of one experiment."""
import math
import os
import re
from pathlib import Path
from statistics import mean

from distiller_zoo import distiller_dict
from helper.cli import current_options
from helper.errors import UserError, printable, reason
from helper.files import read_json
from helper.records import predicts_one_class
from helper.resume import CLASS_NAMES, IMAGES
from helper.run_folder import folder_name
from options import flags

from .published import method_key, non_default_options

ACCURACY_KEYS = {'best': 'top1', 'last': 'last'}     # epoch -> what read_run calls its accuracy
DATA_FACTS = ('classes', 'training images', 'labels (checksum)', CLASS_NAMES, IMAGES)       # facts of a run's data
SURROUNDINGS = ('machine', 'versions', 'command')       # in parameters.json, of the process that finished the run


def read_run(folder: str) -> dict:
    """The facts and figures of one run. Raises UserError for a folder without a finished run."""
    if not os.path.isfile(Path(folder) / 'history.json'):
        raise UserError(f'{folder}: holds no history.json; give the folder of a run, as save/models/NAME or '
                        f'save/student_model/NAME')
    parameters, best, history = (read_json(Path(folder) / name, f'{folder}: {name}')
                                 for name in ('parameters.json', 'test_best_metrics.json', 'history.json'))
    try:
        parameters = current_options(parameters)
        if parameters.get('Total time') is None:
            raise UserError(f'{folder}: not finished; train on with --resume auto')
        if any(isinstance(item, (dict, list)) for value in parameters.values() if isinstance(value, (dict, list))
               for item in value):
            raise ValueError('an option is nested')
        student = 'model_s' in parameters
        options, facts = split_parameters(parameters, student)
        pictures = [{printable(name): matrix(value) for name, value in epoch.items()
                     if not isinstance(value, (int, float, dict, type(None)))} for epoch in history]
        rates = [finite(epoch['train']['images_per_second']) for epoch in history if 'train' in epoch]
        found = {
            'experiment': options, 'facts': facts,
            'seed': parameters.get('seed'),
            'dataset': printable(parameters['dataset']),
            'model': printable(parameters['model_s' if student else 'model']),
            'teacher': printable(original_teacher(parameters)) if student else '',
            'distill': printable(method_key(parameters['distill'], non_default_options(parameters, options)))
            if student else 'alone',
            'method': printable(f'{parameters["distill"]}, taught by {parameters["model_t"]}') if student else 'alone',
            'parameters': round(parameters['Total params'] * 1e6),
            'top1': finite(best['test_acc']), 'top5': finite(best['test_acc_top5']),
            'last': finite(history[-1]['test_acc']),
            'one_class': {'best': any(predicts_one_class(epoch) for epoch in history
                                      if epoch.get('epoch') == best.get('epoch')),
                          'last': predicts_one_class(history[-1])},
            'seconds': finite(parameters['Total time']) * (3600 if student else 1),
            'curve': [finite(epoch['test_acc']) for epoch in history],
            'pictures': pictures[-1], 'pictures_by_epoch': pictures,
            'images_per_second': mean(rates) if rates else None,
            **{name: printable(parameters.get(name, '')) for name in SURROUNDINGS},
        }
        same_epoch = [epoch['test_acc'] for epoch in history if epoch.get('epoch') == best.get('epoch')]
        if same_epoch and same_epoch != [best['test_acc']]:
            raise UserError(f'{folder}: test_best_metrics.json says top-1 {best["test_acc"]} of epoch {best["epoch"]}, '
                            f'but history.json {same_epoch[0]}; --resume auto writes both anew')
        return found
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, OverflowError) as error:
        raise UserError(f'{folder}: its JSON files are not those of a run ({reason(error)})') from error


def find_run_folders(folder: str) -> list[str]:
    """All run folders in this one, also itself; links to folders are not followed."""
    return sorted(inside for inside, _, files in os.walk(folder) if 'history.json' in files)


def split_parameters(parameters: dict, student: bool) -> tuple[dict, dict]:
    """(the options that decide what a run computes, what it found of its data, its teacher and its processes).

    An option that did not exist yet when it ran has its default.
    """
    known = flags(student)
    names = known.defaults.keys() - (known.may_differ - {'epochs'})
    options = {name: value for name, value in {**known.defaults, **parameters}.items()
               if name in {*names, 'model_t'} and value is not None}
    if parameters['dataset'] == 'folder':
        options['data_dir'] = str(Path(parameters['data_dir']))
    return options, {name: value for name, value in parameters.items()
                     if name not in {*known.defaults, *SURROUNDINGS, 'model_t', 'Total time', 'filled_in', 'debug'}}


def finite(number) -> float:
    if not math.isfinite(number):
        raise ValueError(f'a figure is {number}')
    return float(number)


def matrix(rows):
    """A list of equally long lists of figures. Raises ValueError for other values."""
    if len({len(row) for row in rows}) != 1 or not rows[0]:
        raise ValueError('a picture is no matrix')
    return [[finite(value) for value in row] for row in rows]


def original_teacher(parameters: dict) -> str:
    """The teacher by which published tables name a run; where --path-t is an auxiliary one, the one that taught it."""
    data = re.escape(folder_name(parameters['dataset']))
    taught = re.match(rf'S[:~].+_T[:~](.+?)_{data}_', Path(parameters['path_t']).parent.name)
    method = distiller_dict.get(parameters['distill'])
    return taught[1] if taught and method and method.spec.auxiliary_teacher else parameters['model_t']


def group_trials(runs: list[dict]) -> list[list[dict]]:
    """The runs, those of one experiment together."""
    found = []
    for run in runs:
        group = next((group for group in found if all(is_same_experiment(run, other) for other in group)), None)
        if group is None:
            found.append([run])
        else:
            group.append(run)
    return found


def is_same_experiment(run: dict, other: dict) -> bool:
    """Whether two runs are of one experiment: the same options, and no different facts (data, teacher, processes).
    Older runs have fewer facts."""
    return run['experiment'] == other['experiment'] and _agree(run, other, run['facts'])


def have_same_data(run: dict, other: dict) -> bool:
    """Whether two runs have the same images, labels and class names, as far as both record them."""
    return _agree(run, other, DATA_FACTS)


def _agree(run, other, facts):
    return all(run['facts'][name] == other['facts'][name] for name in facts
               if name in run['facts'] and name in other['facts'])


def experiment_labels(groups: list[list[dict]]) -> list[str]:
    """How each experiment was trained, with the options that tell it from another of the same nets and method."""
    found = []
    for group in groups:
        run = group[0]
        like = [{**other[0]['facts'], **other[0]['experiment']} for other in groups
                if all(other[0][key] == run[key] for key in ('dataset', 'model', 'teacher', 'method'))]
        own = {**run['facts'], **run['experiment']}
        names = [name for name in sorted({name for other in like for name in other})
                 if any(other.get(name) != like[0].get(name) for other in like)]
        found.append(', '.join([run['method'], *(printable(f'{name} {own.get(name)}') for name in names)]))
    return found


def published_key(run: dict) -> tuple:
    """How published_figures() names what a run trained."""
    return run['teacher'], run['model'], run['distill']
