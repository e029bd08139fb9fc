"""open_cache(): the teacher cache of a run; a line says how full it is and what it will take."""
import errno
import shutil
import zlib
from pathlib import Path

import torch
from torch import nn

from helper import distributed
from helper.cli import readable_bytes
from helper.errors import UserError, printable
from helper.loops import SPLITS

from .accuracy import StoredAccuracy
from .cache import TeacherCache
from .layout import make_layout

FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def stored_accuracy(file: Path, data, identity: dict) -> StoredAccuracy:
    """The accuracy in `file` on the images of data.selection_split. identity: of the teacher."""
    images = zlib.crc32(data.selection_labels.numpy(), data.selection_loader.checksum())
    return StoredAccuracy(file, f'{data.selection_split}_acc',
                          {f'{SPLITS[data.selection_split]} set (checksum)': images, **identity})


def open_cache(opt, needs: tuple, teacher: nn.Module, data, device: torch.device) -> TeacherCache | None:
    """The cache of `teacher` in opt.teacher_cache, whose state it prints; None without one. Raises UserError.

    needs: the fields to cache beside the logits. All processes must call it.
    """
    if not opt.teacher_cache:
        return None
    layout, folder = make_layout(opt, needs, teacher, data), Path(opt.teacher_cache)
    checksum = layout.identity['teacher (checksum)']
    accuracy = stored_accuracy(layout.accuracy_file, data, {'teacher (checksum)': checksum})
    try:
        folder.mkdir(parents=True, exist_ok=True)
        cache = TeacherCache(layout, device, accuracy)
    except OSError as error:
        if error.errno not in FULL_DISK:
            raise UserError(f'--teacher_cache {opt.teacher_cache}: {error.filename or folder}: cannot be used '
                            f'({error.strerror}); give another folder') from error
        cache = None
    if not all(distributed.gather(cache is not None)):
        print(f'--teacher_cache {printable(folder)}: the disk is full, so no outputs are cached')
        return None
    (shares, needed), free = layout.usage(), shutil.disk_usage(folder).free
    is_full = all(share == 1 for share in shares.values())
    cache.writable &= is_full or needed < free
    print(f'teacher cache: {cache.describe(shares)}')
    if not is_full:
        room = f'another {readable_bytes(needed)} of {readable_bytes(free)} free'
        print(f'teacher cache: it will take {room}' if cache.writable else
              f'teacher cache: no more outputs are cached: it would take {room}, or may not be written')
    return cache
