"""The refined predictor: network plus linear correction, differentiable in x, and safe in storage."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vmap
from torch.func import grad as func_grad

from lsr_hpc.errors import JobError
from lsr_hpc.models import MLP, BoundDeepONet, DeepONet
from lsr_hpc.params import ParameterLayout
from lsr_hpc.predictor import RefinedPredictor, load_predictors, save_predictors
from lsr_hpc.problem import ModelSpec

MLP_SPEC = ModelSpec(architecture="mlp", arguments={"widths": [2, 8, 8, 1], "activation": "gelu"})
DEEPONET_ARGUMENTS = {"branch": [5, 6, 4], "trunk": [1, 6, 4]}


def mlp(seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(**MLP_SPEC.arguments)


def mlp_predictor(seed: int = 0) -> RefinedPredictor:
    model = mlp(seed)
    return RefinedPredictor(model, torch.randn(ParameterLayout.of(model).size).double() / 10, MLP_SPEC)


def bound_predictor(instance: int) -> RefinedPredictor:
    torch.manual_seed(0)
    operator = DeepONet(**DEEPONET_ARGUMENTS)
    torch.manual_seed(instance)
    model = BoundDeepONet(operator, torch.randn(5).double())
    spec = ModelSpec(architecture="bound_deeponet", arguments={"operator": DEEPONET_ARGUMENTS})
    return RefinedPredictor(model, torch.randn(ParameterLayout.of(model).size).double(), spec)


class Mine(nn.Module):
    """A user's own module: convolution, fixed batch norm, a tied and a frozen weight, several outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.convolution, self.norm = nn.Conv1d(1, 3, 3, padding=1), nn.BatchNorm1d(3)
        self.first, self.frozen = nn.Linear(12, 12), nn.Linear(12, 2)
        self.again = self.first
        self.scale = nn.Parameter(torch.tensor(0.5))
        self.frozen.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.convolution(x[:, None, :])).flatten(1)
        return self.scale * self.frozen(torch.tanh(self.again(torch.tanh(self.first(h)))))


def mine() -> Mine:
    torch.manual_seed(2)
    model = Mine()
    model.norm.running_mean.normal_()
    return model.eval()


def points(n: int = 9, d: int = 2) -> Tensor:
    return torch.from_numpy(np.random.default_rng(n).standard_normal((n, d)))


def dense_refined(model: nn.Module, delta: Tensor, x: Tensor) -> Tensor:
    """u0 + J delta with J entry by entry, from the module itself in float64."""
    module = model.double()
    parameters = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    jacobian = jacrev(lambda p: functional_call(module, p, (x,)))(parameters)
    flat = torch.cat(
        [jacobian[n].flatten(2) if p.dim() else jacobian[n][..., None] for n, p in parameters.items()], -1
    )
    return module(x).detach() + flat @ delta


@pytest.mark.parametrize(("make", "d"), [(mlp, 2), (lambda: bound_predictor(1).network, 1), (mine, 4)])
def test_prediction_is_the_network_plus_its_dense_jacobian_times_delta(
    make: Callable[[], nn.Module], d: int
) -> None:
    model = make().requires_grad_(True)
    if isinstance(model, Mine):
        model.frozen.requires_grad_(False)
    delta = torch.randn(ParameterLayout.of(model).size).double()
    x = points(7, d)
    refined = RefinedPredictor(model, delta)(x)

    # Exact derivatives in float64 on both sides.
    expected = dense_refined(model, delta, x)
    assert float((refined - expected).norm()) <= 1e-12 * float(expected.norm())


def test_zero_correction_is_the_network_in_float64() -> None:
    model = mlp()
    predictor = RefinedPredictor(model, torch.zeros(ParameterLayout.of(model).size))

    assert torch.equal(predictor(points()), model.double()(points()))


def test_correction_is_linear_in_delta() -> None:
    model, x = mlp(), points()
    size = ParameterLayout.of(model).size
    a, b = torch.randn(size).double(), torch.randn(size).double()
    base = model.double()(x).detach()

    def correction(delta: Tensor) -> Tensor:
        return RefinedPredictor(model, delta)(x) - base

    torch.testing.assert_close(
        correction(2 * a - 3 * b), 2 * correction(a) - 3 * correction(b), rtol=1e-12, atol=1e-12
    )


def test_delta_that_does_not_fit_is_refused() -> None:
    with pytest.raises(JobError, match=r"delta has shape \(5,\), the network has 105"):
        RefinedPredictor(mlp(), torch.zeros(5))


def test_predictor_is_a_copy_of_what_it_was_made_from() -> None:
    model = mlp()
    delta = torch.randn(ParameterLayout.of(model).size).double()
    predictor = RefinedPredictor(model, delta, MLP_SPEC)
    before = predictor(points())
    with torch.no_grad():
        delta.zero_()
        next(model.parameters()).zero_()

    assert torch.equal(predictor(points()), before)
    assert next(model.parameters()).dtype == torch.float32
    assert all(p.requires_grad for p in model.parameters())


def test_float32_inputs_are_lifted_to_float64() -> None:
    predictor, x = mlp_predictor(), points().float()

    assert predictor(x).dtype == torch.float64
    assert torch.equal(predictor(x), predictor(x.double()))


def numerical_slope(predictor: RefinedPredictor, x: Tensor, axis: int) -> Tensor:
    """Central difference extrapolated once (Richardson); good to about 1e-11."""
    step = torch.zeros(x.shape[1], dtype=torch.float64)

    def difference(h: float) -> Tensor:
        step[axis] = h
        return (predictor(x + step) - predictor(x - step)) / (2 * h)

    return ((4 * difference(5e-4) - difference(1e-3)) / 3).detach()


@pytest.mark.parametrize("axis", [0, 1])
def test_autograd_differentiates_in_x(axis: int) -> None:
    predictor = mlp_predictor()
    x = points().requires_grad_()
    (slope,) = torch.autograd.grad(predictor(x).sum(), x)

    torch.testing.assert_close(
        slope[:, axis, None], numerical_slope(predictor, x.detach(), axis), rtol=1e-8, atol=1e-9
    )


def test_second_derivatives_by_autograd_and_by_torch_func_agree() -> None:
    predictor = mlp_predictor()
    x = points().requires_grad_()
    (first,) = torch.autograd.grad(predictor(x).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first[:, 0].sum(), x)
    by_func = vmap(jacrev(func_grad(lambda z: predictor(z[None])[0, 0])))(x.detach())

    torch.testing.assert_close(second, by_func[:, 0, :], rtol=1e-11, atol=1e-12)


def test_forward_mode_goes_through_it() -> None:
    predictor, x = mlp_predictor(), points()
    tangent = torch.zeros_like(x)
    tangent[:, 1] = 1.0
    _, slope = jvp(predictor, (x,), (tangent,))
    _, curvature = jvp(lambda z: jvp(predictor, (z,), (tangent,))[1], (x,), (tangent,))
    h = 1e-4
    difference = (predictor(x + h * tangent) - 2 * predictor(x) + predictor(x - h * tangent)) / h**2

    torch.testing.assert_close(slope, numerical_slope(predictor, x, 1), rtol=1e-8, atol=1e-9)
    # Second differences: h^2 of truncation, eps / h^2 of rounding.
    torch.testing.assert_close(curvature, difference, rtol=1e-5, atol=1e-6)


def test_derivatives_are_those_of_the_analytic_linear_model() -> None:
    # u = w x^2 has du/dw = x^2, so the refined field is (w + delta) x^2 and its slope 2 (w + delta) x.
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = nn.Parameter(torch.tensor(3.0))

        def forward(self, x: Tensor) -> Tensor:
            return self.w * x**2

    predictor = RefinedPredictor(Square(), torch.tensor([0.25]))
    x = points(6, 1).requires_grad_()
    value = predictor(x)

    torch.testing.assert_close(value, 3.25 * x**2)
    torch.testing.assert_close(torch.autograd.grad(value.sum(), x)[0], 6.5 * x)


@pytest.mark.parametrize("batch_size", [1, 4, 9, 100])
def test_prediction_in_batches_is_the_same(batch_size: int) -> None:
    predictor, x = mlp_predictor(), points()
    batched = predictor.predict(x, batch_size=batch_size)

    assert not batched.requires_grad
    # Products of batches of other sizes may round otherwise.
    torch.testing.assert_close(batched, predictor(x), rtol=1e-13, atol=1e-14)


def test_prediction_at_no_points_is_empty() -> None:
    assert mlp_predictor().predict(points(0)).shape == (0, 1)


def test_predictor_survives_storage_bit_for_bit(tmp_path: Path) -> None:
    predictor = mlp_predictor()
    predictor.save(tmp_path / "predictor")
    loaded = RefinedPredictor.load(tmp_path / "predictor")

    assert torch.equal(loaded.delta, predictor.delta)
    assert loaded.layout == predictor.layout
    assert loaded.spec == predictor.spec
    state = predictor.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(t.dtype == state[n].dtype and torch.equal(t, state[n]) for n, t in loaded.state_dict().items())
    assert torch.equal(loaded(points()), predictor(points()))


def test_float64_weights_are_stored_without_loss(tmp_path: Path) -> None:
    model = mlp().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1e-12 * torch.randn_like(parameter)
    predictor = RefinedPredictor(model, torch.randn(105).double() * 1e-300, MLP_SPEC)
    predictor.save(tmp_path / "predictor")
    loaded = RefinedPredictor.load(tmp_path / "predictor")

    assert all(torch.equal(t, predictor.state_dict()[n]) for n, t in loaded.state_dict().items())


@pytest.fixture
def family(tmp_path: Path) -> tuple[Path, list[RefinedPredictor]]:
    """Three instances of one operator on disk."""
    predictors = [bound_predictor(i) for i in range(1, 4)]
    save_predictors(tmp_path / "family", predictors)
    return tmp_path / "family", predictors


def test_family_survives_storage_and_keeps_its_order(family: tuple[Path, list[RefinedPredictor]]) -> None:
    directory, predictors = family
    loaded = load_predictors(directory)
    y = points(5, 1)

    assert len(loaded) == 3
    for i, predictor in enumerate(predictors):
        assert torch.equal(loaded[i](y), predictor(y))
        assert torch.equal(RefinedPredictor.load(directory, instance=i)(y), predictor(y))


def test_weights_that_all_instances_share_are_stored_once(
    family: tuple[Path, list[RefinedPredictor]],
) -> None:
    from safetensors.torch import load_file

    directory, _ = family

    assert "h" not in load_file(directory / "theta0.safetensors")
    assert set(load_file(directory / "instance-00002.safetensors")) == {"delta", "state.h"}


@pytest.mark.parametrize("instance", [-1, 3, 100])
def test_instance_that_does_not_exist_is_refused(
    instance: int, family: tuple[Path, list[RefinedPredictor]]
) -> None:
    with pytest.raises(JobError, match=rf"instance {instance} does not exist: .* holds instances 0 to 2"):
        RefinedPredictor.load(family[0], instance=instance)


def test_own_module_is_loaded_into_one_that_is_handed_in(tmp_path: Path) -> None:
    model = mine()
    predictor = RefinedPredictor(model, torch.randn(ParameterLayout.of(model).size))
    predictor.save(tmp_path / "own")
    x = points(6, 4)

    with pytest.raises(JobError, match=r"network of your own: pass it as .*model=your_module"):
        RefinedPredictor.load(tmp_path / "own")
    # A fresh module: other weights, other statistics, all parameters trainable, training mode.
    loaded = RefinedPredictor.load(tmp_path / "own", model=Mine().requires_grad_(True))
    assert torch.equal(loaded(x), predictor(x))
    with pytest.raises(JobError, match="does not fit the given network"):
        RefinedPredictor.load(tmp_path / "own", model=mlp())


def test_module_handed_in_for_loading_is_left_alone(tmp_path: Path) -> None:
    RefinedPredictor(mine(), torch.randn(ParameterLayout.of(mine()).size)).save(tmp_path / "own")
    model = Mine()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    RefinedPredictor.load(tmp_path / "own", model=model)

    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())


WITHOUT_SOLVERS = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {"mpi4py", "petsc4py", "slepc4py", "dask", "distributed", "scipy"}:
            raise ImportError(f"{name} is not installed here")

sys.meta_path.insert(0, Blocker())
import numpy as np
import torch
from lsr_hpc.predictor import RefinedPredictor, load_predictors
directory, x, y = sys.argv[1:]
np.save(y, RefinedPredictor.load(directory, instance=1).predict(torch.from_numpy(np.load(x))).numpy())
assert len(load_predictors(__import__("pathlib").Path(directory))) == 3
"""


def test_loading_and_predicting_need_no_mpi_petsc_or_slepc(
    family: tuple[Path, list[RefinedPredictor]],
) -> None:
    directory, predictors = family
    x, y = directory.with_name("x.npy"), directory.with_name("y.npy")
    np.save(x, points(5, 1).numpy())
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_SOLVERS, directory, x, y], capture_output=True, text=True, timeout=60
    )

    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(y), predictors[1](points(5, 1)).numpy(), rtol=1e-13, atol=1e-14)


def load_or_refusal(directory: Path) -> list[RefinedPredictor] | str:
    try:
        return load_predictors(directory)
    except JobError as error:
        return str(error)


def positions(size: int) -> list[int]:
    """Twenty places of a file: both ends, the length field of safetensors, and some at random."""
    drawn = np.random.default_rng(size).integers(0, size, 11)
    return sorted({0, 1, 7, 8, 9, size // 2, size - 9, size - 2, size - 1, *drawn.tolist()})


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
@pytest.mark.parametrize(
    "name",
    ["predictor.json", "theta0.safetensors", *(f"instance-0000{i}.safetensors" for i in range(3))],
)
def test_any_changed_byte_is_noticed(
    name: str, flip: int, family: tuple[Path, list[RefinedPredictor]]
) -> None:
    directory, predictors = family
    file = directory / name
    intact = file.read_bytes()
    y = points(5, 1)
    for position in positions(len(intact)):
        changed = bytearray(intact)
        changed[position] ^= flip
        file.write_bytes(changed)
        loaded = load_or_refusal(directory)
        if isinstance(loaded, str):
            assert str(directory) in loaded
            continue
        # Of JSON, white space and the letter case of an exponent mean the same.
        assert name == "predictor.json", f"byte {position} ^ {flip:#x} went unnoticed"
        assert json.loads(changed) == json.loads(intact), f"byte {position} ^ {flip:#x} went unnoticed"
        assert all(torch.equal(a(y), b(y)) for a, b in zip(loaded, predictors, strict=True))
    file.write_bytes(intact)
    load_predictors(directory)


@pytest.mark.parametrize("name", ["predictor.json", "theta0.safetensors", "instance-00001.safetensors"])
@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_truncated_file_is_refused(
    name: str, keep: float, family: tuple[Path, list[RefinedPredictor]]
) -> None:
    file = family[0] / name
    content = file.read_bytes()
    file.write_bytes(content[: int(keep * len(content))])

    with pytest.raises(JobError, match="restore it or make it again"):
        load_predictors(family[0])


@pytest.mark.parametrize("name", ["predictor.json", "theta0.safetensors", "instance-00001.safetensors"])
def test_missing_file_is_named(name: str, family: tuple[Path, list[RefinedPredictor]]) -> None:
    (family[0] / name).unlink()

    with pytest.raises(JobError, match=rf"{name} does not exist"):
        load_predictors(family[0])


def test_missing_directory_is_named(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"nowhere.* does not exist"):
        RefinedPredictor.load(tmp_path / "nowhere")


def test_swapped_instances_are_noticed(family: tuple[Path, list[RefinedPredictor]]) -> None:
    first, second = (family[0] / f"instance-0000{i}.safetensors" for i in (0, 1))
    kept = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(kept)

    with pytest.raises(JobError, match="differs from its recorded SHA-256"):
        load_predictors(family[0])


def test_file_of_another_version_is_refused(tmp_path: Path) -> None:
    from lsr_hpc.store import read_manifest, write_manifest

    mlp_predictor().save(tmp_path / "predictor")
    manifest = tmp_path / "predictor" / "predictor.json"
    write_manifest(manifest, read_manifest(manifest) | {"schema": 99})

    with pytest.raises(JobError, match="schema 99, this version reads 1"):
        RefinedPredictor.load(tmp_path / "predictor")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"n_instances": 2}, "names 2 instances"),
        ({"n_instances": 10**12}, "names 1000000000000 instances"),
        ({"n_instances": "1"}, "no usable 'n_instances'"),
        ({"architecture": ["mlp"]}, "no usable 'architecture'"),
        ({"architecture": "transformer"}, "has architecture 'transformer', this version has classifier, mlp"),
        ({"arguments": {"depth": 3}}, "arguments that its architecture 'mlp' refuses"),
        ({"arguments": {"widths": [2, 8, 1]}}, "does not fit the given network"),
        ({"files": {}}, "names 1 instances"),
    ],
)
def test_manifest_that_makes_no_sense_is_refused(
    change: dict[str, object], expected: str, tmp_path: Path
) -> None:
    from lsr_hpc.store import read_manifest, write_manifest

    mlp_predictor().save(tmp_path / "predictor")
    manifest = tmp_path / "predictor" / "predictor.json"
    write_manifest(manifest, read_manifest(manifest) | change)

    with pytest.raises(JobError, match=expected):
        load_predictors(tmp_path / "predictor")


def test_missing_instance_is_to_be_restored_not_trained(family: tuple[Path, list[RefinedPredictor]]) -> None:
    (family[0] / "instance-00002.safetensors").unlink()

    with pytest.raises(JobError, match=r"instance-00002.safetensors does not exist: restore it"):
        load_predictors(family[0])


def test_predictor_is_not_saved_over_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.tex").write_text("precious")

    with pytest.raises(JobError, match="is not empty"):
        mlp_predictor().save(tmp_path / "thesis")
    assert [p.name for p in (tmp_path / "thesis").iterdir()] == ["chapter.tex"]


@pytest.mark.parametrize("shape", [(5, 1), (5, 3), (5,), (2, 5, 1), ()])
def test_inputs_of_another_width_are_not_broadcast(shape: tuple[int, ...]) -> None:
    with pytest.raises(JobError, match=r"takes 2 numbers per point, shape \(n, 2\)"):
        mlp()(torch.ones(shape))


def test_record_beside_the_weights_counts_only_if_it_is_ours(tmp_path: Path) -> None:
    from lsr_hpc.build import read_weights
    from lsr_hpc.store import write_manifest, write_tensors

    digest = write_tensors(tmp_path / "w.safetensors", {"a": torch.ones(3)})
    record = tmp_path / "w.json"
    for text in ('{"learning_rate": 1e-3}', "[1, 2]"):
        record.write_text(text)
        assert torch.equal(read_weights(tmp_path / "w.safetensors")["a"], torch.ones(3))
    for text in ('{"sha256": "0"}', '{"learning_rate": '):
        record.write_text(text)
        with pytest.raises(JobError, match=r"w.json is damaged or not a file of lsr_hpc"):
            read_weights(tmp_path / "w.safetensors")
    write_manifest(record, {"sha256": digest})
    assert torch.equal(read_weights(tmp_path / "w.safetensors")["a"], torch.ones(3))
    write_manifest(record, {"sha256": "0" * 64})
    with pytest.raises(JobError, match="differs from its recorded SHA-256"):
        read_weights(tmp_path / "w.safetensors")


def test_saving_again_keeps_the_predictor_before(tmp_path: Path) -> None:
    old, new = mlp_predictor(1), mlp_predictor(2)
    old.save(tmp_path / "predictor")
    new.save(tmp_path / "predictor")

    assert torch.equal(RefinedPredictor.load(tmp_path / "predictor").delta, new.delta)
    assert torch.equal(RefinedPredictor.load(tmp_path / "predictor.previous").delta, old.delta)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["predictor", "predictor.previous"]


def test_failed_save_leaves_the_predictor_before_and_no_debris(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = mlp_predictor(1)
    old.save(tmp_path / "predictor")

    def full_disk(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lsr_hpc.predictor.write_manifest", full_disk)
    with pytest.raises(OSError, match="No space left"):
        mlp_predictor(2).save(tmp_path / "predictor")
    assert [p.name for p in tmp_path.iterdir()] == ["predictor"]
    assert torch.equal(RefinedPredictor.load(tmp_path / "predictor").delta, old.delta)


def test_stored_predictor_can_be_moved_and_copied(tmp_path: Path) -> None:
    predictor = mlp_predictor()
    predictor.save(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b" / "c")

    assert torch.equal(RefinedPredictor.load(tmp_path / "b" / "c").delta, predictor.delta)
