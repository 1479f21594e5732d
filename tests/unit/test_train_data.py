"""Training runs and their data: what does not fit, images from memory and from files, and TensorBoard."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reclra_graph.errors import ModelError, ReclraError, StepError
from reclra_graph.train.settings import Settings
from tests.unit.image_files import write_folder
from tests.unit.training import check_same_end, run

# -- data and model that do not fit -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "code"),
    [
        ({"model": lambda: nn.Linear(5, 3), "example_inputs": torch.zeros(8, 5)}, "RG713"),
        ({"model": lambda: nn.Linear(4, 2)}, "RG713"),
        ({"example_inputs": (torch.zeros(8, 4), torch.zeros(8, 4))}, "RG713"),
        ({"model": lambda: nn.Sequential(nn.Linear(4, 3), nn.Unflatten(1, (2, 2))), "method": "bp"}, "RG713"),
        ({"model": lambda: nn.Flatten(), "method": "bp"}, "RG301"),
        ({"batch": 90}, "RG405"),
        ({"validation": 95}, "RG405"),
        ({"whiten": True}, "RG405"),
        ({"options": {"rule": "none"}}, "RG405"),
        ({"options": {"loss": {"a": "mse", "b": "mse"}}}, "RG405"),
        ({"optimizer": "adam"}, "RG405"),
        ({"device": "abacus"}, "RG405"),
    ],
)
def test_what_does_not_fit_is_told_before_anything_is_trained(tmp_path: Path, given: dict[str, Any], code: str) -> None:
    with pytest.raises(ReclraError) as caught:
        run(tmp_path, **given)
    assert caught.value.codes == (code,)
    assert not (tmp_path / "run").exists()


def test_data_that_are_not_finite_change_nothing(tmp_path: Path) -> None:
    from reclra_graph.data import ImageSet

    images = torch.full((40, 4), torch.inf)
    labels = torch.arange(40) % 3
    with pytest.raises(StepError) as caught:
        run(tmp_path, data=ImageSet(images, labels, images, labels, 3))
    assert caught.value.codes == ("RG604",)


def test_without_tensorboard_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"pip install 'reclra-graph\[tensorboard\]'") as caught:
        run(tmp_path, tensorboard=tmp_path / "board")
    assert caught.value.codes == ("RG712",)


def test_tensorboard_is_told_what_the_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[str, float, int]] = []
    made: list[dict[str, Any]] = []

    class Writer:
        def __init__(self, folder: str, **given: Any) -> None:
            made.append(given)

        def add_scalar(self, name: str, value: float, step: int) -> None:
            told.append((name, value, step))

        def flush(self) -> None:
            pass

        def close(self) -> None:
            pass

    module: Any = type(sys)("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    result = run(tmp_path, tensorboard=tmp_path / "board", epochs=2)
    assert [value for name, value, _ in told if name == "error"] == [record["error"] for record in result.records]
    run(tmp_path, tensorboard=tmp_path / "board", epochs=2)
    assert made == [{"purge_step": None}, {"purge_step": 21}]


# -- images -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("given", [{}, {"workers": 1}, {"augment": False, "normalise": False, "validation": 0}])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_image_files_are_trained_on(tmp_path: Path, given: dict[str, Any]) -> None:
    pytest.importorskip("PIL.Image")
    folder = write_folder(tmp_path / "pictures", train=12, val=4)

    def model() -> nn.Module:
        return nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))

    settings = {"example_inputs": torch.zeros(6, 3, 8, 8), "batch": 6, "validation": 6, "epochs": 2, "eval_batch": 5}
    result = run(tmp_path, model=model, data=folder, **{**settings, **given})
    assert result.ended == "done"
    assert result.summary["settings"]["data"]["test"] == 12
    assert result.train_error is None
    if not given:
        monkey = run(tmp_path, "parts", model=model, data=folder, **settings, minutes=0)
        assert monkey.ended == "minutes"
        run(tmp_path, "parts", model=model, data=folder, **settings)
        check_same_end(tmp_path / "run", tmp_path / "parts")
        (folder / "train" / "cat" / "3.jpg").write_bytes(b"")
        with pytest.raises(ReclraError, match=r"cat/3\.jpg") as caught:
            run(tmp_path, "other", model=model, data=folder, **{**settings, "validation": 0})
        assert caught.value.codes == ("RG704",)


def test_images_are_cropped_normalised_and_whitened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reclra_graph.data import ImageSet
    from reclra_graph.train.parts import Fit, Held
    from reclra_graph.train.prepare import prepare

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = torch.rand(60, 3, 8, 8) * torch.tensor([1.0, 0.5, 0.1])[:, None, None]
    data = ImageSet(images, torch.arange(60) % 3, images[:9], torch.arange(9) % 3, 3, "cifar10")
    fit, cpu = Fit((3, 8, 8)), torch.device("cpu")
    usual = prepare(data, Settings(batch=8), fit, cpu)
    assert isinstance(usual.train, Held)
    assert isinstance(usual.test, Held)
    assert (len(usual.train), usual.train.border, usual.train.flip) == (48, 4, True)
    assert (usual.test.border, usual.test.flip) == (0, False)
    assert torch.allclose(usual.train.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)
    assert torch.allclose(usual.train.images.std((0, 2, 3)), torch.ones(3), atol=1e-5)
    assert not torch.allclose(usual.test.images.mean((0, 2, 3)), torch.zeros(3), atol=1e-5)  # by the training images
    plain = prepare(data, Settings(batch=8, augment=False, normalise=False, validation=0), fit, cpu)
    assert isinstance(plain.train, Held)
    assert plain.validation is None
    assert plain.train.border == 0
    (first,) = plain.train.feed(8, 0, 7, 70).batches(0, 1)
    assert any(torch.equal(first[0][0], image) for image in images)
    white = prepare(data, Settings(batch=8, whiten=True, whiten_epsilon=0.1), fit, cpu)
    assert isinstance(white.train, Held)
    assert white.about["normalise"] is False
    spread = torch.cov(white.train.images.flatten(1).T, correction=0)
    assert torch.linalg.eigvalsh(spread).max() < 1
    feed = usual.train.feed(8, 0, 6, 60)
    one, other = list(feed.batches(0, 2))
    again = list(usual.train.feed(8, 0, 6, 60).batches(1, 2))
    assert torch.equal(other[0], again[0][0])
    assert not torch.equal(one[0], other[0])


def test_images_are_made_to_fit() -> None:
    from reclra_graph.train.parts import Fit

    image = torch.rand(2, 1, 4, 4)
    assert torch.equal(Fit((16,))(image), image.flatten(1))
    wide = Fit((3, 6, 8), torch.float64)(image)
    assert wide.shape == (2, 3, 6, 8)
    assert wide.dtype == torch.float64
    assert torch.equal(wide[:, 2, 1:5, 2:6], image[:, 0].double())
    assert wide.sum() == pytest.approx(3 * float(image.sum()), rel=1e-5)
    assert Fit((3, 6, 8), channels_last=True)(image).is_contiguous(memory_format=torch.channels_last)
    assert Fit((3, 6, 8)).problem((1, 4, 4), "") is None
    for shape in ((3, 2, 2), (6, 8), (2, 6, 8)):
        found = Fit(shape).problem((1, 4, 4), "here")
        assert found is None if shape == (2, 6, 8) else found is not None
    tokens = torch.arange(6).reshape(2, 3)
    assert Fit((3,), torch.int64)(tokens).dtype == torch.int64


def test_judging_fills_up_the_last_batch(tmp_path: Path) -> None:
    from reclra_graph.train.parts import Fit, Held

    part = Held(torch.arange(7.0)[:, None], torch.arange(7), Fit((1,)))
    found = [(labels.tolist(), valid) for _, labels, valid in part.judged(3)]
    assert found == [([0, 1, 2], 3), ([3, 4, 5], 3), ([6, 0, 1], 1)]
