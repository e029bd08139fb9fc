"""The export formats: how each file is written, and how closely it must agree with the network."""
import contextlib
import errno
import io
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

from helper.errors import UserError, reason
from helper.files import write_json

from .deployed_net import DeployedNet
from .int8 import Calibration, write_int8
from .qat import integer_net
from .runtime import CONFIG, INPUT, OUTPUT

OPSET = 20      # of ONNX


@dataclass
class Export:
    """A network, the images that its files take, and the folder to write them into."""

    network: DeployedNet
    dtype: str                                      # uint8 or float32
    folder: Path
    calibration: Calibration | None                 # for int8
    file_details: dict[str, dict] = field(default_factory=dict)    # of the files by format, for the model card

    @property
    def config(self) -> dict:
        """The content of config.json."""
        return {**self.network.config, 'dtype': self.dtype}

    @property
    def example(self) -> dict:
        """Arguments of torch.export.export and torch.onnx.export for batches of any size."""
        return {'args': (self.network.example(2, self.dtype), ),
                'dynamic_shapes': ({0: torch.export.Dim('batch', min=1)}, )}

    def file(self, name: str) -> Path:
        """The path of a format's file."""
        return self.folder / FORMATS[name].file

    def write(self, name: str) -> str:
        """Write the file of a format. Returns why the exporter could not; '' if it could."""
        try:
            FORMATS[name].write(self, self.file(name))
        except (UserError, OSError):
            raise
        except Exception as error:      # exporters raise anything for a net that they do not support
            if shutil.disk_usage(self.folder).free < 2**20:     # each reports a full disk differently
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
            return f'{type(error).__name__}: {reason(error)}'
        return ''


@dataclass(frozen=True)
class Format:
    """A file of an export."""

    file: str
    description: str
    write: Callable[[Export, Path], None]
    needs: tuple[str, ...] = ()         # libraries beside PyTorch that write and run it
    # The least share of test images, in %, for which it must predict the network's class; None: its logits must be
    # equal, see verify.TOLERANCE.
    agreement: float | None = None


def _write_safetensors(export, file):
    from safetensors.torch import save
    net = export.network.net.net
    file.write_bytes(save({name: value.contiguous().clone() for name, value in net.state_dict().items()}))
    write_json(file.with_name(CONFIG), export.config)


def _write_pt2(export, file):
    content = io.BytesIO()      # PyTorch's own writer ends the process if the disk is full
    torch.export.save(torch.export.export(export.network.net, **export.example), content)
    file.write_bytes(content.getbuffer())


def _write_onnx(export, file, net=None):
    with _quiet():
        torch.onnx.export(net or export.network.net, f=file, **export.example, dynamo=True, external_data=False,
                          opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False)


def _write_fp16(export, file):
    _write_onnx(export, file, export.network.net.copy().half())


def _write_int8(export, file):
    if rounded := export.network.rounded:
        net = rounded.copy()
        net.net = integer_net(net.net, export.network.size)
        _write_onnx(export, file, net)
        export.file_details['int8'] = {'ranges': '--qat'}
        return
    with tempfile.TemporaryDirectory(dir=file.parent) as folder, _quiet():
        plain = Path(folder, 'plain.onnx')
        _write_onnx(export, plain)
        export.file_details['int8'] = write_int8(plain, file, export.network.net, export.dtype, export.calibration,
                                          FORMATS['int8'].agreement)


@contextlib.contextmanager
def _quiet():
    """Hide the warnings of the exporters, which are for authors of networks."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action='ignore'):
            yield
    finally:
        logging.disable(level)


ONNX = ('onnx', 'onnxscript', 'onnxruntime')
FORMATS = {
    'safetensors': Format('student.safetensors', 'weights, with their configuration', _write_safetensors,
                          ('safetensors', )),
    'pt2': Format('student.pt2', 'torch.export', _write_pt2),
    'onnx': Format('student.onnx', 'ONNX', _write_onnx, ONNX),
    'int8': Format('student_int8.onnx', 'ONNX, 8 bits', _write_int8, ONNX, agreement=97),
    'fp16': Format('student_fp16.onnx', 'ONNX, 16 bits', _write_fp16, ONNX, agreement=99),
}
