"""What is done to images before a net sees them: contrast and whitening against NumPy, crops one image at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from reclra_graph.data import whitening as module
from reclra_graph.data.augment import augmented, drawn
from reclra_graph.data.whitening import contrast, fitted, whitening
from reclra_graph.errors import UsageError


def pictures(count: int = 4000, side: int = 4) -> Tensor:
    """Images whose neighbouring pixels go together, in 0…1."""
    draw = torch.Generator().manual_seed(5)
    noise = torch.rand(count, 2, side + 2, side + 2, generator=draw)
    smooth = sum(noise[:, :, i : i + side, j : j + side] for i in range(3) for j in range(3))
    assert isinstance(smooth, Tensor)
    return smooth / 9


def covariance(images: Tensor) -> Tensor:
    return torch.cov(images.double().flatten(1).T, correction=0)


def test_contrast_takes_out_mean_and_deviation_of_each_image() -> None:
    images = pictures(5)
    found = contrast(images, bias=0.0).numpy()
    wanted = np.stack([(item - item.mean()) / item.std() for item in images.double().numpy()])
    assert np.allclose(found, wanted, atol=1e-5)
    assert torch.isfinite(contrast(torch.full((2, 3), 0.5))).all()


def test_with_hardly_a_regulariser_the_covariance_is_the_identity() -> None:
    images = pictures()
    found = fitted(images, epsilon=1e-7)(images)
    assert found.shape == images.shape
    assert torch.allclose(found.double().flatten(1).mean(0), torch.zeros(32, dtype=torch.float64), atol=1e-4)
    # Contrast makes the values of every image sum to 0: one direction of no variance, which stays without.
    values, vectors = torch.linalg.eigh(covariance(found))
    assert torch.allclose(values[1:], torch.ones(31, dtype=torch.float64), atol=2e-3)
    assert values[0] < 1e-3
    assert torch.allclose(vectors[:, 0].abs(), torch.full((32,), 32**-0.5, dtype=torch.float64), atol=1e-3)


def test_the_regulariser_shrinks_directions_of_little_variance_as_it_says() -> None:
    images, epsilon = pictures(), 0.05
    found = fitted(images, epsilon)
    flat = contrast(images).double().numpy().reshape(len(images), -1)
    values, vectors = np.linalg.eigh(np.cov(flat.T, bias=True))
    wanted = (flat - flat.mean(0)) @ vectors @ np.diag((values + epsilon) ** -0.5) @ vectors.T
    assert np.allclose(found(images).numpy().reshape(len(images), -1), wanted, atol=1e-4)
    after = np.sort(np.linalg.eigvalsh(covariance(found(images)).numpy()))
    assert np.allclose(after, np.sort(values / (values + epsilon)), atol=1e-4)


def test_parts_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    images = pictures(500)
    whole = fitted(images)
    monkeypatch.setattr(module, "_AT_ONCE", 64)
    parts = fitted(images)
    assert torch.allclose(whole.matrix, parts.matrix, rtol=1e-3, atol=1e-3)
    assert torch.allclose(whole(images), parts(images), atol=1e-3)


def test_it_is_kept_and_made_again_where_what_is_kept_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = pictures(200)
    made = whitening(images)
    (path,) = (tmp_path / "reclra-graph" / "whitening").iterdir()
    monkeypatch.setattr(module, "fitted", None)  # is not called again
    kept = whitening(images)
    assert torch.equal(made.matrix, kept.matrix)
    assert torch.equal(made.mean, kept.mean)
    monkeypatch.undo()
    path.write_bytes(b"nothing")
    assert torch.equal(whitening(images, folder=path.parent).matrix, made.matrix)
    whitening(images, epsilon=0.5, folder=path.parent)
    assert len(list(path.parent.iterdir())) == 2
    whitening(images, folder=path)  # a folder that cannot be made: computed all the same


def test_images_too_large_to_whiten() -> None:
    with pytest.raises(UsageError) as caught:
        fitted(torch.zeros(2, 3, 80, 80))
    assert caught.value.codes == ("RG405",)


@pytest.mark.parametrize("flip", [False, True])
def test_crops_are_those_of_padding_and_cutting_one_image_at_a_time(flip: bool) -> None:
    images, border = torch.rand(64, 3, 6, 5), 2
    found = augmented(images, border, flip, drawn("a", 1))
    assert found.shape == images.shape
    draw = drawn("a", 1)
    down, across = torch.randint(2 * border + 1, (2, 64), generator=draw).tolist()
    mirrored = (torch.rand(64, generator=draw) < 0.5).tolist() if flip else [False] * 64
    for at, image in enumerate(images.numpy()):
        padded = np.pad(image, ((0, 0), (border, border), (border, border)))
        wanted = padded[:, down[at] : down[at] + 6, across[at] : across[at] + 5]
        wanted = wanted[:, :, ::-1] if mirrored[at] else wanted
        assert np.array_equal(found[at].numpy(), wanted)
    assert set(down) == set(range(2 * border + 1))
    assert any(mirrored) == flip
    assert torch.equal(found, augmented(images, border, flip, drawn("a", 1)))
    assert not torch.equal(found, augmented(images, border, flip, drawn("a", 2)))
