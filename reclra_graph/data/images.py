"""A data set in memory, and the one finder of files that all readers share."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from reclra_graph.errors import Problem, ReclraError

_COUNTS = {2: "both files are", 4: "all four files are", 6: "all six files are"}


@dataclass(frozen=True)
class ImageSet:
    """Training and test images with their labels, in the official split.

    Images are float32 [N, channels, height, width] in 0…1 (of tensors that a user brings, whatever they are: [N, …]);
    labels int64 [N] below ``classes``, or where ``classes`` is 0 targets of another kind. ``name``: of the set;
    ``place``: where it was read.
    """

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int = 10
    name: str = ""
    place: str = ""

    @property
    def digest(self) -> str:
        """Sixteen hex digits of all images and labels: other data, another digest."""
        found = hashlib.sha256()
        for item in (self.train_images, self.train_labels, self.test_images, self.test_labels):
            found.update(f"{tuple(item.shape)}".encode())
            found.update(item.contiguous().numpy().tobytes())
        return found.hexdigest()[:16]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one image."""
        return tuple(self.train_images.shape[1:])

    @property
    def count(self) -> int:
        """How many training images there are."""
        return len(self.train_labels)


@dataclass(frozen=True)
class Files:
    """The official files of a data set and where they may stand.

    ``places`` are sub-folders, of which the first that has any of the files counts; a set's own folders come first,
    since the files of MNIST and Fashion-MNIST have the same names. ``forms``: the endings that a file's name may have,
    the first that is there counting. ``note`` says so in words; ``advice``: where the files come from.
    """

    title: str
    names: tuple[str, ...]
    places: tuple[str, ...]
    forms: tuple[str, ...]
    note: str
    advice: str

    def find(self, folder: Path) -> dict[str, Path]:
        """Those of the files that are there, by name."""
        for place in (folder / name for name in self.places):
            found = {
                name: path
                for name in self.names
                for form in reversed(self.forms)  # of those that are there, the last of these stays
                if (path := place / f"{name}{form}").is_file()
            }
            if found:
                return found
        return {}

    def located(self, folder: Path) -> dict[str, Path]:
        """All files by name. Raises ReclraError RG703 where one is missing."""
        found = self.find(folder)
        missing = [name for name in self.names if name not in found]
        if missing:
            whole = len(missing) == len(self.names)
            what = f"{_COUNTS[len(missing)]} missing" if whole else f"missing: {', '.join(missing)}"
            cause = f"{self.title} is not there; {what} ({self.note})"
            raise ReclraError(Problem("RG703", cause, str(folder), self.advice))
        return found

    def bytes_of(self, path: Path) -> bytes:
        """A file's content. Raises ReclraError RG703 where it cannot be opened."""
        return content_of(path, self.advice)


def content_of(path: Path, advice: str) -> bytes:
    """A file's content. Raises ReclraError RG703, with that advice, where it cannot be opened."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise ReclraError(Problem("RG703", f"cannot be read: {error.strerror}", str(path), advice)) from None
