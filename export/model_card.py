"""The model card of an export: what the network is, where it comes from, its accuracy and how to use it."""
import hashlib
import html
from pathlib import Path

from analysis.classes import MEANS, shown_classes, two_digits
from analysis.run_checkpoint import RunCheckpoint
from helper.class_metrics import class_report
from helper.cli import plus_list
from helper.device import environment
from helper.errors import printable

from .deployed_net import OWN
from .formats import FORMATS, Export
from .runtime import BUILDERS, CONFIG
from .verify import Evaluations

CARD = 'model_card.json'
TO_FILL_IN = ('licence', 'licence of the training data', 'intended use', 'limitations', 'contact')
CLASS_COLUMNS = {'recall': 'recall', 'precision': 'precision', 'f1': 'F1'}     # key of class_report -> head of a table
LAST_PART = '## To be filled in'
OF_THE_RUN = {'method': 'distill', 'teacher': 'model_t', "teacher's checkpoint": 'path_t',
              "teacher's checksum": 'teacher (checksum)', "teacher's head": 'teacher_head',
              'data': 'dataset', 'training images': 'training images',
              'part of the training images': 'train_fraction',
              'part held out for validation': 'val_fraction', 'epochs': 'epochs', 'seed': 'seed', 'trial': 'trial',
              'command': 'command', 'machine': 'machine', 'versions': 'versions'}


def describe(export: Export, names: list[str], results: Evaluations, run: RunCheckpoint, data: str) -> dict:
    """The content of model_card.json. names: the formats. data: the data set of the test images."""
    network, parameters = export.network, run.trusted_parameters
    files = {CONFIG: {}, **{FORMATS[name].file: {'format': FORMATS[name].description, **results.formats[name].json(),
                                                 **export.file_details.get(name, {})} for name in names}}
    for file, details in files.items():
        content = (export.folder / file).read_bytes()
        details |= {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    single, exporter = results.network.single_class, environment()
    return {
        'network': network.name, 'parameters': network.parameters, 'classes': network.config['classes'],
        'images': {**network.config['inputs'],
                   'taken as': 'uint8, 0 to 255' if export.dtype == 'uint8' else 'float32, 0 to 1',
                   'layout': f'(batch, 3, {network.size}, {network.size}), RGB'},
        'training': {name: parameters[key] for name, key in OF_THE_RUN.items() if parameters.get(key) is not None},
        'checkpoint': network.checkpoint,
        'accuracy': {'best epoch chosen on': run.chosen_on,
                     'best epoch': run.trusted and run.read_metrics('best') or None,
                     'last epoch': run.trusted and run.read_metrics('last') or None,
                     'measured for this export': results.network.json(),
                     'teacher': results.teacher.json() if results.teacher else None},
        'figures of each class in %': class_report(results.predictions, network.config['classes']),
        'gives one class alone': None if single is None else network.config['classes'][single],
        'files': files,
        'exported by': {'command': exporter['command'], 'versions': exporter['versions']},
        'to be filled in': dict.fromkeys(TO_FILL_IN),
        'measured on': data,
    }


def read_filled_in(file: Path) -> dict:
    """Read the last table of an earlier MODEL_CARD.md, filled in by a user: TO_FILL_IN -> text."""
    try:
        text = file.read_text(encoding='utf-8').partition(LAST_PART)[2]
    except (OSError, UnicodeDecodeError):
        return {}
    rows = [[cell.strip() for cell in line.strip().strip('|').split('|', 1)] for line in text.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in TO_FILL_IN and row[1]}


def as_markdown(card: dict, config: dict, latency: str = '') -> str:
    """MODEL_CARD.md. latency: a table, in plain text."""
    accuracy, images, constant = card['accuracy'], card['images'], card['gives one class alone']
    # From an untrusted file; with several teachers their names are a list.
    training = {name: printable(plus_list(value)) for name, value in card['training'].items()}
    method = f', taught by {training["teacher"]} with `{training["method"]}`' if {'teacher', 'method'} <= {*training} \
        else ''
    data = f', on {training["data"]}' if 'data' in training else ''
    chosen_on = accuracy['best epoch chosen on']
    heads = {'best epoch': f'best epoch, chosen on the {chosen_on} set' if chosen_on else 'best epoch',
             'last epoch': 'last epoch'}
    accuracies = [(head, f'{metrics["test_acc"]:.2f}') for name, head in heads.items()
                  if isinstance(metrics := accuracy[name], dict) and isinstance(metrics.get('test_acc'), float)]
    test_set = f'on the {accuracy["measured for this export"]["test images"]:,} test images of {card["measured on"]}'
    accuracies += [(f'{name}, {test_set}', f'{accuracy[name]["top-1 %"]:.2f}')
                   for name in ('measured for this export', 'teacher') if accuracy[name]]
    figures = ('top-1 %', '.2f'), ('same first class %', '.2f'), ('largest difference of logits', '.1e')
    files = [(name, f'{details["bytes"] / 1e6:.2f}',
              *(f'{details[key]:{digits}}' if key in details else '' for key, digits in figures),
              f'`{details["sha256"]}`')
             for name, details in card['files'].items()]
    return '\n\n'.join([
        f'# {card["network"]}',
        f'{card["parameters"]:,} parameters, {len(card["classes"])} classes{method}{data}.',
        '## Accuracy', _rows(('', 'top-1 of the test set in %'), accuracies),
        *([f'**The network predicts the class {printable(constant)} for all test images: it cannot tell classes '
           f'apart.**'] if constant is not None else []),
        '## Classes', f'Measured {test_set}, in %. Means are over the classes; ECE is the calibration error in '
        '15 bins.', *_class_rows(card['figures of each class in %']),
        '## Files',
        'Each file was loaded by its own runtime in a new process, and compared with the network in PyTorch on the '
        'whole test set.',
        _rows(('file', 'MB', 'top-1 %', 'same first class %', 'largest difference of logits', 'SHA-256'), files),
        *[_ranges(name, details) for name, details in card['files'].items() if 'ranges' in details],
        '## Use', f'Images: {images["taken as"]}, {images["layout"]}; every file except the weights normalises them '
        f'itself. {_resizing(images)}', f'```python\n{loading_code(config)}\n```',
        *(['## Cost', f'```\n{latency}\n```'] if latency else []),
        '## Training', _rows(('', ''), [(name, f'`{value}`') for name, value in training.items()]),
        LAST_PART, _rows(('', ''), [(name, text or '') for name, text in card['to be filled in'].items()]),
    ]) + '\n'


def _ranges(name, details):
    """A sentence about the activation ranges of a file in 8 bits."""
    if 'layers in float' in details:
        layers = ', '.join(details['layers in float'])
        return f'`{name}`: {details["ranges"]} ranges; layers in float: {layers or "none"}.'
    return f'`{name}`: trained for 8 bits by `--qat`, and compared with the rounded network in PyTorch (top-1 ' \
           f'{details["rounded network top-1 %"]:.2f} %). The other files leave the rounding out.'


def _class_rows(report):
    """The paragraphs about the classes: means, and a table of all classes or of the worst."""
    classes, means = report['classes'], [(name, two_digits(report[key])) for key, name in MEANS.items()]
    rows = [(html.escape(row['name'], quote=False), row['images'], *(two_digits(row[key]) for key in CLASS_COLUMNS),
             html.escape(_confused_with(row), quote=False)) for row in shown_classes(classes)]
    empty = sum(row['recall'] is None for row in classes)
    notes = [f'The {len(rows)} classes with the lowest recall, of {len(classes)}:'] * (len(rows) < len(classes)) + \
        [f'Means leave out the classes without test images: {empty}.'] * (empty > 0)
    return [_rows(('', '%'), means), *notes,
            _rows(('class', 'test images', *CLASS_COLUMNS.values(), 'most often taken for'), rows)]


def _confused_with(row):
    """The class that is most often predicted instead, with the number of images."""
    others = [(name, number) for name, number in row['predicted_as'].items() if name != row['name']]
    return f'{others[0][0]} ({others[0][1]})' if others else ''


def _resizing(images):
    """How an image becomes a square of the net's size, as text."""
    size, interpolation = images['size'], images['interpolation']
    if images['fit'] == 'squash':
        return f'Scale both sides to {size} pixels ({interpolation}).'
    if images['fit'] == 'pad':
        return f'Scale the longer side to {size} pixels ({interpolation}), and fill the square with black on both ' \
               f'sides.'
    return f'Scale the shorter side to {round(size / images["crop_pct"])} pixels ({interpolation}) and take the centre.'


def _rows(head, rows):
    return '\n'.join(f'| {" | ".join(printable(str(cell)).replace("|", "/") for cell in row)} |'
                     for row in (head, ['---'] * len(head), *rows))


def loading_code(config: dict) -> str:
    """Python code that loads the weights."""
    library, inputs = config['library'], config['inputs']
    if library not in BUILDERS:
        return (f"from export.runtime import open_export         # of {OWN}\n"
                f"net = open_export('student.safetensors')\n"
                f"logits = net(images)       # a numpy array, as above")
    settings = ''.join(f', {key}={value!r}' for key, value in config['model_args'].items())
    return (f'import {library}, safetensors.torch\n'
            f'net = {".".join(BUILDERS[library])}({config["architecture"]!r}, num_classes={config["num_classes"]}'
            f'{settings}).eval()\n'
            f"net.load_state_dict(safetensors.torch.load_file('student.safetensors'))\n"
            f'# images from 0 to 1, minus {inputs["mean"]}, divided by {inputs["std"]}')
