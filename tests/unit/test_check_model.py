"""Models that cannot train, each found before anything is run, and models like them that can."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from reclra_graph.check_model import check_model, plain_model
from reclra_graph.errors import Problem

X = torch.zeros(2, 4)


def net() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Tanh(), nn.Linear(3, 2))


def found(model: Any, *args: Any, **kwargs: Any) -> list[Problem]:
    problems = check_model(model, args or (X,), kwargs)
    for problem in problems:
        assert problem.cause
        assert problem.place
        assert problem.advice
    return problems


def codes(model: Any, *args: Any, **kwargs: Any) -> list[str]:
    return [problem.code for problem in found(model, *args, **kwargs)]


def lazy() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.Sequential(nn.LazyLinear(3), nn.LazyBatchNorm1d(), nn.Linear(3, 2))


def with_parameter(value: Tensor, learns: bool = True) -> nn.Module:
    model = net()
    model.register_parameter("extra", nn.Parameter(value, requires_grad=learns))
    return model


def with_buffer(value: Tensor) -> nn.Module:
    model = net()
    model.register_buffer("extra", value)
    return model


def fake(device: str = "cpu") -> Tensor:
    with FakeTensorMode():
        return torch.empty(2, 4, device=device)


def quantised(value: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(value, 0.1, 0, torch.qint8)


@pytest.mark.parametrize(
    "make",
    [
        net,
        lambda: net().double(),
        lambda: net().requires_grad_(False),
        lambda: nn.Tanh(),
        lambda: with_parameter(torch.zeros(2, dtype=torch.bfloat16), learns=False),
        lambda: with_parameter(torch.zeros(2, dtype=torch.int8), learns=False),
        lambda: with_buffer(torch.zeros(2, dtype=torch.complex64)),
        lambda: with_buffer(torch.zeros(2, dtype=torch.float16)),
    ],
)
def test_models_that_are_fine(make: Callable[[], nn.Module]) -> None:
    assert codes(make()) == []


def test_no_module_at_all() -> None:
    assert codes(3) == ["RG104"]
    assert codes(nn.Linear) == ["RG104"]


def test_wrappers() -> None:
    assert codes(nn.DataParallel(net())) == ["RG125"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for model in (torch.jit.trace(net().eval(), X), torch.jit.script(net())):
            assert codes(model) == ["RG126"]


def test_a_compiled_model_is_unwrapped() -> None:
    model = net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(model, backend="eager")
    assert plain_model(compiled) is model
    assert plain_model(model) is model
    assert codes(compiled) == []


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    (problem,) = found(net().to(dtype))
    assert problem.code == "RG121"
    assert str(dtype).removeprefix("torch.") in problem.cause
    assert "0.weight, 0.bias, 1.weight and 3 more" in problem.cause
    assert "model.float()" in problem.advice


def test_several_precisions() -> None:
    model = net()
    model[0].double()
    (problem,) = found(model)
    assert problem.code == "RG121"
    assert "float32 (1.weight" in problem.cause
    assert "float64 (0.weight" in problem.cause


def test_complex_parameters() -> None:
    (problem,) = found(with_parameter(torch.zeros(2, dtype=torch.complex64)))
    assert problem.code == "RG121"
    assert "extra" in problem.cause


def test_tensors_without_values() -> None:
    assert codes(net().to("meta")) == ["RG122", "RG122"]
    assert codes(with_buffer(fake())) == ["RG122"]
    assert codes(with_parameter(fake())) == ["RG122"]
    (problem,) = found(net(), torch.zeros(2, 4, device="meta"))
    assert problem.code == "RG122"
    assert problem.place == "example_inputs"
    assert codes(net(), fake()) == ["RG122"]


def test_lazy_modules() -> None:
    (problem,) = found(lazy())
    assert problem.code == "RG123"
    assert "0.weight" in problem.cause
    model = lazy()
    model(X)
    assert codes(model) == []


def test_several_devices() -> None:
    # Without a second device only tensors that have no values can stand on one.
    problems = found(with_buffer(fake("cuda")))
    assert {problem.code for problem in problems} == {"RG120", "RG122"}
    (devices,) = [problem for problem in problems if problem.code == "RG120"]
    assert "cpu: 0.weight" in devices.cause
    assert "cuda:0: extra" in devices.cause
    (problem,) = [problem for problem in found(net(), x=fake("cuda")) if problem.code == "RG120"]
    assert problem.place == "example_inputs['x']"
    assert '.to("cpu")' in problem.advice


@pytest.mark.gpu
def test_several_real_devices() -> None:
    model = net()
    model[0].cuda()
    assert codes(model) == ["RG120"]
    assert codes(net().cuda()) == ["RG120"]
    assert codes(net(), X.cuda()) == ["RG120"]
    assert codes(net().cuda(), X.cuda()) == []
    assert codes(with_buffer(torch.tensor(1.0)).cuda(), X.cuda(), torch.tensor(1.0)) == []


def test_quantised_models_and_tensors() -> None:
    before = torch.backends.quantized.engine
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        engines = torch.backends.quantized.supported_engines
        torch.backends.quantized.engine = next(name for name in engines if name != "none")
        model = torch.ao.quantization.quantize_dynamic(net(), {nn.Linear})
        torch.backends.quantized.engine = before
    (problem,) = found(model)
    assert problem.code == "RG124"
    assert problem.cause.startswith("quantised modules: 0, ")
    assert codes(with_buffer(quantised(X))) == ["RG124"]
    assert codes(net(), quantised(X)) == ["RG124"]


@pytest.mark.parametrize("make", [lambda: torch.eye(3).to_sparse(), lambda: torch.eye(3).to_mkldnn()])
def test_sparse_tensors(make: Callable[[], Tensor]) -> None:
    assert codes(with_parameter(make())) == ["RG124"]
    assert codes(net(), make()) == ["RG124"]


def test_tensors_made_in_inference_mode() -> None:
    with torch.inference_mode():
        model, x = net(), torch.zeros(2, 4)
    (problem,) = found(model)
    assert problem.code == "RG124"
    assert "inference mode" in problem.cause
    assert codes(net(), x) == ["RG124"]
    assert codes(net(), x.clone()) == []


def test_everything_is_found_at_once() -> None:
    model = net().to(torch.bfloat16)
    model.register_buffer("extra", torch.zeros(2, device="meta"))
    model.append(lazy())
    assert codes(model, fake()) == ["RG123", "RG122", "RG122", "RG121"]
