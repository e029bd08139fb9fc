"""The model card of an export: what it is, where it came from, how good it is, and how to use it."""
import hashlib
from pathlib import Path

from helper.device import surroundings
from helper.errors import UserError, printable
from helper.files import read_json

from .deployed_net import OWN, DeployedNet
from .formats import FORMATS
from .runtime import CONFIG
from .verify import Evaluations

CARD = 'model_card.json'
TO_FILL_IN = ('licence', 'licence of the training data', 'intended use', 'limitations', 'contact')
LAST_PART = '## To be filled in'
OF_THE_RUN = {'method': 'distill', 'teacher': 'model_t', "teacher's checkpoint": 'path_t',
              "teacher's checksum": 'teacher (checksum)', 'data': 'dataset', 'training images': 'training images',
              'part of the training images': 'train_fraction', 'epochs': 'epochs', 'seed': 'seed', 'trial': 'trial',
              'command': 'command', 'machine': 'machine', 'versions': 'versions'}


def describe(student: DeployedNet, parameters: dict, outcomes: Evaluations, folder: Path, formats: list[str],
             dtype: str, trusted: bool = True) -> dict:
    """The content of model_card.json. parameters: of the run, as far as known. trusted: whether the metrics beside the
    checkpoint belong to it."""
    run = Path(student.checkpoint).parent
    here = surroundings()
    files = {CONFIG: {}, **{FORMATS[name].file: {'format': FORMATS[name].words, **outcomes.formats[name].json()}
                            for name in formats}}
    for name, facts in files.items():
        content = (folder / name).read_bytes()
        facts |= {'bytes': len(content), 'sha256': hashlib.sha256(content).hexdigest()}
    return {
        'network': student.name, 'parameters': student.parameters, 'classes': student.config['classes'],
        'images': {**student.config['inputs'], 'taken as': 'uint8, 0 to 255' if dtype == 'uint8' else 'float32, 0 to 1',
                   'layout': f'(batch, 3, {student.size}, {student.size}), RGB'},
        'training': {name: parameters[key] for name, key in OF_THE_RUN.items() if parameters.get(key) is not None},
        'checkpoint': student.checkpoint,
        'accuracy': {'best epoch': _metrics(run / 'test_best_metrics.json') if trusted else None,
                     'last epoch': _metrics(run / 'test_last_metrics.json') if trusted else None,
                     'measured for this export': outcomes.network.json(),
                     'teacher': outcomes.teacher.json() if outcomes.teacher else None},
        'gives one class alone': None if (single := outcomes.network.single_class) is None
        else student.config['classes'][single],
        'files': files,
        'exported by': {'command': here['command'], 'versions': here['versions']},
        'to be filled in': dict.fromkeys(TO_FILL_IN),
    }


def filled_in(file: Path) -> dict:
    """What somebody has written into the last table of an earlier MODEL_CARD.md: TO_FILL_IN -> words."""
    try:
        text = file.read_text(encoding='utf-8').partition(LAST_PART)[2]
    except (OSError, UnicodeDecodeError):
        return {}
    rows = [[cell.strip() for cell in line.strip().strip('|').split('|', 1)] for line in text.splitlines()]
    return {row[0]: row[1] for row in rows if len(row) == 2 and row[0] in TO_FILL_IN and row[1]}


def _metrics(file):
    try:
        return read_json(file, str(file)) if file.exists() else None
    except UserError:
        return None


def as_markdown(card: dict, config: dict, latency: str = '') -> str:
    """MODEL_CARD.md. latency: a table, in plain text."""
    training, accuracy, images = card['training'], card['accuracy'], card['images']
    training = {name: printable(value) for name, value in training.items()}     # a file says it
    taught = f', taught by {training["teacher"]} with `{training["method"]}`' if {'teacher', 'method'} <= {*training} \
        else ''
    rows = [(name, f'{facts["bytes"] / 1e6:.2f}', *_figures(facts), f'`{facts["sha256"]}`')
            for name, facts in card['files'].items()]
    reached = [(name, f'{found["test_acc"]:.2f}') for name in ('best epoch', 'last epoch')
               if isinstance(found := accuracy[name], dict) and isinstance(found.get('test_acc'), float)]
    seen = f'on the {accuracy["measured for this export"]["test images"]:,} test images of {card["measured on"]}'
    reached += [(f'{name}, {seen}', f'{accuracy[name]["top-1 %"]:.2f}')
                for name in ('measured for this export', 'teacher') if accuracy[name]]
    parts = [
        f'# {card["network"]}',
        f'{card["parameters"]:,} parameters, {len(card["classes"])} classes{taught}'
        + (f', on {training["data"]}.' if 'data' in training else '.'),
        '## Accuracy', _rows(('', 'top-1 of the test set in %'), reached),
        *([f'**The network predicts the class {printable(only)} for all test images: it cannot tell classes apart.**']
          if (only := card['gives one class alone']) is not None else []),
        '## Files',
        'Each was loaded again by its own runtime in a process of its own, and compared with the network in PyTorch on '
        'the whole test set.',
        _rows(('file', 'MB', 'top-1 %', 'same first class %', 'largest difference of logits', 'SHA-256'), rows),
        '## Use', f'Images: {images["taken as"]}, {images["layout"]}; every file but the weights normalises them '
        f'itself. {_square(images)}',        f'```python\n{three_lines(config)}\n```',
        *(['## Cost', f'```\n{latency}\n```'] if latency else []),
        '## Training', _rows(('', ''), [(name, f'`{value}`') for name, value in training.items()]),
        LAST_PART, _rows(('', ''), [(name, words or '') for name, words in card['to be filled in'].items()]),
    ]
    return '\n\n'.join(parts) + '\n'


def _figures(facts):
    return [f'{facts[name]:{form}}' if name in facts else '' for name, form in (
        ('top-1 %', '.2f'), ('same first class %', '.2f'), ('largest difference of logits', '.1e'))]


def _square(images):
    """How an image becomes a square of the net's size, as text."""
    size, fit = images['size'], images['fit']
    return f'Scale both sides to {size} pixels.' if fit == 'squash' else \
        f'Scale the longer side to {size} pixels, and fill the square with black on both sides.' if fit == 'pad' else \
        f'Scale the shorter side to {round(size / images["crop_pct"])} pixels and take the centre.'


def _rows(head, rows):
    return '\n'.join(f'| {" | ".join(printable(str(cell)).replace("|", "/") for cell in row)} |'
                     for row in (head, ['---'] * len(head), *rows))


def three_lines(config: dict) -> str:
    """Python that loads the weights."""
    call = {'timm': 'timm.create_model', 'torchvision': 'torchvision.models.get_model'}.get(config['library'])
    if call is None:
        return "from export.runtime import open_export         # of " + OWN + \
            "\nnet = open_export('student.safetensors')\nlogits = net(images)       # a numpy array, as above"
    given = ''.join(f', {key}={value!r}' for key, value in config['model_args'].items())
    inputs = config['inputs']
    return (f'import {config["library"]}, safetensors.torch\n'
            f'net = {call}({config["architecture"]!r}, num_classes={config["num_classes"]}{given})\n'
            f"net.load_state_dict(safetensors.torch.load_file('student.safetensors'))\n"
            f'# images of 0 to 1, less {inputs["mean"]}, divided by {inputs["std"]}')
