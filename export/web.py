"""--web: a folder with a page that runs the exported networks in a browser, by onnxruntime-web."""
import base64
import hashlib
import http.client
import io
import os
import shutil
import tarfile
import urllib.request
from pathlib import Path

import torch

from helper.errors import UserError, reason
from helper.files import make_folder, open_regular, write_atomically, write_json

from .deployed_net import DeployedNet
from .formats import FORMATS, Export
from .runtime_process import RuntimeProcess
from .verify import Evaluation

PACKAGE = 'onnxruntime-web-1.30.0.tgz'      # of the npm registry, MIT licence
URL = f'https://registry.npmjs.org/onnxruntime-web/-/{PACKAGE}'
# Base64, from `npm view onnxruntime-web@1.30.0 dist.integrity`.
SHA512 = 'q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=='
MAX_BYTES = 1 << 26     # of the package
# The files of the page's folder. Some web servers do not know the suffix .mjs, and browsers then refuse the module.
RUNTIME = {'ort.js': 'package/dist/ort.wasm.bundle.min.mjs',
           'ort-wasm-simd-threaded.wasm': 'package/dist/ort-wasm-simd-threaded.wasm'}
PAGE = Path(__file__).with_name('page')
PAGE_FILES = ('index.html', 'page.css', 'page.js', 'classifier.js')
NETWORKS, TEACHER = 'networks.json', 'teacher.onnx'
ONNX_FILES = {name: form.file for name, form in FORMATS.items() if form.file.endswith('.onnx')}
FOLDER = 'web'
FILES = {FOLDER, *(f'{FOLDER}/{name}' for name in (*RUNTIME, *PAGE_FILES, NETWORKS, TEACHER, *ONNX_FILES.values()))}
IMAGES = 16             # random images on which the teacher's file is compared with the teacher


def read_runtime(given: str | None) -> dict[str, bytes]:
    """RUNTIME: the name of a file in the page's folder -> its content. given: the value of --web_runtime.

    Without it, the package is downloaded once and kept in the user's cache folder. Raises UserError for another package
    than PACKAGE, and if it cannot be downloaded.
    """
    if given:
        with open_regular(given, f'--web_runtime {given}') as file:
            content = file.read(MAX_BYTES)
        if not _is_package(content):
            raise UserError(f'--web_runtime {given}: is not {PACKAGE}, or is damaged (SHA-512 differs); download it '
                            f'from {URL}')
    else:
        content = _cached_package()
    with tarfile.open(fileobj=io.BytesIO(content)) as package:
        return {name: package.extractfile(member).read() for name, member in RUNTIME.items()}


def _is_package(content):
    return base64.b64encode(hashlib.sha512(content).digest()).decode() == SHA512


def _cached_package():
    """The content of PACKAGE, from the cache folder or from the registry."""
    folder = Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'onnxruntime-web'
    file = folder / PACKAGE
    content = file.read_bytes() if file.is_file() else b''
    if not _is_package(content):
        make_folder(folder, f'--web: XDG_CACHE_HOME {folder.parent}')
        print(f'downloading {URL} into {folder}', flush=True)
        content = _download()
        write_atomically(file, content)
    return content


def _download():
    instead = f'download it on another machine and give --web_runtime {PACKAGE}'
    try:
        with urllib.request.urlopen(URL, timeout=30) as response:
            content = response.read(MAX_BYTES)
    except (OSError, http.client.HTTPException) as error:
        raise UserError(f'--web: cannot download {URL} ({reason(error)}); {instead}') from error
    if not _is_package(content):
        raise UserError(f'--web: the download of {URL} is damaged or was changed (SHA-512 differs); {instead}')
    return content


def write(export: Export, names: list[str], teacher: DeployedNet | None, runtime: dict[str, bytes]) -> str:
    """Write the page and what it runs into the folder FOLDER of an export. Returns the student's file.

    names: the student's verified formats; the page runs the smallest ONNX file. runtime: of read_runtime. Raises
    UserError if the teacher cannot be written as ONNX.
    """
    folder = export.folder / FOLDER
    folder.mkdir()
    student = min((export.file(name) for name in names if name in ONNX_FILES), key=lambda file: file.stat().st_size)
    networks = [_described('student', export.network, student.name, export.dtype)]
    if teacher:
        _write_teacher(teacher, export, folder)
        networks.append(_described('teacher', teacher, TEACHER, export.dtype))
    shutil.copy(student, folder)
    for name in PAGE_FILES:
        shutil.copy(PAGE / name, folder)
    for name, content in runtime.items():
        (folder / name).write_bytes(content)
    write_json(folder / NETWORKS, networks)
    return student.name


def _described(role, network, file, dtype):
    """Describe a network for the page, which shows the names as text, because they are untrusted."""
    return {'role': role, 'name': network.name, 'file': file, 'dtype': dtype, 'classes': network.config['classes'],
            'inputs': network.config['inputs']}


def _write_teacher(teacher, export, folder):
    """Write TEACHER, and compare it with the teacher."""
    written = Export(teacher, export.dtype, folder, export.calibration)
    if not (fault := written.write('onnx')):
        images, comparison = teacher.example(IMAGES, export.dtype), Evaluation()
        with torch.no_grad():
            expected = teacher.net(images).numpy()
        with RuntimeProcess(written.file('onnx')) as process:
            comparison.add(process.run(images.numpy())[0], expected, expected.argmax(1))
        fault = comparison.fault(FORMATS['onnx'].agreement)
    if fault:
        raise UserError(f'--web_teacher: {teacher.name} cannot be written as ONNX ({fault}); leave the flag out')
    written.file('onnx').rename(folder / TEACHER)
