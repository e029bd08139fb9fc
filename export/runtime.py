"""Run an exported file by its own runtime. A net of timm or torchvision needs nothing else from this repository.

As a program, python export/runtime.py FILE [THREADS], it reads requests from stdin: a count and a batch of images. It
runs the batch that many times, and writes the seconds of each run with the peak memory in bytes, then the logits.
"""
import contextlib
import importlib
import io
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

CONFIG = 'config.json'
KINDS = {'.onnx': 'an ONNX file', '.pt2': 'a torch.export file', '.safetensors': f'the weights of the net in {CONFIG}'}
BUILDERS = {'timm': ('timm', 'create_model'), 'torchvision': ('torchvision.models', 'get_model')}       # of libraries
INPUT, OUTPUT = 'images', 'logits'


def open_export(file: str | Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The network in an exported file, a function of images (N, 3, S, S) in the export's dtype -> logits (N, classes).

    onnxruntime runs .onnx, torch.export .pt2, and PyTorch .safetensors with the config.json beside it. threads: the
    most that compute. Raises any exception of a runtime that cannot run the file.
    """
    return {'.onnx': _onnx, '.pt2': _pt2, '.safetensors': _safetensors}[Path(file).suffix](str(file), threads)


def _onnx(file, threads):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file, options, providers=['CPUExecutionProvider'])
    return lambda images: session.run([OUTPUT], {INPUT: images})[0]


def _pt2(file, threads):
    import torch
    return _torch(torch.export.load(file).module(), threads)


def _safetensors(file, threads):
    import torch
    from safetensors.torch import load_file
    config = json.loads(Path(file).with_name(CONFIG).read_text())
    weights = load_file(file)
    if config['library'] in BUILDERS:
        module, function = BUILDERS[config['library']]
        build = getattr(importlib.import_module(module), function)
        net = build(config['architecture'], num_classes=config['num_classes'], **config['model_args'])
        net.load_state_dict(weights)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from export.deployed_net import rebuild
        net = rebuild(config, weights)
    net.eval().requires_grad_(False)
    mean, std = (torch.tensor(config['inputs'][key]).view(3, 1, 1) for key in ('mean', 'std'))

    def normalise_and_run(images):
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return net((images - mean) / std)
    return _torch(normalise_and_run, threads)


def _torch(net, threads):
    import torch
    if threads:
        torch.set_num_threads(threads)

    def run(images):
        with torch.no_grad():
            return net(torch.from_numpy(images)).float().numpy()
    return run


def peak_memory() -> float:
    """The peak memory of this process in bytes; NaN where the system does not report it."""
    status = Path('/proc/self/status')
    match = re.search(r'VmHWM:\s*(\d+) kB', status.read_text()) if status.exists() else None
    return int(match[1]) * 1024.0 if match else float('nan')


def send(file, array: np.ndarray) -> None:
    """Write an array to a pipe, which cannot seek."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    file.write(content.tell().to_bytes(8, 'little'))
    file.write(content.getbuffer())
    file.flush()


def receive(file) -> np.ndarray | None:
    """The array that `send` wrote; None at the end. Raises ValueError if the other side stopped in the middle."""
    size = file.read(8)
    return np.lib.format.read_array(io.BytesIO(file.read(int.from_bytes(size, 'little')))) if size else None


@contextlib.contextmanager
def _explained(fault: str):
    """End the process with one line on an error: `fault`, and the runtime's message without names of exceptions."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:      # runtimes raise anything for a damaged file
        names = r'\[ONNXRuntimeError\] : \d+ : \w+ : |\w*(Error|Exception)(\(s\) in [\w ]+:| while|:) '
        text = re.sub(names, '', ' '.join(str(error).split()))[:200]
        sys.exit(f'{fault} ({text or "its runtime gives no reason"})')


def serve(file: str, threads: int | None = None) -> None:
    """Answer requests until there are no more."""
    requests, output = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)       # libraries print to stdout
    with _explained(f'damaged, cut short, or not {KINDS[Path(file).suffix]}'):
        run = open_export(file, threads)
    while (count := receive(requests)) is not None:
        images, seconds = receive(requests), []
        for _ in range(int(count)):
            start = time.perf_counter()
            with _explained(f'cannot take {images.dtype} images of shape {images.shape}'):
                logits = run(images)
            seconds.append(time.perf_counter() - start)
        send(output, np.array([*seconds, peak_memory()]))
        send(output, np.ascontiguousarray(logits, np.float32))


if __name__ == '__main__':
    sys.path.pop(0)     # this folder
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
