"""The library of kernels is saved for later runs; a damaged or untrusted file is never loaded."""
import os
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT
from torch.nn.grad import conv2d_input, conv2d_weight

from cpu_kernels import build
from cpu_kernels.batchnorm import batch_norm
from cpu_kernels.winograd import conv3x3, input_gradient, weight_gradient

try:
    build.library()
except OSError as missing:
    pytest.skip(f'kernels: {missing}', allow_module_level=True)

# Uses the library; prints whether it was built, and the number of OpenMP runtimes in the process.
PROGRAM = """
import torch
from cpu_kernels.build import library
from cpu_kernels.winograd import conv3x3
assert torch.allclose(conv3x3(torch.ones(1, 16, 4, 4), torch.ones(16, 16, 3, 3))[0, 0, 1, 1], torch.tensor(144.0))
print(library().was_built)
try:
    print(len({line.split()[-1] for line in open('/proc/self/maps') if 'omp' in line.rpartition('/')[2]}))
except OSError:
    print(1)
"""


def start(cache):
    return subprocess.Popen([sys.executable, '-c', PROGRAM], cwd=ROOT, env={**os.environ, 'XDG_CACHE_HOME': str(cache)},
                            stdout=subprocess.PIPE, text=True)


def finish(process):
    """(whether the library was built, number of OpenMP runtimes)"""
    out = process.communicate()[0].split()
    assert process.returncode == 0
    return out[0] == 'True', int(out[1])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
    build.library.cache_clear()
    yield tmp_path
    build.library.cache_clear()


def was_built():
    build.library.cache_clear()
    return build.library().was_built


@pytest.mark.slow
def test_found_by_later_runs(cache):
    """Two runs that start at once both build it; a later run loads the saved file."""
    assert [finish(p) for p in [start(cache) for _ in range(2)]] == [(True, 1)] * 2
    kept, = cache.glob('semckd-kernels/*.so')
    assert len(list(kept.parent.iterdir())) == 2 and not kept.parent.stat().st_mode & 0o077
    assert not was_built()


def test_damaged_or_open_to_others(cache, monkeypatch):
    """A damaged file, or one that others can write, is built again."""
    monkeypatch.setattr(build, 'FLAGS', (*build.FLAGS, '-O0'))      # compiles in a third of the time
    assert was_built() and not was_built()
    kept, = cache.glob('semckd-kernels/*.so')
    with open(kept, 'r+b') as file:     # not the file that this process has loaded
        data = file.read()
    kept.unlink()
    kept.write_bytes(data[:20000])
    assert was_built() and not was_built()
    kept.with_suffix('.sha256').write_bytes(b'\xff')
    assert was_built() and not was_built()
    kept.chmod(0o666)
    assert was_built() and not was_built()


def test_a_folder_that_cannot_be_written_to(cache, monkeypatch):
    monkeypatch.setattr(build, 'FLAGS', (*build.FLAGS, '-O0'))
    (cache / 'semckd-kernels').write_text('a file')
    assert was_built() and was_built()


def test_what_cannot_be_built(cache, monkeypatch):
    monkeypatch.setattr(build, 'FLAGS', ('--no-such-flag',))
    with pytest.raises(OSError, match='could not build winograd.cpp: .*no-such-flag'):
        build.library()


@pytest.mark.skipif(torch.backends.cpu.get_cpu_capability() != 'AVX512', reason='8 lanes are used here anyway')
def test_eight_lanes(cache, monkeypatch):
    """The kernels for processors with AVX2, which have 8 floats a register."""
    monkeypatch.setattr(build, 'FLAGS', (*build.FLAGS, '-mno-avx512f'))
    images, weight = torch.randn(3, 32, 14, 9), torch.randn(48, 32, 3, 3)
    grad = torch.randn(3, 48, 14, 9)
    near = {'rtol': 0, 'atol': 1e-3}
    assert torch.allclose(conv3x3(images, weight), F.conv2d(images, weight, padding=1), **near)
    assert torch.allclose(input_gradient(grad, weight), conv2d_input(images.shape, weight, grad, padding=1), **near)
    assert torch.allclose(weight_gradient(images, grad), conv2d_weight(images, weight.shape, grad, padding=1), **near)
    found = []
    for function in (lambda norm, x: F.relu(norm(x)), lambda norm, x: batch_norm(norm, x, relu=True)):
        x = grad.clone().requires_grad_()
        y = function(torch.nn.BatchNorm2d(48), x)
        found.append([y, *torch.autograd.grad(y.pow(3).sum(), x)])
    assert all(torch.allclose(a, b, **near) for a, b in zip(*found, strict=True))
