"""The formats of an exported network: how each is written, and how near to the network it must stay."""
import copy
import io
import logging
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from helper.files import write_json

from .deployed_net import DeployedNet
from .runtime import CONFIG, INPUT, OUTPUT

OPSET = 20      # of ONNX


@dataclass
class Export:
    """What the formats are made of: the network, the kind of images it will take, and a folder to write into."""

    student: DeployedNet
    dtype: str                                      # uint8 or float32
    folder: Path
    calibration: Callable[[], Iterable[np.ndarray]]     # gives batches of training images, for int8

    @property
    def config(self) -> dict:
        """What config.json says."""
        return {**self.student.config, 'dtype': self.dtype}

    @property
    def example(self) -> dict:
        """What tells both of PyTorch's exporters that a batch has any size."""
        return {'args': (self.student.example(2, self.dtype), ),
                'dynamic_shapes': ({0: torch.export.Dim('batch', min=1)}, )}


@dataclass(frozen=True)
class Format:
    """A file of an export.

    needs: libraries beside PyTorch, to write it and to run it. agreement: the least part of the test images, in %, for
    which its first class must be the network's; None: its logits must be the network's, see check.TOLERANCE.
    """

    file: str
    words: str
    write: Callable[[Export, Path], None]
    needs: tuple[str, ...] = ()
    agreement: float | None = None


def _write_safetensors(export, file):
    from safetensors.torch import save
    net = export.student.net.net
    file.write_bytes(save({name: value.contiguous().clone() for name, value in net.state_dict().items()}))
    write_json(file.with_name(CONFIG), export.config)


def _write_pt2(export, file):
    content = io.BytesIO()      # PyTorch's own writer ends the process where a disk is full
    torch.export.save(torch.export.export(export.student.net, **export.example), content)
    file.write_bytes(content.getbuffer())


def _write_onnx(export, file, net=None):
    with _quiet():
        torch.onnx.export(net or export.student.net, f=file, **export.example, dynamo=True, external_data=False,
                          opset_version=OPSET, input_names=[INPUT], output_names=[OUTPUT], verbose=False)


def _write_fp16(export, file):
    _write_onnx(export, file, copy.deepcopy(export.student.net).half())


def _write_int8(export, file):
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.batches = iter(export.calibration())

        def get_next(self):
            batch = next(self.batches, None)
            return None if batch is None else {INPUT: batch}

    plain, prepared = (file.with_suffix(f'.{name}.onnx') for name in ('plain', 'prepared'))
    _write_onnx(export, plain)
    with _quiet():
        quant_pre_process(plain, prepared, skip_symbolic_shape=True)
        quantize_static(prepared, file, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
                        activation_type=QuantType.QInt8, weight_type=QuantType.QInt8)
    plain.unlink()
    prepared.unlink()


class _quiet(warnings.catch_warnings):
    """Without the advice that the exporters give to those who write networks."""

    def __enter__(self):
        super().__enter__()
        warnings.simplefilter('ignore')
        self.level = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error):
        logging.disable(self.level)
        super().__exit__(*error)


ONNX = ('onnx', 'onnxscript', 'onnxruntime')
FORMATS = {
    'safetensors': Format('student.safetensors', 'weights, with their configuration', _write_safetensors,
                          ('safetensors', )),
    'pt2': Format('student.pt2', 'torch.export', _write_pt2),
    'onnx': Format('student.onnx', 'ONNX', _write_onnx, ONNX),
    'int8': Format('student_int8.onnx', 'ONNX, 8 bits', _write_int8, ONNX, agreement=97),
    'fp16': Format('student_fp16.onnx', 'ONNX, 16 bits', _write_fp16, ONNX, agreement=99),
}
