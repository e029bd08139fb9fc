"""--int8: ONNX in 8 bits. Held-out training images choose the activation ranges and the layers that stay in float."""
import contextlib
import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from .deployed_net import NormalisedNet
from .runtime import INPUT, open_export
from .verify import Evaluation, evaluate, pixels

METHODS = ('minmax', 'entropy', 'percentile')       # onnxruntime's ways from the values of an activation to its range
PERCENTILE = 99.99      # of the values of an activation, within its range (Wu et al., 2020, arXiv 2004.09602)
# Bins of a histogram. The time of `entropy` grows with their square; with onnxruntime's own 128, its range is that of
# `minmax`.
BINS = {'entropy': 512, 'percentile': 2**14}
TRIALS = 10             # the most layers that the search leaves in float


@dataclass(frozen=True)
class Calibration:
    """The training images for 8 bits."""

    batches: Callable[[], Iterable[np.ndarray]]     # returns batches in the export's dtype, which give the ranges
    # Returns a loader of other images, which choose; None: take the first method, and quantise all layers.
    held_out: Callable[[], Iterable] | None
    order: list[int] | None = None                  # see verify.evaluate
    methods: tuple[str, ...] = METHODS              # to choose from


def write_int8(plain: Path, file: Path, net: NormalisedNet, dtype: str, calibration: Calibration,
               agreement: float) -> dict:
    """Write the ONNX file `plain` of `net` to `file` in 8 bits. Returns what was chosen, for the model card.

    The held-out images choose the ranges, if possible among those with an agreement with `net` of at least `agreement`
    %: by the accuracy, then by the agreement, then by the smallest difference of a logit. If no ranges reach that
    agreement, the layers whose quantisation changes the logits most stay in float, one more in each trial. Temporary
    files lie beside `plain`.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared, trial = plain.with_name('prepared.onnx'), plain.with_name('trial.onnx')
    quant_pre_process(plain, prepared, skip_symbolic_shape=True)
    model = onnx.load(prepared)
    for node in model.graph.node:       # onnxruntime gives fused nodes no name, and leaves layers in float by name
        node.name = node.name or node.output[0]
    onnx.save(model, prepared)
    ranges = _ranges(prepared, calibration)
    if calibration.held_out is None:
        _quantise(prepared, file, ranges[calibration.methods[0]])
        return {}
    loader = calibration.held_out()

    def measure(files):
        return evaluate(net, files, loader, dtype, order=calibration.order).formats

    files = {method: plain.with_name(f'{method}.onnx') for method in ranges}
    for method, candidate in files.items():
        _quantise(prepared, candidate, ranges[method])
    results = measure(files)
    chosen = max(results, key=lambda method: _quality(results[method], agreement))
    print(f'{file.name}: {chosen} ranges; on held-out training images: '
          f'{"; ".join(f"{method}: {_described(result)}" for method, result in results.items())}', flush=True)
    files[chosen].replace(file)
    best, in_float = results[chosen], []
    if best.fault(agreement):
        first_batch = pixels(loader, next(iter(loader))[0], dtype)
        layers = _by_error(prepared, trial, ranges[chosen], first_batch)[:TRIALS]
        for count in range(1, len(layers) + 1):
            _quantise(prepared, trial, ranges[chosen], exclude=layers[:count])
            result = measure({'trial': trial})['trial']
            if not result.failure and (best.failure or result.agreement > best.agreement):
                best, in_float = result, layers[:count]
                trial.replace(file)
            if not best.fault(agreement):
                break
        print(f'{file.name}: less than {agreement} % of the same class, so these layers stay in float: '
              f'{", ".join(in_float) or "none"}; on held-out training images then: {_described(best)}', flush=True)
    return {'ranges': chosen, 'layers in float': in_float, 'on held-out training images': _described(best)}


def _quality(result: Evaluation, agreement):
    """A sort key; larger is better."""
    reaches = not result.fault(agreement)
    return (reaches, ) if result.failure else (reaches, result.top1, result.agreement, -result.difference)


def _described(result: Evaluation):
    return result.failure or (f'top-1 {result.top1:.2f}, the same class for {result.agreement:.2f} %, logits differ '
                              f'by up to {result.difference:.1e}')


def _ranges(prepared, calibration):
    """{method: the ranges of all activations, as onnxruntime's TensorsData}."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    with contextlib.redirect_stdout(io.StringIO()):     # the calibrators print their steps
        calibrator = _calibrator(prepared, 'minmax')
        calibrator.collect_data(_reader(calibration.batches()))
        ranges = {'minmax': calibrator.compute_data()}
        for method in BINS.keys() & calibration.methods:
            calibrator = _calibrator(prepared, method)
            # The histograms start with the extremes of each activation. So their width is final, and they can count
            # batch by batch: onnxruntime keeps all activations of a call in memory.
            calibrator.collector = HistogramCollector(method, False, BINS[method], 128, PERCENTILE, 'same')
            calibrator.collector.collect({tensor: np.ravel(data.range_value)
                                          for tensor, data in ranges['minmax'].items()})
            for batch in calibration.batches():
                calibrator.collect_data(_reader([batch]))
            ranges[method] = calibrator.compute_data()
    return {method: ranges[method] for method in calibration.methods}


def _calibrator(prepared, method):
    from onnxruntime.quantization import CalibrationMethod, create_calibrator
    kind = {'minmax': CalibrationMethod.MinMax, 'entropy': CalibrationMethod.Entropy,
            'percentile': CalibrationMethod.Percentile}[method]
    return create_calibrator(prepared, _operators(), str(prepared.with_name('augmented.onnx')), kind,
                             extra_options={'symmetric': False})


def _reader(batches):
    """onnxruntime's CalibrationDataReader of these batches."""
    inputs = ({INPUT: batch} for batch in batches)
    return SimpleNamespace(get_next=lambda: next(inputs, None))


def _operators():
    """The operators that onnxruntime can quantise."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _quantise(prepared, file, ranges, only=(), exclude=()):
    """Write a file in 8 bits. only, exclude: names of nodes to quantise, or not to; without `only` all."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    # Unsigned activations: onnxruntime leaves layers in float that read an activation which another layer also reads,
    # if it is signed.
    quantizer = QDQQuantizer(onnx.load(prepared), True, False, QuantType.QInt8, QuantType.QUInt8, ranges, [*only],
                             [*exclude], _operators(), {})
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(file))


def _by_error(prepared, trial, ranges, images):
    """The names of the layers whose quantisation alone changes the logits, the largest mean change first."""
    import onnx
    expected, errors = open_export(prepared)(images), {}
    for node in onnx.load(prepared).graph.node:
        if node.op_type in _operators():
            _quantise(prepared, trial, ranges, only=[node.name])
            errors[node.name] = float(np.abs(open_export(trial)(images) - expected).mean())
    return sorted((name for name in errors if errors[name]), key=errors.get, reverse=True)
