"""Open an untrusted export: its configuration and checksums are checked before anything runs."""
import hashlib
import sys
from importlib.util import find_spec
from pathlib import Path

from helper.errors import UserError
from helper.files import open_regular, read_json
from models.find import LIBRARIES, NOT_SETTINGS
from models.inputs import check_inputs

from .formats import FORMATS
from .model_card import CARD
from .runtime import CONFIG

PREFERRED = ('onnx', 'int8', 'fp16', 'pt2', 'safetensors')


def find_export(given: str, flag: str) -> tuple[Path, dict]:
    """(a file of an export, the content of config.json). In a folder, the first of PREFERRED that can run here.
    Raises UserError."""
    path, names = Path(given), {form.file: name for name, form in FORMATS.items()}
    if path.is_dir():
        present = [name for name in PREFERRED if (path / FORMATS[name].file).exists()]
        if not present:
            raise UserError(f'{flag} {given}: holds no export; give the --out of scripts/export_student.py')
        path /= FORMATS[next((name for name in present if not missing_libraries(name)), present[0])].file
    elif not path.exists():
        raise UserError(f'{flag} {given}: no such file; give the folder of an export, or a file in it')
    elif path.name not in names:
        raise UserError(f'{flag} {given}: not a file of an export; they are {", ".join(names)}')
    name, folder = names[path.name], path.parent
    if libraries := missing_libraries(name):
        raise UserError(f'{flag} {path}: needs {" and ".join(libraries)}; pip install {" ".join(libraries)}')
    config = check_config(read_json(folder / CONFIG, f'{flag} {folder / CONFIG}'), f'{flag} {folder}')
    check_checksums(folder, [path.name, CONFIG], flag)
    if name == 'safetensors' and config['library'] in LIBRARIES:    # timm would download hf-hub:NAME
        LIBRARIES[config['library']].check(config['architecture'], f'{flag} {folder}: its {CONFIG} names')
    return path, config


def missing_libraries(name: str) -> list[str]:
    """The libraries that running a format needs and that are not installed."""
    return [library for library in FORMATS[name].needs
            if library not in ('onnx', 'onnxscript') and find_spec(library) is None]


def check_checksums(folder: Path, names: list[str], flag: str) -> None:
    """Compare files of an export with their SHA-256 in its model card, if there is one. Raises UserError."""
    card = folder / CARD
    if not card.exists():
        print(f'{folder}: has no {CARD}, so the SHA-256 of its files is not checked', file=sys.stderr)
        return
    content = read_json(card, f'{flag} {card}')
    for name in names:
        try:
            expected = content['files'][name]['sha256']
        except (LookupError, TypeError, AttributeError):
            raise UserError(f'{flag} {card}: has no SHA-256 of {name}; export it again') from None
        with open_regular(folder / name, f'{flag} {folder / name}') as file:
            if hashlib.file_digest(file, 'sha256').hexdigest() != expected:
                raise UserError(f'{flag} {folder / name}: damaged or changed since the export, its SHA-256 is not that '
                                f'of {CARD}; copy or export it again')


def check_config(config, source: str) -> dict:
    """An untrusted config.json, checked. Raises UserError that begins with `source` if it is not one of an export."""
    config = config if isinstance(config, dict) else {}
    classes, arguments = config.get('classes'), config.get('model_args')
    inputs = config.get('inputs') if isinstance(config.get('inputs'), dict) else {}
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes) \
            or config.get('num_classes') != len(classes) or config.get('dtype') not in ('uint8', 'float32') \
            or not all(isinstance(config.get(key), str) for key in ('architecture', 'library', 'arch')) \
            or not isinstance(config.get('inference_net'), str | None) or not isinstance(arguments, dict) \
            or {*arguments} & {*NOT_SETTINGS} or any('\ud800' <= c < '\udc80' for c in ''.join(classes)):
        raise UserError(f'{source}: its {CONFIG} is not one of an export: classes, dtype or the network are missing '
                        f'or invalid; export it again')
    return {**config, 'inputs': check_inputs(inputs, f'{source}: its {CONFIG}')}
