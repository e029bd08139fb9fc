"""An untrusted export: its configuration and its files are checked before anything of it is run."""
import hashlib
import math
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from dataset.imagenet import CROP_PCT
from helper.errors import UserError
from helper.files import open_regular, read_json
from models.find import LIBRARIES, NOT_SETTINGS
from models.inputs import check_inputs

from .formats import FORMATS
from .model_card import CARD
from .runtime import CONFIG


@dataclass
class ExportedFile:
    """A file of an export, and its configuration."""

    file: Path
    config: dict

    @classmethod
    def find(cls, given: str, flag: str) -> 'ExportedFile':
        """`given`: the folder, of which the first format is taken that can be run here, or a file in it.

        Raises UserError that begins with `flag`.
        """
        path = Path(given)
        folder = path if path.is_dir() else path.parent
        known = {form.file: form for form in FORMATS.values()}
        if path.is_dir():
            there = [name for name in PREFERRED if (path / FORMATS[name].file).exists()]
            if not there:
                raise UserError(f'{flag} {given}: holds no export; give the --out of scripts/export_student.py')
            path /= FORMATS[next((name for name in there if not missing(name)), there[0])].file
        elif not path.exists():
            raise UserError(f'{flag} {given}: no such file; give the folder of an export, or a file in it')
        elif path.name not in known:
            raise UserError(f'{flag} {given}: not a file of an export; they are {", ".join(known)}')
        name = next(name for name, form in FORMATS.items() if form.file == path.name)
        if libraries := missing(name):
            raise UserError(f'{flag} {path}: needs {" and ".join(libraries)}; pip install {" ".join(libraries)}')
        config = check_config(read_json(folder / CONFIG, f'{flag} {folder / CONFIG}'), f'{flag} {folder}')
        check_checksums(folder, [path.name, CONFIG], flag)
        if name == 'safetensors' and config['library'] in LIBRARIES:    # which would fetch hf-hub:NAME from the network
            LIBRARIES[config['library']].check(config['architecture'], f'{flag} {folder}: its {CONFIG} names')
        return cls(path, config)


PREFERRED = ('onnx', 'int8', 'fp16', 'pt2', 'safetensors')


def missing(name: str) -> list[str]:
    """The libraries that are not installed and without which a format cannot be run."""
    needs = [library for library in FORMATS[name].needs if library not in ('onnx', 'onnxscript')]
    return [library for library in needs if find_spec(library) is None]


def check_checksums(folder: Path, names: list[str], flag: str) -> None:
    """Compare files of an export with their SHA-256 in its model card; print a line if there is no card.

    Raises UserError that begins with `flag` for a file that has changed since the export.
    """
    card = folder / CARD
    if not card.exists():
        print(f'{folder}: has no {CARD}, so the SHA-256 of its files is not checked', file=sys.stderr)
        return
    content = read_json(card, f'{flag} {card}')
    files = content.get('files') if isinstance(content, dict) else None
    for name in names:
        facts = files.get(name) if isinstance(files, dict) else None
        if not isinstance(facts, dict) or not isinstance(facts.get('sha256'), str):
            raise UserError(f'{flag} {card}: has no SHA-256 of {name}; export it again')
        with open_regular(folder / name, f'{flag} {folder / name}') as file:
            found = hashlib.file_digest(file, 'sha256').hexdigest()
        if found != facts['sha256']:
            raise UserError(f'{flag} {folder / name}: damaged or changed since the export, its SHA-256 is not that of '
                            f'{CARD}; copy or export it again')


def check_config(config, what: str) -> dict:
    """An untrusted config.json. Raises UserError that begins with `what` where it is not that of an export."""
    config = config if isinstance(config, dict) else {}
    classes, arguments = config.get('classes'), config.get('model_args')
    inputs = config.get('inputs') if isinstance(config.get('inputs'), dict) else {}
    if not isinstance(classes, list) or not classes or not all(isinstance(name, str) for name in classes) \
            or config.get('num_classes') != len(classes) or config.get('dtype') not in ('uint8', 'float32') \
            or not all(isinstance(config.get(key), str) for key in ('architecture', 'library', 'arch')) \
            or not isinstance(config.get('inference_net'), str | None) or not isinstance(arguments, dict) \
            or {*arguments} & {*NOT_SETTINGS} or any('\ud800' <= c < '\udc80' for c in ''.join(classes)):
        raise UserError(f'{what}: its {CONFIG} is not that of an export: classes, dtype or the network are missing or '
                        f'odd; export it again')
    crop = inputs.get('crop_pct')
    if not isinstance(crop, float) or not any(math.isclose(crop, usual) for usual in (1.0, CROP_PCT)):
        raise UserError(f'{what}: its {CONFIG} has crop_pct {str(crop)[:20]}; it must be 1.0 or {CROP_PCT}')
    return {**config, 'inputs': {**check_inputs(inputs, what), 'crop_pct': crop}}
