"""The emitted file by itself: torch alone, no autograd, the same bytes in every process."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import reclra_graph as rg
from tests.differential.residual_mlps import batch, build

ROOT = Path(__file__).resolve().parents[2]
STEPS = 3
RATES = {"lr": 0.1, "beta": 0.2, "gamma": 0.3}

# The process of this script gets no PYTHONPATH, no site folders (-I -S) and no way to find this package; torch comes
# from the folder that it was imported from here. Leaving torch.no_grad() puts back the mode that it found, nothing else
# may switch gradients on.
TRAIN_ALONE = """
import sys
from pathlib import Path

folder, site, steps, rates = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), eval(sys.argv[4])


class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("reclra_graph", "passes", "cli"):
            raise ImportError(name + " must not be needed")


sys.meta_path.insert(0, Refuse())
sys.path.append(site)
import torch

torch.set_num_threads(1)


def refuse(name):
    def called(*args, **kwargs):
        raise AssertionError(name + " was called")

    return called


def patch(owner, label, names):
    for name in names:
        if hasattr(owner, name):
            setattr(owner, name, refuse(label + "." + name))


patch(torch.Tensor, "Tensor", ["backward", "register_hook", "retain_grad"])
patch(torch.autograd, "autograd", ["backward", "grad", "enable_grad"])
patch(torch.autograd.Function, "Function", ["apply"])
patch(torch.autograd.functional, "functional", ["vjp", "jvp", "jacobian", "hessian", "vhp", "hvp"])
patch(torch.autograd.graph, "graph", ["save_on_cpu", "saved_tensors_hooks", "register_multi_grad_hook"])
patch(torch.autograd.forward_ad, "forward_ad", ["dual_level", "make_dual", "enter_dual_level"])
patch(torch.func, "func", ["grad", "grad_and_value", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "linearize"])
patch(torch, "torch", ["enable_grad"])
patch(torch.autograd, "autograd", ["_engine_run_backward"])
patch(torch.autograd.graph, "graph", ["_engine_run_backward"])
switch = torch.set_grad_enabled


class OnlyOff(switch):
    def __init__(self, mode):
        caller = sys._getframe(1).f_code
        restoring = caller.co_name == "__exit__" and caller.co_filename.endswith("grad_mode.py")
        if mode and not restoring:
            raise AssertionError("set_grad_enabled(True) was called")
        super().__init__(mode)


torch.set_grad_enabled = OnlyOff

x = torch.ones(2, requires_grad=True)
y = (x * x).sum()


class Twice(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return 2 * value


for forbidden in (
    "import reclra_graph",
    "import reclra_graph.rules",
    "torch.enable_grad()",
    "torch.set_grad_enabled(True)",
    "y.backward()",
    "torch.autograd.backward(y)",
    "torch.autograd.grad(y, x)",
    "torch.autograd.functional.vjp(torch.sin, x, x)",
    "torch.func.grad(torch.sum)(x)",
    "torch.func.vjp(torch.sin, x)",
    "torch.func.jvp(torch.sin, (x,), (x,))",
    "torch.autograd.forward_ad.dual_level()",
    "Twice.apply(x)",
):
    try:
        exec(forbidden)
    except (AssertionError, ImportError):
        continue
    raise SystemExit("not refused: " + forbidden)

data = torch.load(folder / "data.pt")
space = {"__name__": "emitted", "__file__": str(folder / "step.py")}
exec(compile((folder / "step.py").read_text(), str(folder / "step.py"), "exec"), space)
P, E = data["P"], data["E"]
losses = [space["step"](P, E, data["x"], data["target"], **rates) for _ in range(steps)]
space.get("settle", lambda E: None)(E)
assert all(value.grad_fn is None and value.grad is None for value in (*P.values(), *E.values(), *losses))
loaded = sorted(name for name in sys.modules if name.split(".")[0] in ("reclra_graph", "passes", "cli"))
assert not loaded, loaded
torch.save({"P": P, "E": E, "losses": losses}, folder / "result.pt")
"""

# Prints digests of everything a compilation makes that must not depend on the process.
COMPILE = """
import hashlib, sys
import torch
import reclra_graph as rg
from reclra_graph.ir.text import to_text
from tests.differential.residual_mlps import batch, build

torch.set_num_threads(1)
net = build(3, True, "mixed")
x, target = batch(net, "cross-entropy")
step = rg.compile(net, (x,), gpus=3)
step.save(sys.argv[1])
for text in (step.source, to_text(step.plan), to_text(step.schedule)):
    print(hashlib.sha256(text.encode()).hexdigest())
for name, synapse in sorted(step.synapses.items()):
    print(name, hashlib.sha256(synapse.detach().numpy().tobytes()).hexdigest())
"""


class Convolutional(torch.nn.Module):
    """Everything with state or several operators in a region: convolutions, batch norm, pooling, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = torch.nn.Sequential(torch.nn.Conv2d(2, 4, 3, padding=1), torch.nn.BatchNorm2d(4), torch.nn.ReLU())
        self.inner = torch.nn.Sequential(torch.nn.Conv2d(4, 4, 3, padding=1, groups=2), torch.nn.BatchNorm2d(4))
        self.pool = torch.nn.Sequential(torch.nn.MaxPool2d(2), torch.nn.AdaptiveAvgPool2d(2), torch.nn.Flatten())
        self.head = torch.nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B, 2, H, W] to [B, 3]."""
        z = self.stem(x)
        result: torch.Tensor = self.head(self.pool(torch.tanh(self.inner(z) + z)))
        return result


def model(kind: str) -> tuple[torch.nn.Module, torch.Tensor, torch.Tensor]:
    """A float64 net and a batch for it, the same at every call."""
    if kind == "mlp":
        net = build(2, True, "mixed")
        return net, *batch(net, "cross-entropy")
    torch.manual_seed(0)
    return Convolutional().double(), torch.randn(4, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 2, 1, 1])


@pytest.mark.parametrize(
    ("kind", "autocast"),
    [("mlp", None), ("convolutional", None), ("mlp", "float16"), ("convolutional", "bfloat16")],
)
def test_it_trains_alone_with_every_autograd_entry_point_raising(
    kind: str, autocast: str | None, tmp_path: Path
) -> None:
    net, x, target = model(kind)
    if autocast is not None:
        net, x = net.float(), x.float()
    step = rg.compile(net, (x,), gpus=3, lr=RATES["lr"], beta=RATES["beta"], gamma=RATES["gamma"], autocast=autocast)
    (tmp_path / "step.py").write_text(step.source)
    torch.save(
        {
            "P": {key: value.detach().clone() for key, value in net.state_dict().items()},
            "E": {name: synapse.detach().clone() for name, synapse in step.synapses.items()},
            "x": x,
            "target": target,
        },
        tmp_path / "data.pt",
    )
    script = tmp_path / "train_alone.py"
    script.write_text(TRAIN_ALONE)
    site = str(Path(torch.__file__).resolve().parents[1])
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    command = [sys.executable, "-I", "-S", str(script), str(tmp_path), site, str(STEPS), repr(RATES)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        losses = [step(x, target) for _ in range(STEPS)]
    finally:
        torch.set_num_threads(threads)
    result = torch.load(tmp_path / "result.pt")
    for ours, theirs in (
        *((value, result["P"][key]) for key, value in net.state_dict().items()),
        *((value, result["E"][name]) for name, value in step.synapses.items()),
        *zip(losses, result["losses"], strict=True),
    ):
        assert torch.equal(ours.detach(), theirs.detach())
    assert float(losses[0]) != float(losses[-1])


@pytest.mark.parametrize("kind", ["mlp", "convolutional"])
def test_it_imports_torch_and_the_standard_library_alone(kind: str) -> None:
    net, x, _ = model(kind)
    tree = ast.parse(rg.compile(net, (x,), gpus=2).source)
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add((node.module or "").split(".")[0])
    assert "torch" in imported
    assert imported - {"torch"} <= sys.stdlib_module_names


def test_two_processes_with_different_hash_seeds_give_the_same_bytes(tmp_path: Path) -> None:
    seen = []
    for seed in ("1", "31337"):
        folder = tmp_path / seed
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", COMPILE, str(folder)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        saved = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("step.py")}
        assert saved
        seen.append((done.stdout, json.dumps(saved)))
    assert seen[0] == seen[1]
