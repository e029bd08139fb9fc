"""--int8: ONNX in 8 bits. Held-out training images decide on the activation ranges and on layers that stay in float."""
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

METHODS = ('minmax', 'entropy', 'percentile')       # onnxruntime's calibration methods
PERCENTILE = 99.99      # of an activation's values are within its range (Wu et al., 2020, arXiv:2004.09602)
# Bins of a histogram. The time of `entropy` grows with their square; with onnxruntime's default, 128, it only finds the
# range of `minmax`.
BINS = {'entropy': 512, 'percentile': 2**14}
MOST_FLOAT_LAYERS = 10


@dataclass(frozen=True)
class Calibration:
    """The training images for --int8."""

    batches: Callable[[], Iterable[np.ndarray]]     # returns batches in the export's dtype that give the ranges
    # Returns a loader of other images to compare the candidates on; None: use the first method and quantise all layers.
    held_out: Callable[[], Iterable] | None
    order: list[int] | None = None                  # as in verify.evaluate
    methods: tuple[str, ...] = METHODS              # to compare


def write_int8(plain: Path, file: Path, net: NormalisedNet, dtype: str, calibration: Calibration,
               agreement: float) -> dict:
    """Quantise `plain`, the ONNX file of `net`, to 8 bits in `file`. Returns the settings used, for the model card.

    Without held-out images the first method gives the ranges, and {} is returned. Otherwise the methods are compared on
    these images: a file for which at least `agreement` % get the class of `net` is better than any other, then the
    accuracy counts, then that agreement, then the smallest difference of a logit. If no file reaches `agreement`, the
    layers whose quantisation changes the logits most stay in float. Temporary files lie beside `plain`.
    """
    import onnx
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = plain.with_name('prepared.onnx')
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

    def measure(candidates):
        return evaluate(net, candidates, loader, dtype, order=calibration.order).formats

    candidates = {method: plain.with_name(f'{method}.onnx') for method in ranges}
    for method, candidate in candidates.items():
        _quantise(prepared, candidate, ranges[method])
    results = measure(candidates)
    best_method = max(results, key=lambda method: _quality(results[method], agreement))
    print(f'{file.name}: {best_method} ranges; on held-out training images: '
          f'{"; ".join(f"{method}: {_describe(result)}" for method, result in results.items())}', flush=True)
    candidates[best_method].replace(file)
    best, float_layers = results[best_method], []
    if best.fault(agreement):
        trial, images = plain.with_name('trial.onnx'), pixels(loader, next(iter(loader))[0], dtype)
        layers = _layers_by_error(prepared, trial, ranges[best_method], images)[:MOST_FLOAT_LAYERS]
        for count in range(1, len(layers) + 1):
            _quantise(prepared, trial, ranges[best_method], exclude=layers[:count])
            result = measure({'trial': trial})['trial']
            if not result.failure and (best.failure or result.agreement > best.agreement):
                best, float_layers = result, layers[:count]
                trial.replace(file)
            if not best.fault(agreement):
                break
        print(f'{file.name}: less than {agreement} % of the same class, so these layers stay in float: '
              f'{", ".join(float_layers) or "none"}; on held-out training images then: {_describe(best)}', flush=True)
    return {'ranges': best_method, 'layers in float': float_layers, 'on held-out training images': _describe(best)}


def _quality(result: Evaluation, agreement):
    """A sort key; larger is better."""
    is_good = not result.fault(agreement)
    return (is_good, ) if result.failure else (is_good, result.top1, result.agreement, -result.difference)


def _describe(result: Evaluation):
    return result.failure or (f'top-1 {result.top1:.2f}, the same class for {result.agreement:.2f} %, logits differ '
                              f'by up to {result.difference:.1e}')


def _ranges(prepared, calibration):
    """{method: onnxruntime's TensorsData, the range of each activation}."""
    from onnxruntime.quantization.calibrate import HistogramCollector

    with contextlib.redirect_stdout(io.StringIO()):     # the calibrators print their steps
        calibrator = _calibrator(prepared, 'minmax')
        calibrator.collect_data(_reader(calibration.batches()))
        ranges = {'minmax': calibrator.compute_data()}
        for method in BINS.keys() & calibration.methods:
            calibrator = _calibrator(prepared, method)
            # onnxruntime keeps all activations of a call in memory, so each call gets one batch. The histograms start
            # with the extremes of all batches, so that their width is final.
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
    """The batches as a CalibrationDataReader of onnxruntime."""
    inputs = ({INPUT: batch} for batch in batches)
    return SimpleNamespace(get_next=lambda: next(inputs, None))


def _operators():
    """The operators that onnxruntime can quantise."""
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
    return sorted({*QDQRegistry, *QLinearOpsRegistry})


def _quantise(prepared, file, ranges, only=(), exclude=()):
    """Write a file in 8 bits. only: names of the nodes to quantise, all if empty. exclude: names that stay in float."""
    import onnx
    from onnxruntime.quantization import QDQQuantizer, QuantType
    # Unsigned activations: if a signed activation is the input of two layers, onnxruntime leaves them in float.
    quantizer = QDQQuantizer(onnx.load(prepared), True, False, QuantType.QInt8, QuantType.QUInt8, ranges, [*only],
                             [*exclude], _operators(), {})
    quantizer.quantize_model()
    quantizer.model.save_model_to_file(str(file))


def _layers_by_error(prepared, trial, ranges, images):
    """Quantise each layer alone. Return the names of those that change the logits, the largest mean change first."""
    import onnx
    expected, errors = open_export(prepared)(images), {}
    for node in onnx.load(prepared).graph.node:
        if node.op_type in _operators():
            _quantise(prepared, trial, ranges, only=[node.name])
            errors[node.name] = float(np.abs(open_export(trial)(images) - expected).mean())
    return sorted((name for name in errors if errors[name]), key=errors.get, reverse=True)
