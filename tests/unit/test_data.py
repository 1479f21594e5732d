"""The Fashion-MNIST loader: the part that travels, the official layout, and files that are missing or damaged."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
import torch

from reclra_graph.data import FILES, fashion_mnist, read_idx
from reclra_graph.errors import ReclraError

TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = FILES


def _idx(shape: tuple[int, ...], content: bytes) -> bytes:
    return bytes((0, 0, 8, len(shape))) + b"".join(size.to_bytes(4, "big") for size in shape) + content


def _write(folder: Path, train: int = 3, test: int = 2) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for images, labels, count in ((TRAIN_IMAGES, TRAIN_LABELS, train), (TEST_IMAGES, TEST_LABELS, test)):
        (folder / images).write_bytes(_idx((count, 28, 28), bytes(index % 256 for index in range(count * 784))))
        (folder / labels).write_bytes(_idx((count,), bytes(index % 10 for index in range(count))))
    return folder


def _problems(folder: Path) -> list[tuple[str, str]]:
    with pytest.raises(ReclraError) as caught:
        fashion_mnist(folder)
    return [(problem.code, Path(problem.place).name) for problem in caught.value.problems]


def test_the_part_that_travels(root: Path) -> None:
    folder = root / "examples" / "data" / "fashion-mnist"
    images = fashion_mnist(folder)
    assert images.train_images.shape == (5000, 1, 28, 28)
    assert images.test_images.shape == (1000, 1, 28, 28)
    assert images.train_images.dtype == torch.float32
    assert images.train_labels.dtype == torch.int64
    assert (float(images.train_images.min()), float(images.train_images.max())) == (0.0, 1.0)
    # The first labels of the official files, and the mean that is usually quoted for the training images.
    assert images.train_labels[:10].tolist() == [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]
    assert images.test_labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]
    assert float(images.train_images.mean()) == pytest.approx(0.286, abs=0.003)
    assert sum(path.stat().st_size for path in folder.iterdir()) < 3_000_000
    assert "Zalando" in (folder / "LICENSE").read_text()


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_official_layouts(tmp_path: Path, place: str, compressed: bool) -> None:
    folder = _write(tmp_path / place)
    if compressed:
        for name in FILES:
            (folder / f"{name}.gz").write_bytes(gzip.compress((folder / name).read_bytes()))
            (folder / name).unlink()
    images = fashion_mnist(tmp_path)
    assert images.train_labels.tolist() == [0, 1, 2]
    assert images.test_images.shape == (2, 1, 28, 28)
    assert torch.equal(images.train_images[0, 0, 0, :3], torch.tensor([0.0, 1.0, 2.0]) / 255)


def test_all_missing_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ReclraError, match=r"torchvision\.datasets\.FashionMNIST\(DIR, download=True\)") as caught:
        fashion_mnist(tmp_path / "nowhere")
    assert caught.value.codes == ("RG703",)
    assert "all four" in str(caught.value)


def test_one_missing_is_named(tmp_path: Path) -> None:
    (_write(tmp_path) / TEST_LABELS).unlink()
    with pytest.raises(ReclraError, match=f"missing: {TEST_LABELS}") as caught:
        fashion_mnist(tmp_path)
    assert caught.value.codes == ("RG703",)


def test_all_damage_is_found_at_once(tmp_path: Path) -> None:
    _write(tmp_path)
    (tmp_path / TRAIN_IMAGES).write_bytes((tmp_path / TRAIN_IMAGES).read_bytes()[:-1])
    (tmp_path / TRAIN_LABELS).write_bytes(b"<html>not found</html>")
    (tmp_path / TEST_IMAGES).write_bytes(_idx((2, 14, 14), bytes(2 * 14 * 14)))
    (tmp_path / TEST_LABELS).write_bytes(_idx((2,), bytes((3, 10))))
    assert _problems(tmp_path) == [("RG704", name) for name in FILES]


@pytest.mark.parametrize(
    "content", [b"", b"\0\0\x08", b"\0\0\x08\x01\0\0", b"\0\0\x0d\x01\0\0\0\1\0\0\0\0", b"\0\0\x08\0"]
)
def test_bad_headers(tmp_path: Path, content: bytes) -> None:
    (_write(tmp_path) / TRAIN_LABELS).write_bytes(content)
    assert _problems(tmp_path) == [("RG704", TRAIN_LABELS)]


def test_a_header_that_promises_more_than_any_memory(tmp_path: Path) -> None:
    (_write(tmp_path) / TRAIN_IMAGES).write_bytes(_idx((0xFFFFFFFF, 0xFFFFFFFF, 28), b"\0"))
    assert _problems(tmp_path) == [("RG704", TRAIN_IMAGES)]


@pytest.mark.parametrize("cut", [-1, 5, 20])
def test_damaged_gzip(tmp_path: Path, cut: int) -> None:
    folder = _write(tmp_path)
    content = gzip.compress((folder / TRAIN_IMAGES).read_bytes())
    (folder / TRAIN_IMAGES).unlink()
    (folder / f"{TRAIN_IMAGES}.gz").write_bytes(content[:cut])
    assert _problems(tmp_path) == [("RG704", f"{TRAIN_IMAGES}.gz")]


def test_counts_must_agree(tmp_path: Path) -> None:
    (_write(tmp_path) / TEST_LABELS).write_bytes(_idx((3,), bytes(3)))
    assert _problems(tmp_path) == [("RG704", TEST_LABELS)]


def test_an_empty_set_is_refused(tmp_path: Path) -> None:
    _write(tmp_path, test=0)
    assert _problems(tmp_path) == [("RG704", TEST_IMAGES), ("RG704", TEST_LABELS)]


def test_a_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(ReclraError) as caught:
        read_idx(tmp_path)
    assert caught.value.codes == ("RG703",)


def test_reading_warns_of_nothing_and_owns_its_memory(tmp_path: Path) -> None:
    _write(tmp_path)
    first = read_idx(tmp_path / TRAIN_LABELS)
    first[0] = 7
    assert read_idx(tmp_path / TRAIN_LABELS).tolist() == [0, 1, 2]
