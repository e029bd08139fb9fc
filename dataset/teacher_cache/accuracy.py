"""The teacher's accuracy, which a teacher cache keeps beside the outputs, so that later runs need not measure it."""
import contextlib
from pathlib import Path

from helper import distributed
from helper.errors import UserError, printable
from helper.files import read_json, write_json


class StoredAccuracy:
    """The top-1 accuracy in percent of a teacher on some images, in a JSON file."""

    def __init__(self, file: Path, key: str, checksums: dict):
        """key: of the accuracy in the file. checksums: name -> value, of the teacher and the images. Sets `value`, None
        if the file has no accuracy for them; the same in all processes."""
        self.file, self.key, self.checksums = file, key, checksums
        self.value: float | None = distributed.broadcast(self._read)

    def _read(self):
        with contextlib.suppress(UserError, TypeError, KeyError, AttributeError):       # missing or damaged
            content = read_json(self.file, str(self.file))
            if differing := [name for name, value in self.checksums.items() if content.get(name) != value]:
                print(f'{printable(self.file)}: is of another {" and ".join(differing)}; the teacher is measured again')
                return None
            accuracy = content[self.key]
            return accuracy if isinstance(accuracy, float) and 0 <= accuracy <= 100 else None
        return None

    def save(self, value: float) -> None:
        """Write the file, if it can be written."""
        if distributed.is_main():
            with contextlib.suppress(UserError):
                write_json(self.file, {**self.checksums, self.key: value})
