"""Data sets by name or by place: ``fashion-mnist``, a folder with some set's files, or a file of tensors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from reclra_graph.data.cifar import FILES_OF_CIFAR, cifar10
from reclra_graph.data.digits import FILES_OF_DIGITS, digits
from reclra_graph.data.folder import ImageFolder, image_folder
from reclra_graph.data.idx import FILES_OF_FASHION, FILES_OF_MNIST, fashion_mnist, kinds, mnist
from reclra_graph.data.images import Files, ImageSet
from reclra_graph.data.tensors import SUFFIXES, tensors
from reclra_graph.errors import Problem, ReclraError, UsageError
from reclra_graph.user_cache import data_folder

Data: TypeAlias = ImageSet | ImageFolder

_KNOWN_FOLDERS = (
    "Give a folder with the official files of MNIST, Fashion-MNIST, CIFAR-10 or the 8x8 digits, one with "
    "train/CLASS/*.jpg and val/CLASS/*.jpg, or one with train.pt and test.pt."
)


@dataclass(frozen=True)
class Named:
    """A data set that is known by name: its files and reader, and how it is usually trained on.

    ``validation``: training images that are held out. ``normalise``: whether the mean and deviation of each channel are
    taken out. ``crop``: pixels of border that random crops get, 0 for none; ``flip``: whether images are mirrored.
    """

    files: Files | None
    read: Callable[[Path], ImageSet] | None
    validation: int | None = None
    normalise: bool = False
    crop: int = 0
    flip: bool = False


NAMED: dict[str, Named] = {
    "mnist": Named(FILES_OF_MNIST, mnist, 2000),
    "fashion-mnist": Named(FILES_OF_FASHION, fashion_mnist, 2000),
    "cifar10": Named(FILES_OF_CIFAR, cifar10, 5000, normalise=True, crop=4, flip=True),
    "digits": Named(FILES_OF_DIGITS, digits),
}
_OTHER = Named(None, None)


def traits(data: Data) -> Named:
    """How a data set is usually trained on; of one that has no name here, as it is."""
    return NAMED.get(data.name, _OTHER) if isinstance(data, ImageSet) else _OTHER


def open_data(what: str | Path, folder: str | Path | None = None) -> Data:
    """The data set called ``what``, or that in the folder or file ``what``.

    A set that is asked for by name is looked for in ``folder``, or where none is given in the folder ``data`` here and
    in ``reclra-graph`` in the user's folder of data (``XDG_DATA_HOME``, else ``~/.local/share``). Nothing is
    downloaded.

    Raises ReclraError: RG703 where files are missing, RG704 where they are damaged; UsageError RG405 where a folder
    holds several sets.
    """
    name = str(what)
    if name not in NAMED:
        return _placed(Path(what).expanduser())
    named = NAMED[name]
    assert named.files is not None
    assert named.read is not None
    places = [Path(folder).expanduser()] if folder is not None else default_folders()
    place = next((item for item in places if named.files.find(item)), None)
    if place is not None:
        return named.read(place)
    if name == "digits":
        return digits(places[0])
    cause = f"{named.files.title} is not in {_either([str(item) for item in places])} ({named.files.note})"
    advice = named.files.advice.replace("--data DIR", f"--data-dir DIR, or put them into {data_folder()}")
    raise ReclraError(Problem("RG703", cause, f"--data {name}", advice))


def default_folders() -> list[Path]:
    """Where sets are looked for that are asked for by name."""
    return [Path("data"), data_folder()]


def _either(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def _placed(path: Path) -> Data:
    """The one data set in a folder or file."""
    if path.suffix in SUFFIXES and not path.is_dir():
        return tensors(path)
    if not path.is_dir():
        names = ", ".join(NAMED)
        advice = f"Ask for {names}, or give a folder or a file of tensors (.pt)."
        raise ReclraError(Problem("RG703", "there is no such folder, file or data set", str(path), advice))
    found: dict[str, Callable[[Path], Data]] = {}
    if any((path / f"{split}.pt").is_file() for split in ("train", "test")):
        found["tensors"] = tensors
    if any((path / split).is_dir() for split in ("train", "val")):
        found["image files"] = image_folder
    for name, reader in (("cifar10", cifar10), ("digits", digits)):
        files = NAMED[name].files
        if files is not None and files.find(path):
            found[name] = reader
    found.update({name: mnist if name == "mnist" else fashion_mnist for name in kinds(path)})
    if not found:
        raise ReclraError(Problem("RG703", "there are no files of a data set in it", str(path), _KNOWN_FOLDERS))
    if len(found) > 1:
        cause = f"it holds several data sets: {', '.join(found)}"
        advice = f"Say which, such as --data {list(found)[-1]} --data-dir {path}."
        raise UsageError(Problem("RG405", cause, str(path), advice))
    (read,) = found.values()
    return read(path)
