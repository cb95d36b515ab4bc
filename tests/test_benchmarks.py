"""The benchmarks measure what they say: records, the published recipe, counted traffic, the cost model."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.func import functional_call, jacrev

from benchmarks import arms, cases, cost_model, results, worker
from benchmarks.published_recipe import published_recipe
from benchmarks.record import save_json, save_markdown, save_png, table
from lsr_hpc import Evaluation, Problem, ResidualBlock
from lsr_hpc.settings import HeldOutSettings, RefineSettings, SubspaceSettings

REPOSITORY = Path(__file__).parents[1]
NAMES = ["oneshot", "subspace", "products", "scaling", "pipeline", "predictor", "phases", "memory"]


def run_here(arm):
    """An arm in this process, which is enough to see its record."""
    return arms.completed(arm, worker.call(arm.function, arm.arguments), 0.0)


def assert_is_record(record, name):
    assert record["name"] == name
    assert record["machine"]["cores"] >= 1
    assert "torch" in record["machine"]["versions"]
    assert record["arms"]
    for arm in record["arms"]:
        for key in ("arm", "mpi_ranks", "threads", "seconds", "error", "peak_rss_bytes"):
            assert key in arm
        if "skipped" not in arm:
            assert arm["peak_rss_bytes"] > 0
    assert all(isinstance(value, float) and value > 0 for value in record["ratios"].values())


@pytest.mark.parametrize("name", NAMES)
def test_every_benchmark_leaves_a_record(name, monkeypatch, tmp_path):
    module = importlib.import_module(f"benchmarks.{name}")
    monkeypatch.setattr(module, "run_arm", run_here)
    record = module.run("tiny", [], 1)
    save_json(record, tmp_path / "record.json")
    read = json.loads((tmp_path / "record.json").read_text())
    assert_is_record(read, name)
    assert [a["arm"] for a in read["arms"] if a["arm"].startswith("ours") and "skipped" not in a]
    for arm in read["arms"]:
        assert arm.get("skipped", "not installed").startswith(("not installed", "left out")), arm
    printed = table(record, module.COLUMNS)
    assert all(arm["arm"] in printed for arm in read["arms"])
    if save_png(record, tmp_path / "record.png", module.draw):
        assert (tmp_path / "record.png").stat().st_size > 1000


def tiny_problem():
    torch.manual_seed(3)
    net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
    x = torch.rand(50, 2, dtype=torch.float64)
    target = torch.sin(3 * x[:, :1]) * x[:, 1:]
    problem = Problem(
        name="tiny",
        model=net,
        blocks=[ResidualBlock(name="misfit", residual=lambda u, x, t: u(x) - t, points=x, data=(target,))],
        evaluation=Evaluation(inputs=(x,), reference=target),
    )
    parameters = {n: p.detach() for n, p in net.named_parameters()}
    blocks = jacrev(lambda p: functional_call(net, p, (x,))[:, 0])(parameters)
    j = torch.cat([b.reshape(50, -1) for b in blocks.values()], dim=1).numpy() / np.sqrt(50)
    r0 = (net(x) - target).detach().numpy()[:, 0] / np.sqrt(50)
    settings = RefineSettings(subspace=SubspaceSettings(rank=5), held_out=HeldOutSettings(fraction=0.0))
    return problem, settings, j, r0


def test_explicit_jacobian_is_that_of_jacrev():
    problem, settings, j, _ = tiny_problem()
    found = cases.explicit_jacobian(cases.linearise(problem, settings), points_per_chunk=7).numpy()
    np.testing.assert_allclose(found, j, rtol=0, atol=1e-14 * np.abs(j).max())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 3e-3)])
def test_recipe_is_the_truncated_svd_when_the_sketch_spans_everything(dtype, tolerance):
    """With P columns the range finder is exact: delta = -sum_i (u_i^T r0 / sigma_i) v_i."""
    problem, settings, j, r0 = tiny_problem()
    u, sigma, vt = np.linalg.svd(j, full_matrices=False)
    for rank in (1, 5, 9):
        expected = -vt[:rank].T @ (u[:, :rank].T @ r0 / sigma[:rank])
        linear = cases.linearise(problem, settings, dtype)
        delta = published_recipe(linear, rank=rank, oversampling=j.shape[1], columns_per_chunk=4)
        assert np.linalg.norm(delta.double().numpy() - expected) <= tolerance * np.linalg.norm(expected)


def test_score_is_the_linear_predictor_s_error():
    problem, settings, j, r0 = tiny_problem()
    delta = 1e-2 * torch.linspace(-1, 1, j.shape[1], dtype=torch.float64)
    figures = cases.score(cases.linearise(problem, settings), delta)
    expected = np.linalg.norm(r0 + j @ delta.numpy())
    assert figures["train"] == pytest.approx(expected, rel=1e-12)
    reference = problem.evaluation.reference.numpy()
    assert figures["error"] == pytest.approx(expected * np.sqrt(50) / np.linalg.norm(reference), rel=1e-12)
    assert figures["held_out"] is None


def test_missing_software_is_reported_with_its_remedy():
    with pytest.raises(arms.MissingPeerError, match="not installed: pip install some-package"):
        arms.peer("module_that_nobody_has", "some-package")


def test_an_arm_that_fails_or_hangs_says_so():
    broken = arms.Arm(name="broken", function="oneshot:ours", arguments={"case": {"job": "none.toml"}})
    [found] = arms.run_arm(broken)
    assert "none.toml" in found["skipped"]
    assert found["seconds"] is None
    [found] = arms.run_arm(arms.Arm(name="late", function="oneshot:ours", limit_s=0.01))
    assert "time limit" in found["skipped"]


@pytest.mark.mpi
def test_counted_bytes_are_those_of_the_formulas():
    settings = ["problem.args.points=60", "subspace.rank=6", "subspace.oversampling=2"]
    case = {"job": "jobs/function_fit.toml", "preset": "small", "overrides": settings}
    [found] = arms.run_arm(
        arms.Arm(name="3", function="scaling:measure", arguments={"case": case}, mpi_ranks=3)
    )
    assert "skipped" not in found, found
    # 12,737 parameters over three ranks; the two of the smaller slices receive most of a gathered panel.
    slices = (4246, 4246, 4245)
    gathered = 8 * 6 * (12737 - min(slices))
    summed = 8 * 6 * 2 * max(slices)
    assert max(gathered, summed) <= found["sweep_bytes"] <= gathered + summed
    assert found["sweep_bytes"] == pytest.approx(found["sweep_model_bytes"], rel=1e-3)
    assert found["sweep_messages"] == 4
    # Rank 0 gets two R factors of 7 x 7 numbers, pickled.
    assert 2 * 8 * 49 <= found["tsqr_bytes"] <= 2 * (8 * 49 + 200)


@pytest.mark.mpi
def test_command_line_runs_arms_in_processes_of_their_own(tmp_path):
    out = tmp_path / "memory.json"
    words = ["-m", "benchmarks", "memory", "--preset", "tiny", "--cores", "2", "--json", out]
    done = subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    record = json.loads(out.read_text())
    assert_is_record(record, "memory")
    ours, recipe = record["arms"]
    assert (ours["mpi_ranks"], ours["threads"], recipe["threads"]) == (2, 1, 2)
    assert ours["error"] < ours["error_before"]
    assert "| ours " in done.stdout


def test_exchange_takes_over_where_the_cost_model_says():
    hardware = cost_model.Hardware(latency=0.0)
    size = cost_model.Size(rows=1e9, parameters=1e8, rank=1000, gpus=1024)
    gpus = cost_model.crossovers(size, hardware)["exchange: GPUs above"]
    there = cost_model.Size(rows=1e9, parameters=1e8, rank=1000, gpus=round(gpus))
    seconds = {t.name: t.seconds for t in cost_model.terms(there, hardware)}
    exchange = seconds["gather V"] + seconds["reduce-scatter J^T U"]
    assert exchange == pytest.approx(seconds["products with J and J^T"], rel=2e-3)


@pytest.mark.mpi
def test_results_are_those_of_the_command_and_are_not_made_twice(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RUNS", tmp_path)
    record = results.run("tiny", [], 1)
    [row] = record.arms
    assert "skipped" not in row
    found = json.loads((tmp_path / "tiny" / "function_fit" / "result.json").read_text())

    assert (row["start"], row["error"]) == (found["error"]["before"], found["error"]["after"])
    assert (row["params"], row["rows"], row["rank"]) == (12_737, 200, str(found["rank"]))
    assert row["gain"] == pytest.approx(found["error"]["before"] / found["error"]["after"])
    markdown = tmp_path / "docs" / "results.md"
    save_markdown(record, markdown, results.COLUMNS, results.__doc__, tmp_path / "docs" / "results.png")
    text = markdown.read_text()
    assert text.startswith("# The shipped jobs")
    assert "![results](results.png)" in text
    for part in (f"{row['error']:.2e}", "`refine jobs/function_fit.toml --preset small", "12,737"):
        assert part in text
    assert save_png(record, tmp_path / "docs" / "results.png", results.draw)

    def not_again(*words, **more):
        raise AssertionError(words)

    monkeypatch.setattr(results, "run_command", not_again)
    assert results.run("tiny", [], 1).arms == record.arms
    with pytest.raises(AssertionError, match=r"subspace\.rank=10"):
        results.run("tiny", ["subspace.rank=10"], 1)


def test_result_without_a_start_says_so(monkeypatch, tmp_path):
    monkeypatch.setattr(results, "RUNS", tmp_path)
    [row] = results.run("tiny", ['problem.weights="nowhere.safetensors"'], 1).arms
    assert "nowhere.safetensors" in row["skipped"]
