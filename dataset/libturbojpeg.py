"""libturbojpeg 3, called by ctypes: decode a region of a JPEG file, maybe at a reduced size."""
import contextlib
import ctypes
import ctypes.util
import functools
import importlib.util

import numpy as np


class _Region(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ('x', 'y', 'width', 'height')]


class _Factor(ctypes.Structure):
    _fields_ = [(name, ctypes.c_int) for name in ('numerator', 'denominator')]


# Of turbojpeg.h, version 3: constants, and function -> (result, arguments).
DECOMPRESS, RGB, SUBSAMPLING, WIDTH, HEIGHT = 1, 0, 4, 5, 6
BLOCK_WIDTHS = (8, 16, 16, 8, 8, 32, 8)     # pixels of the smallest unit of each subsampling
FUNCTIONS = {
    'tj3Init': (ctypes.c_void_p, [ctypes.c_int]),
    'tj3Destroy': (None, [ctypes.c_void_p]),
    'tj3Get': (ctypes.c_int, [ctypes.c_void_p, ctypes.c_int]),
    'tj3DecompressHeader': (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t]),
    'tj3SetScalingFactor': (ctypes.c_int, [ctypes.c_void_p, _Factor]),
    'tj3SetCroppingRegion': (ctypes.c_int, [ctypes.c_void_p, _Region]),
    'tj3Decompress8': (ctypes.c_int, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_int,
                                      ctypes.c_int]),
}


@functools.cache
def libturbojpeg():
    """libturbojpeg 3, from the package turbojpeg or the system; None if neither is there."""
    package = importlib.util.find_spec('turbojpeg')
    for file in (package and package.origin, ctypes.util.find_library('turbojpeg')):
        with contextlib.suppress(OSError, AttributeError):      # not a library; an older version
            library = ctypes.CDLL(file) if file else None
            for name, (result, arguments) in FUNCTIONS.items():
                function = getattr(library, name)
                function.restype, function.argtypes = result, arguments
            return library
    return None


def decode_region(library, data, size, box, reduction):
    """The pixels of `box`, uint8 (height, width, 3), of a JPEG file of this size, reduced by 1, 2, 4 or 8.

    Raises OSError if the library finds any fault in the file.
    """
    def check(is_good):
        if not is_good:
            raise OSError('damaged, or of an unusual kind')
    left, top, right, bottom = box
    handle = library.tj3Init(DECOMPRESS)
    check(handle)
    try:
        check(library.tj3DecompressHeader(handle, data, len(data)) == 0)
        check((library.tj3Get(handle, WIDTH), library.tj3Get(handle, HEIGHT)) == size)
        subsampling = library.tj3Get(handle, SUBSAMPLING)
        check(subsampling in range(len(BLOCK_WIDTHS)))
        # A region begins at a block. The decoder interpolates colours between columns, but not at the edges of a region
        # or in a very narrow one, so the region gets one more block on each side.
        unit = BLOCK_WIDTHS[subsampling] // reduction
        first, last = max(0, (left // unit - 1) * unit), min(right + unit, -(-size[0] // reduction))
        pixels = np.empty((bottom - top, last - first, 3), np.uint8)
        check(library.tj3SetScalingFactor(handle, _Factor(1, reduction)) == 0)
        check(library.tj3SetCroppingRegion(handle, _Region(first, top, last - first, bottom - top)) == 0)
        check(library.tj3Decompress8(handle, data, len(data), pixels.ctypes.data, 0, RGB) == 0)
    finally:
        library.tj3Destroy(handle)
    return pixels[:, left - first:right - first]
