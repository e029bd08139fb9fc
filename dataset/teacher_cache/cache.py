"""--teacher_cache: the teacher's outputs for each augmentation variant of each training image, cached in files.

They are computed when they are first needed, and read from then on.
"""
import numpy as np
import torch
from torch import Tensor

from helper.cli import readable_bytes
from helper.errors import printable

from .accuracy import StoredAccuracy
from .layout import Layout


class TeacherCache:
    """The stored outputs of one teacher for the training images of one data set: the fields that a method needs.

    Only the files of one repeated epoch are open at a time.
    """

    def __init__(self, layout: Layout, device: torch.device, accuracy: StoredAccuracy):
        """Open the files of the first repeated epoch. accuracy: of the teacher. Raises as Layout.open."""
        self.layout, self.device, self.accuracy = layout, device, accuracy
        self.writable, self.unwritten = True, []    # writable: whether new outputs are cached
        self._open(0)

    def _open(self, repeated_epoch):
        self.repeated_epoch, self.device_copy = repeated_epoch, None
        self.files = {field: self.layout.open(field, repeated_epoch) for field in self.layout.encodings}
        for file in self.files.values():
            file.read_ahead()
            self.writable &= file.writable
        if self.device.type == 'cuda':
            free, _ = torch.cuda.mem_get_info(self.device)
            if 2 * sum(file.bytes for file in self.files.values()) < free:
                self.copy_to_device()

    def select(self, repeated_epoch: int) -> None:
        """Open the files of this repeated epoch. If they cannot be made, nothing more is cached."""
        if repeated_epoch == self.repeated_epoch:
            return
        try:
            self._open(repeated_epoch)
        except OSError as error:
            self._stop_caching(error)
            self.files = {}

    def copy_to_device(self) -> None:
        """Keep a copy of all open outputs in the device's memory from now on."""
        self.is_copied = np.zeros(self.layout.slots, bool)
        self.device_copy = {field: self.to_device(np.zeros((file.slots, file.width), file.dtype))
                            for field, file in self.files.items()}
        slots = np.flatnonzero(self._in_files(np.arange(len(self.is_copied))))
        for chunk in np.array_split(slots, 1 + len(slots) // 10**5):
            self._copy(chunk)

    def _copy(self, slots):
        for field, file in self.files.items():
            self.device_copy[field][self.to_device(slots)] = self.to_device(file.read(slots))
        self.is_copied[slots] = True

    def to_device(self, array: np.ndarray) -> Tensor:
        """The array as a tensor on the device."""
        return torch.from_numpy(array).to(self.device, non_blocking=True)

    @property
    def accuracies(self) -> list[StoredAccuracy]:
        """The accuracy of the teacher; several teachers have more."""
        return [self.accuracy]

    @property
    def full(self) -> bool:
        """Whether all outputs that runs need are cached, of all repeated epochs."""
        return all(share == 1 for share in self.layout.usage()[0].values())

    @property
    def epoch_is_full(self) -> bool:
        """The same for the repeated epoch whose files are open."""
        return bool(self.files) and all(file.count() == self.layout.used for file in self.files.values())

    def _in_files(self, slots):
        if not self.files:
            return np.zeros(slots.shape, bool)
        return np.all([file.has(slots) for file in self.files.values()], axis=0)

    def has(self, slots: np.ndarray) -> np.ndarray:
        """Whether all fields of each slot are cached, bool (N,)."""
        if self.device_copy is None:
            return self._in_files(slots)
        new = slots[~self.is_copied[slots]]
        new = new[self._in_files(new)]      # written by another process
        if len(new):
            self._copy(new)
        return self.is_copied[slots]

    def get(self, slots: np.ndarray) -> dict[str, Tensor]:
        """field -> float32 (N, width) on the device, of slots that are cached. Raises UserError for a damaged file."""
        if self.device_copy is None:
            stored = {field: self.to_device(file.read(slots)) for field, file in self.files.items()}
        else:
            rows = self.to_device(slots)
            stored = {field: values[rows] for field, values in self.device_copy.items()}
        return {field: self.layout.encodings[field].decode(values) for field, values in stored.items()}

    def put(self, slots: np.ndarray, outputs: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cache outputs, which are on the device, and return them as get() would, after rounding.

        flush() writes those of a GPU to the files.
        """
        encodings = self.layout.encodings
        stored = {field: encoding.encode(outputs[field]) for field, encoding in encodings.items()}
        if self.device_copy is not None:
            rows = self.to_device(slots)
            for field, values in self.device_copy.items():
                values[rows] = stored[field]
            self.is_copied[slots] = True
        if self.writable:
            self.unwritten.append((slots, stored))
        if self.device.type == 'cpu':
            self.flush()
        return {field: encoding.decode(stored[field]) for field, encoding in encodings.items()}

    def flush(self) -> None:
        """Write what put() has collected, after waiting for the device. Nothing more is written to a full disk."""
        unwritten, self.unwritten = self.unwritten, []
        try:
            for slots, stored in unwritten:
                for field, file in self.files.items():
                    file.write(slots, stored[field].cpu().numpy())
        except OSError as error:
            self._stop_caching(error)

    def _stop_caching(self, error):
        if self.writable:
            print(f'--teacher_cache: {printable(self.layout.folder)}: no more outputs are cached ({error.strerror})')
        self.writable = False

    def __str__(self):
        return self.describe(self.layout.usage()[0])

    def describe(self, shares: dict[str, float]) -> str:
        """The files and how full they are. shares: field -> cached share, of Layout.usage(), which reads all files."""
        layout = self.layout
        more = f' and so on, {layout.epochs} files' if (layout.epochs or 1) > 1 else ''
        return ', '.join(f'{printable(layout.path(field, 0))}{more} ({int(1000 * share) / 10:g} % of '
                         f'{readable_bytes(layout.bytes(field))})' for field, share in shares.items())
