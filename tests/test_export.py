"""The refined predictor compiled, exported and as ONNX: the same function, for any number of points."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.errors import JobError
from lsr_hpc.export import export_onnx, exported
from lsr_hpc.models import MLP
from lsr_hpc.params import ParameterLayout
from lsr_hpc.predictor import RefinedPredictor
from tests.extras import require_modules
from tests.test_predictor import bound_predictor, mlp_predictor, points

# torch's own tracing warns of its own deprecated functions.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
MAKERS = [(mlp_predictor, 2), (lambda: bound_predictor(1), 1)]


def tanh_predictor() -> RefinedPredictor:
    torch.manual_seed(0)
    model = MLP([2, 8, 8, 1])
    return RefinedPredictor(model, torch.randn(ParameterLayout.of(model).size).double())


def assert_close(values: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(values, expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(("make", "d"), MAKERS, ids=["mlp", "deeponet"])
def test_compiled_predictor_is_the_same_function(make: Callable[[], RefinedPredictor], d: int) -> None:
    # The default backend builds C++ for a minute; what may differ is in the graph, which is the same.
    predictor = make()
    compiled = torch.compile(predictor, backend="aot_eager")
    assert_close(compiled(points(9, d)), predictor(points(9, d)))
    torch._dynamo.reset()


@pytest.mark.parametrize(("make", "d"), MAKERS, ids=["mlp", "deeponet"])
def test_exported_predictor_takes_any_number_of_points(
    make: Callable[[], RefinedPredictor], d: int, tmp_path: Path
) -> None:
    predictor = make()
    program = exported(predictor, points(9, d))
    torch.export.save(program, tmp_path / "p.pt2")
    again = torch.export.load(tmp_path / "p.pt2").module()
    for n in (2, 9, 1000):
        assert_close(again(points(n, d)), predictor(points(n, d)))


def test_exported_predictor_is_differentiable_in_x() -> None:
    predictor = tanh_predictor()
    program = exported(predictor, points()).module()
    x, z = points().requires_grad_(), points().requires_grad_()
    assert_close(torch.autograd.grad(program(x).sum(), x)[0], torch.autograd.grad(predictor(z).sum(), z)[0])


def test_network_that_counts_its_points_is_refused() -> None:
    class Counts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(2, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) * len(x.tolist())

    model = Counts()
    with pytest.raises(JobError, match="cannot be exported for any number of points"):
        exported(RefinedPredictor(model, torch.ones(3)), points())


@pytest.fixture
def onnx(monkeypatch: pytest.MonkeyPatch) -> None:
    require_modules("onnx", "onnxscript", "onnxruntime")
    monkeypatch.setattr(logging.getLogger("torch.onnx"), "level", logging.ERROR)


@pytest.mark.usefixtures("onnx")
@pytest.mark.parametrize(
    ("make", "d"), [(tanh_predictor, 2), (lambda: bound_predictor(1), 1)], ids=["mlp", "deeponet"]
)
def test_onnx_model_is_the_same_function_under_onnxruntime(
    make: Callable[[], RefinedPredictor], d: int, tmp_path: Path
) -> None:
    import onnxruntime

    predictor = make()
    assert export_onnx(predictor, tmp_path / "p.onnx", points(9, d)) <= 1e-12
    session = onnxruntime.InferenceSession(str(tmp_path / "p.onnx"))
    x = points(100, d)
    (values,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert_close(torch.from_numpy(values), predictor(x))
    assert [p.name for p in tmp_path.iterdir()] == ["p.onnx"]


@pytest.mark.usefixtures("onnx")
def test_documented_example_runs_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = (Path(__file__).parents[1] / "docs/usage.md").read_text()
    (example,) = re.findall(r"```python\n(from lsr_hpc.export.*?)```", usage, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(example, {"predictor": tanh_predictor(), "x": points()})
    assert (tmp_path / "refined.onnx").exists()


@pytest.mark.usefixtures("onnx")
def test_operation_without_a_kernel_is_said_and_single_precision_helps(tmp_path: Path) -> None:
    # GELU has no kernel in double precision.
    predictor = mlp_predictor()
    with pytest.raises(JobError, match=r"try predictor\.float\(\)"):
        export_onnx(predictor, tmp_path / "p.onnx", points())
    assert not list(tmp_path.iterdir())
    assert export_onnx(predictor.float(), tmp_path / "p.onnx", points().float()) <= 1e-6
