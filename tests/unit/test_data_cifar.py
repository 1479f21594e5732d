"""The CIFAR-10 loader: both official formats, and files that are missing, damaged, or do what data must not."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reclra_graph.data import CIFAR_FILES, cifar10
from reclra_graph.errors import ReclraError
from tests.unit.image_files import pictures, write_cifar


def problems_of(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(ReclraError) as caught:
        cifar10(folder)
    return [(problem.code, Path(problem.place).name) for problem in caught.value.problems]


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_the_binary_version(tmp_path: Path, place: str) -> None:
    write_cifar(tmp_path / place, each=3)
    found = cifar10(tmp_path)
    assert found.train_images.shape == (15, 3, 32, 32)
    assert found.test_images.shape == (3, 3, 32, 32)
    assert found.train_labels.tolist() == [0, 1, 2] * 5
    first, _ = pictures(3, 3072, 0)
    wanted = torch.tensor(first[0], dtype=torch.float32).reshape(3, 32, 32) / 255
    assert torch.equal(found.train_images[0], wanted)
    assert found.train_labels.dtype == torch.int64


def test_the_python_version_says_the_same(tmp_path: Path) -> None:
    one = cifar10(write_cifar(tmp_path / "a"))
    other = cifar10(write_cifar(tmp_path / "b" / "cifar-10-batches-py", python=True).parent)
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_missing_files_are_named(tmp_path: Path) -> None:
    assert problems_of(tmp_path) == [("RG703", tmp_path.name)]
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ReclraError, match=r"missing: data_batch_3"):
        cifar10(tmp_path)


def test_damaged_files_are_all_named(tmp_path: Path) -> None:
    write_cifar(tmp_path)
    (tmp_path / "data_batch_1.bin").write_bytes(b"short")
    (tmp_path / "data_batch_2.bin").write_bytes(b"")
    (tmp_path / "test_batch.bin").write_bytes(bytes([10]) + bytes(3072))
    assert problems_of(tmp_path) == [
        ("RG704", "data_batch_1.bin"), ("RG704", "data_batch_2.bin"), ("RG704", "test_batch.bin"),
    ]  # fmt: skip


class Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize(
    "batch",
    [
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1]},
        {b"data": np.zeros((2, 3072), np.float32), b"labels": [1, 2]},
        {b"data": np.asfortranarray(np.zeros((2, 3072), np.uint8)), b"labels": [1, 2]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 10]},
        {b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, -1]},
        {b"data": np.zeros((0, 3072), np.uint8), b"labels": []},
        {b"data": np.zeros((2, 3072), np.uint8)},
        {b"labels": [1, 2]},
        {b"data": [0] * 3072, b"labels": [1]},
        [1, 2, 3],
        {b"data": {"a", "b"}},
    ],
)
def test_what_is_no_batch_is_refused(tmp_path: Path, batch: object) -> None:
    write_cifar(tmp_path, each=2, python=True)
    (tmp_path / "test_batch").write_bytes(pickle.dumps(batch, protocol=2))
    assert problems_of(tmp_path) == [("RG704", "test_batch")]


def test_nothing_that_a_file_names_is_run(tmp_path: Path) -> None:
    write_cifar(tmp_path, each=2, python=True)
    trap = tmp_path / "trap"
    (tmp_path / "data_batch_2").write_bytes(pickle.dumps({b"data": Runs(trap), b"labels": [1]}, protocol=2))
    assert problems_of(tmp_path) == [("RG704", "data_batch_2")]
    assert not trap.exists()


@pytest.mark.parametrize("cut", [0, 1, 50, 3000, -1])
def test_a_cut_pickle_is_refused(tmp_path: Path, cut: int) -> None:
    write_cifar(tmp_path, each=2, python=True)
    path = tmp_path / CIFAR_FILES[0]
    path.write_bytes(path.read_bytes()[:cut])
    assert problems_of(tmp_path) == [("RG704", CIFAR_FILES[0])]
