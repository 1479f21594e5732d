"""Folders of image files in ImageNet's layout: listing, decoding, random crops, and files that are damaged."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reclra_graph.data import ImageFolder, image_folder, open_data
from reclra_graph.data.augment import drawn
from reclra_graph.data.folder import decoded
from reclra_graph.errors import ReclraError
from tests.unit.image_files import write_folder

pytest.importorskip("PIL.Image")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path / "pictures")


def test_classes_are_numbered_by_name_and_val_is_what_is_tested_with(folder: Path) -> None:
    found = open_data(folder)
    assert isinstance(found, ImageFolder)
    assert (found.names, found.classes, found.count) == (("bird", "cat", "dog"), 3, 12)
    assert found.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert (len(found.validation.paths), len(found.test.paths)) == (0, 6)
    assert all("/val/" in path for path in found.test.paths)
    assert found.digest == image_folder(folder).digest


def test_with_a_folder_test_val_is_for_validation(folder: Path) -> None:
    (folder / "val" / "bird").rename(folder / "bird")
    (folder / "test").mkdir()
    (folder / "bird").rename(folder / "test" / "bird")
    found = image_folder(folder)
    assert (len(found.validation.paths), len(found.test.paths)) == (4, 2)


def break_it(folder: Path, how: str) -> None:
    if how == "no val":
        (folder / "val").rename(folder / "vail")
    elif how == "no train":
        (folder / "train").rename(folder / "trein")
    elif how == "an empty class":
        for path in (folder / "train" / "cat").iterdir():
            path.unlink()
    elif how == "a class of val alone":
        (folder / "val" / "zebra").mkdir()
    elif how == "nothing in val":
        for path in (folder / "val").rglob("*.*"):
            path.unlink()


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("no val", "RG703"), ("no train", "RG703"), ("an empty class", "RG703"), ("a class of val alone", "RG704"),
        ("nothing in val", "RG703"),
    ],
)  # fmt: skip
def test_layouts_that_are_refused(folder: Path, how: str, code: str) -> None:
    break_it(folder, how)
    with pytest.raises(ReclraError) as caught:
        open_data(folder)
    assert caught.value.codes == (code,)


def picture(path: Path, pixels: Any) -> str:
    from PIL import Image

    Image.fromarray(pixels).save(path)
    return str(path)


def test_the_centre_of_an_image_is_what_a_crop_of_224_in_256_keeps(tmp_path: Path) -> None:
    pixels = np.zeros((256, 512, 3), np.uint8)
    pixels[16:240, 144:368] = (200, 100, 50)  # the central 224 x 224
    found = decoded(picture(tmp_path / "a.png", pixels), (3, 224, 224), None)
    assert found.dtype == torch.uint8
    assert torch.equal(found, torch.tensor([200, 100, 50], dtype=torch.uint8)[:, None, None].expand(3, 224, 224))
    half = decoded(str(tmp_path / "a.png"), (1, 112, 112), None)
    assert half.shape == (1, 112, 112)
    assert half[:, 1:-1, 1:-1].float().std() == 0  # the border is smoothed with what lies beyond it


def test_a_random_crop_is_that_of_its_draw(tmp_path: Path) -> None:
    rows = np.arange(64, dtype=np.uint8)[:, None].repeat(64, 1)
    path = picture(tmp_path / "a.png", np.stack([rows, rows.T, rows], 2))
    crops = [decoded(path, (3, 16, 16), drawn("crop", number)) for number in range(40)]
    assert torch.equal(crops[3], decoded(path, (3, 16, 16), drawn("crop", 3)))
    assert len({tuple(item.flatten().tolist()) for item in crops}) == 40
    across = [float(item[1, 0, -1]) - float(item[1, 0, 0]) for item in crops]
    mirrored = sum(value < 0 for value in across)
    assert 10 < mirrored < 30
    down = torch.tensor([float(item[0, -1, 0]) - float(item[0, 0, 0]) for item in crops])
    assert down.min() > 0  # never upside down
    shares = down * torch.tensor(across).abs() / 63**2
    assert 0.04 < shares.min() < 0.3
    assert 0.7 < shares.max() <= 1


@pytest.mark.parametrize("content", [b"", b"no picture", "half"])
def test_damaged_pictures_are_named(folder: Path, content: Any) -> None:
    path = folder / "train" / "cat" / "1.jpg"
    path.write_bytes(path.read_bytes()[:200] if content == "half" else content)
    with pytest.raises(ReclraError, match=r"cat/1\.jpg") as caught:
        decoded(str(path), (3, 8, 8), None)
    assert caught.value.codes == ("RG704",)


def test_without_pillow_it_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL.Image", None)  # type: ignore[arg-type]
    with pytest.raises(ReclraError, match=r"pip install 'reclra-graph\[images\]'") as caught:
        decoded(str(folder / "train" / "cat" / "1.jpg"), (3, 8, 8), None)
    assert caught.value.codes == ("RG712",)
