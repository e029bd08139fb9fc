"""Run an exported network, each format by its own runtime; needs nothing of this repository for a library's net.

As a program it is a process with one such network: python export/runtime.py FILE [THREADS]. It reads requests, a
count and a batch of images each, runs the batch so many times, and writes the seconds that each run took with the peak
memory so far in bytes, then the logits.
"""
import contextlib
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
KINDS = {'.onnx': 'an ONNX file', '.pt2': 'a file of torch.export',
         '.safetensors': f'the weights of the net in {CONFIG}'}
INPUT, OUTPUT = 'images', 'logits'


def open_export(file: str | Path, threads: int | None = None) -> Callable[[np.ndarray], np.ndarray]:
    """The network in an exported file: images (N, 3, S, S) as the export takes them -> logits (N, classes).

    The format is that of its name: .onnx by onnxruntime, .pt2 by torch.export, .safetensors by PyTorch with the
    config.json beside it. threads: at most so many compute. Raises what a runtime raises for a file that it cannot run.
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
    from safetensors.torch import load_file
    config = json.loads(Path(file).with_name(CONFIG).read_text())
    weights = load_file(file)
    if config['library'] == 'timm':
        import timm
        net = timm.create_model(config['architecture'], num_classes=config['num_classes'], **config['model_args'])
        net.load_state_dict(weights)
    elif config['library'] == 'torchvision':
        import torchvision
        net = torchvision.models.get_model(config['architecture'], num_classes=config['num_classes'],
                                           **config['model_args'])
        net.load_state_dict(weights)
    else:
        sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
        from export.deployed_net import rebuild
        net = rebuild(config, weights)
    net.eval().requires_grad_(False)
    return _torch(_normalised(net, config['inputs']), threads)


def _normalised(net, inputs):
    import torch
    mean, std = (torch.tensor(inputs[key]).view(3, 1, 1) for key in ('mean', 'std'))

    def run(images):
        images = images.float() / 255 if images.dtype == torch.uint8 else images
        return net((images - mean) / std)
    return run


def _torch(net, threads):
    import torch
    if threads:
        torch.set_num_threads(threads)

    def run(images):
        with torch.no_grad():
            return net(torch.from_numpy(images)).float().numpy()
    return run


def peak_memory() -> float:
    """Bytes of this process at its peak; NaN where the system does not say."""
    status = Path('/proc/self/status')
    found = re.search(r'VmHWM:\s*(\d+) kB', status.read_text()) if status.exists() else None
    return int(found[1]) * 1024.0 if found else float('nan')


def send(file, array: np.ndarray) -> None:
    """Write an array to a pipe, which cannot seek."""
    content = io.BytesIO()
    np.lib.format.write_array(content, array)
    file.write(content.tell().to_bytes(8, 'little'))
    file.write(content.getbuffer())
    file.flush()


def receive(file) -> np.ndarray | None:
    """The array that `send` wrote; None at the end. Raises ValueError where the other side stopped in its middle."""
    count = file.read(8)
    return np.lib.format.read_array(io.BytesIO(file.read(int.from_bytes(count, 'little')))) if count else None


@contextlib.contextmanager
def _explained(fault: str):
    """End the process with one line: `fault`, and the runtime's message without the names of its exceptions."""
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:      # a runtime fails over a damaged file in any way
        names = r'\[ONNXRuntimeError\] : \d+ : \w+ : |\w*(Error|Exception)(\(s\) in [\w ]+:| while|:) '
        words = re.sub(names, '', ' '.join(str(error).split()))[:200]
        sys.exit(f'{fault} ({words or "its runtime does not say why"})')


def serve(file: str, threads: int | None = None) -> None:
    """Answer requests until there are no more."""
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), 'wb')
    os.dup2(2, 1)       # what a library prints must not get between the answers
    with _explained(f'damaged, cut short, or not {KINDS[Path(file).suffix]}'):
        run = open_export(file, threads)
    while (count := receive(requests)) is not None:
        images, seconds = receive(requests), []
        for _ in range(int(count)):
            start = time.perf_counter()
            with _explained(f'cannot take {images.dtype} images of shape {images.shape}'):
                logits = run(images)
            seconds.append(time.perf_counter() - start)
        send(answers, np.array([*seconds, peak_memory()]))
        send(answers, np.ascontiguousarray(logits, np.float32))


if __name__ == '__main__':
    sys.path.pop(0)     # this folder
    serve(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else None)
