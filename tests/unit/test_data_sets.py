"""Data sets by name and by place: which one a folder holds, what is missing or damaged, and the user's own tensors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from reclra_graph.data import FILES, ImageSet, digits, either, mnist, open_data, tensors
from reclra_graph.data.split import order, split, usual
from reclra_graph.errors import ReclraError
from tests.unit.image_files import idx, write_cifar, write_digits, write_fashion, write_own

MNIST_LABELS = [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
FASHION_LABELS = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]


def label(folder: Path, labels: list[int]) -> Path:
    """Put these labels in front of the training images of a folder."""
    path = folder / FILES[1]
    path.write_bytes(path.read_bytes()[:8] + bytes(labels) + path.read_bytes()[18:])
    return folder


def codes_of(read: Callable[[], Any]) -> tuple[str, ...]:
    with pytest.raises(ReclraError) as caught:
        read()
    return caught.value.codes


# -- by name and by place ---------------------------------------------------------------------------------------------


def test_two_sets_with_the_same_file_names_are_told_apart(tmp_path: Path) -> None:
    label(write_fashion(tmp_path / "both" / "MNIST" / "raw"), MNIST_LABELS)
    label(write_fashion(tmp_path / "both" / "FashionMNIST" / "raw"), FASHION_LABELS)
    for name, labels in (("mnist", MNIST_LABELS), ("fashion-mnist", FASHION_LABELS)):
        found = open_data(name, tmp_path / "both")
        assert isinstance(found, ImageSet)
        assert (found.name, found.classes) == (name, 10)
        assert found.train_labels[:10].tolist() == labels
    with pytest.raises(ReclraError, match="several data sets: mnist, fashion-mnist") as caught:
        open_data(tmp_path / "both")
    assert caught.value.codes == ("RG405",)
    assert caught.value.exit_status == 2


def test_files_of_the_other_set_are_refused(tmp_path: Path) -> None:
    label(write_fashion(tmp_path), FASHION_LABELS)
    with pytest.raises(ReclraError, match="labels of Fashion-MNIST, not of MNIST") as caught:
        mnist(tmp_path)
    assert caught.value.codes == ("RG704",)
    assert open_data(tmp_path).name == either(tmp_path).name == "fashion-mnist"
    label(tmp_path, MNIST_LABELS)
    assert open_data(tmp_path).name == either(tmp_path).name == "mnist"
    assert codes_of(lambda: open_data("fashion-mnist", tmp_path)) == ("RG704",)


def test_a_place_says_what_it_holds(tmp_path: Path) -> None:
    write_cifar(tmp_path / "a" / "cifar-10-batches-bin", each=2)
    write_digits(tmp_path / "b")
    write_own(tmp_path / "c")
    write_own(tmp_path / "own.pt")
    names = [open_data(tmp_path / name).name for name in ("a", "b", "c", "own.pt")]
    assert names == ["cifar10", "digits", "c", "own"]


def test_names_are_looked_for_in_folders_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    with pytest.raises(ReclraError, match=r"MNIST is not in data or .*home/reclra-graph") as caught:
        open_data("mnist")
    assert caught.value.codes == ("RG703",)
    assert "--data-dir DIR, or put them into" in caught.value.problems[0].advice
    label(write_fashion(tmp_path / "home" / "reclra-graph" / "MNIST" / "raw"), MNIST_LABELS)
    assert open_data("mnist").place.endswith("reclra-graph")
    write_fashion(tmp_path / "data", train=20)
    assert open_data("mnist").count == 20  # the nearer folder


@pytest.mark.parametrize("place", ["nowhere", "file.txt", "empty"])
def test_places_without_data(tmp_path: Path, place: str) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.txt").write_text("words")
    assert codes_of(lambda: open_data(tmp_path / place)) == ("RG703",)
    assert codes_of(lambda: open_data("cifar10", tmp_path / place)) == ("RG703",)


def test_what_is_read_has_a_digest_of_its_own(tmp_path: Path) -> None:
    write_fashion(tmp_path)
    one = open_data(tmp_path)
    assert one.digest == open_data(tmp_path).digest
    label(tmp_path, MNIST_LABELS)
    assert one.digest != open_data(tmp_path).digest


# -- the 8x8 digits ---------------------------------------------------------------------------------------------------


def test_digits_from_their_text_files(tmp_path: Path) -> None:
    found = digits(write_digits(tmp_path, train=30, test=20))
    assert found.train_images.shape == (30, 1, 8, 8)
    assert found.test_images.shape == (20, 1, 8, 8)
    assert found.train_labels.tolist() == [number % 10 for number in range(30)]
    assert float(found.train_images.max()) == 1.0


@pytest.mark.parametrize("text", ["", "1,2,3\n", "a,b\n", ",".join(["17"] * 65), ",".join(["3"] * 64 + ["10"])])
def test_damaged_digits(tmp_path: Path, text: str) -> None:
    (write_digits(tmp_path) / "optdigits.tes").write_text(text)
    assert codes_of(lambda: digits(tmp_path)) == ("RG704",)


def test_digits_from_scikit_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module: Any = ModuleType("sklearn.datasets")
    images = np.arange(400 * 64).reshape(400, 8, 8) % 17
    module.load_digits = lambda: SimpleNamespace(images=images.astype(np.float64), target=np.arange(400) % 10)
    monkeypatch.setitem(sys.modules, "sklearn", ModuleType("sklearn"))
    monkeypatch.setitem(sys.modules, "sklearn.datasets", module)
    monkeypatch.chdir(tmp_path)
    found = open_data("digits")
    assert isinstance(found, ImageSet)
    assert (len(found.train_images), len(found.test_images)) == (40, 360)
    assert torch.equal(found.test_images[0, 0], torch.tensor(images[40] / 16, dtype=torch.float32))
    assert found.test_labels[0] == 0
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)  # type: ignore[arg-type]
    with pytest.raises(ReclraError, match=r"pip install 'reclra-graph\[digits\]'") as caught:
        open_data("digits")
    assert caught.value.codes == ("RG703",)


# -- the user's own tensors -------------------------------------------------------------------------------------------


def test_tensors_of_the_users_own(tmp_path: Path) -> None:
    for place in (tmp_path / "folder", tmp_path / "file.pt"):
        found = tensors(write_own(place))
        assert found.train_images.shape == (60, 4)
        assert (found.classes, found.train_labels.dtype) == (3, torch.int64)
    part = {"inputs": torch.full((2, 5), 51, dtype=torch.uint8), "targets": torch.rand(2, 7)}
    torch.save({"train": part, "test": part}, tmp_path / "other.pt")
    found = tensors(tmp_path / "other.pt")
    assert torch.allclose(found.train_images, torch.full((2, 5), 0.2))
    assert (found.classes, found.train_labels.dtype) == (0, torch.float32)


GOOD = {"images": torch.zeros(3, 4), "labels": torch.zeros(3, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("held", "codes"),
    [
        (b"PK\3\4 half a file", ("RG704",)),
        ([1, 2], ("RG704",)),
        ({"train": GOOD}, ("RG703",)),
        ({}, ("RG703", "RG703")),
        ({"train": GOOD, "test": {"images": torch.zeros(3, 4)}}, ("RG704",)),
        ({"train": GOOD, "test": [1]}, ("RG704",)),
        ({"train": GOOD, "test": {**GOOD, "labels": torch.zeros(2, dtype=torch.int64)}}, ("RG704",)),
        ({"train": GOOD, "test": {**GOOD, "labels": torch.tensor([0, -1, 1])}}, ("RG704",)),
        ({"train": {**GOOD, "images": torch.full((3, 4), torch.nan)}, "test": GOOD}, ("RG704",)),
        ({"train": GOOD, "test": {**GOOD, "images": torch.zeros(3, 5)}}, ("RG704",)),
        ({"train": GOOD, "test": {**GOOD, "labels": torch.zeros(3)}}, ("RG704",)),
    ],
)
def test_tensors_that_cannot_be_used(tmp_path: Path, held: Any, codes: tuple[str, ...]) -> None:
    path = tmp_path / "own.pt"
    if isinstance(held, bytes):
        path.write_bytes(held)
    else:
        torch.save(held, path)
    assert codes_of(lambda: tensors(path)) == codes


def test_a_folder_of_tensors_without_a_split(tmp_path: Path) -> None:
    (write_own(tmp_path) / "test.pt").unlink()
    with pytest.raises(ReclraError, match=r"there is no test\.pt"):
        open_data(tmp_path)
    assert codes_of(lambda: tensors(tmp_path / "nowhere.pt")) == ("RG703",)


# -- fixed choices ----------------------------------------------------------------------------------------------------


def test_validation_images_are_a_fixed_choice() -> None:
    train, held = split(100, 20)
    assert sorted([*train.tolist(), *held.tolist()]) == list(range(100))
    assert len(held) == 20
    assert torch.equal(held, split(100, 20)[1])
    assert held.tolist() != list(range(20))
    # What earlier results of `bench epochs` were measured with.
    assert torch.equal(held, torch.randperm(100, generator=torch.Generator().manual_seed(0))[:20])


@pytest.mark.parametrize(
    ("count", "own", "held"),
    [(60000, 2000, 2000), (5000, 2000, 1000), (50000, None, 5000), (400, None, 40), (3, None, 0)],
)
def test_how_many_images_are_held_out(count: int, own: int | None, held: int) -> None:
    assert usual(count, own) == held


def test_every_epoch_has_an_order_of_its_own() -> None:
    found = [order(50, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(item) for item in found}) == 4
    assert all(sorted(item) == list(range(50)) for item in found)
    assert order(50, 3, 7).tolist() == order(50, 3, 7).tolist()


def test_an_idx_file_that_is_not_there_is_told_before_its_labels_are_read(tmp_path: Path) -> None:
    (tmp_path / FILES[0]).write_bytes(idx((1, 28, 28), bytes(784)))
    assert codes_of(lambda: open_data(tmp_path)) == ("RG703",)
