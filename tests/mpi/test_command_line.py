"""``lsr-hpc`` as a user types it: real ranks, real job files, exit codes, what lies in the run directory."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import tomllib
from itertools import pairwise

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.mpi.conftest import LSR_HPC, REPOSITORY, mpi_environment

pytestmark = pytest.mark.mpi
JOB = "jobs/antiderivative.toml"
TWO = ("--set", "problem.args.instances=2", "--set", "subspace.rank=30")


def serial(*words, **environment):
    return subprocess.run(
        [LSR_HPC, *map(str, words)],
        cwd=REPOSITORY,
        env=mpi_environment() | environment,
        capture_output=True,
        text=True,
        timeout=120,
        stdin=subprocess.DEVNULL,
    )


@pytest.fixture(scope="module")
def run_directory(lsr, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "anti"
    done = lsr(3, "refine", JOB, *TWO, "--out", out)
    assert done.returncode == 0, done.stderr
    assert "krylov basis of up to 30, tsqr, factored Jacobian" in done.stdout
    assert "2 of 2 improved" in done.stdout
    return out


def test_result_file_holds_what_the_contract_names(run_directory):
    result = json.loads((run_directory / "result.json").read_text())
    assert result["status"] == "done"
    assert (result["world_size"], result["rows"], result["params"]) == (3, 1001, 25550)
    assert (result["basis"], result["jacobian"], result["solver"]) == ("krylov", "factored", "tsqr")
    assert result["dtype"] == "float64"
    assert {"total", "jacobian", "basis", "solve"} <= set(result["seconds"])
    assert {"petsc", "slepc", "mpi", "torch"} <= set(result["versions"])
    assert result["peak_rss_bytes"] > 0
    assert result["error_std"]["after"] is not None
    assert len(result["instances"]) == 2
    for instance in result["instances"]:
        assert instance["error"]["after"] < 1e-3 * instance["error"]["before"]
        assert instance["rank"] <= instance["rank_max"] == 30
        assert len(instance["theta0_sha256"]) == 64
        train = [entry["train"] for entry in instance["scan"]]
        assert all(b <= a * (1 + 1e-12) for a, b in pairwise(train))


def test_run_directory_is_complete_and_its_job_file_reads_back(run_directory):
    assert {p.name for p in run_directory.iterdir()} == {
        "job.toml",
        "result.json",
        "metrics.jsonl",
        "timeline.jsonl",
        "fields",
        "predictor",
        "MANIFEST.json",
    }
    job = tomllib.loads((run_directory / "job.toml").read_text())
    assert job["subspace"]["rank"] == 30
    events = [json.loads(line) for line in (run_directory / "metrics.jsonl").read_text().splitlines()]
    assert [e["instance"] for e in events] == [0, 1]


def test_predictor_of_the_run_reaches_the_reported_error(run_directory, tmp_path):
    from lsr_hpc.build import build_problem
    from lsr_hpc.job import load_job

    reference = build_problem(load_job(run_directory / "job.toml")).instance(1).evaluation
    np.save(tmp_path / "x.npy", reference.inputs[0].numpy())
    done = serial("predict", run_directory, "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    y = np.load(tmp_path / "y.npy")
    assert y.shape == (2, 100, 1)
    truth = reference.reference.numpy()
    reported = json.loads((run_directory / "result.json").read_text())["instances"][1]["error"]["after"]
    assert np.linalg.norm(y[1] - truth) / np.linalg.norm(truth) == pytest.approx(reported, rel=1e-6)
    one = serial(
        "predict",
        run_directory,
        "--input",
        tmp_path / "x.npy",
        "--output",
        tmp_path / "y1.npy",
        "--instance",
        1,
    )
    assert one.returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y1.npy"), y[1])


def test_running_again_keeps_the_earlier_run(lsr, run_directory):
    before = (run_directory / "result.json").read_text()
    done = lsr(1, "refine", JOB, *TWO, "--set", "problem.args.instances=1", "--out", run_directory)
    assert done.returncode == 0, done.stderr
    previous = run_directory.with_name("anti.previous")
    assert (previous / "result.json").read_text() == before
    # Put things back for the other tests of this module.
    done_dir = run_directory.with_name("second")
    run_directory.rename(done_dir)
    previous.rename(run_directory)


@pytest.mark.parametrize(
    "overrides",
    [
        ["subspace.basis=svd"],
        ["subspace.basis=svd+krylov"],
        ["subspace.width=1", "subspace.adaptive=true"],
        ["subspace.basis=randomized"],
        ["subspace.basis=randomized", "subspace.test_matrix=uniform"],
        ["subspace.basis=random"],
        ["subspace.basis=svd", "subspace.svd=trlanczos", "subspace.iterations=50", "subspace.rank=20"],
        ["solver.type=lsqr"],
        ["solver.type=cgls"],
        ["solver.type=lsqr", "solver.space=full", "solver.max_iterations=20"],
        ["solver.mu=1e-8"],
        ["held_out.fraction=0"],
    ],
    ids=lambda o: ",".join(o),
)
def test_every_basis_and_solver_refines(lsr, overrides, tmp_path):
    words = [w for o in ["problem.args.instances=1", "subspace.rank=30", *overrides] for w in ("--set", o)]
    done = lsr(2, "refine", JOB, *words, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["error"]["after"] < 0.5 * result["error"]["before"]


def test_petsc_options_reach_the_solver(lsr, tmp_path):
    done = lsr(2, "refine", JOB, "--set", "problem.args.instances=1", "--set", "subspace.rank=8",
               "--set", "subspace.basis=svd",
               "--out", tmp_path / "run", "--", "-lsr_svd_type", "trlanczos")  # fmt: skip
    assert done.returncode == 0, done.stderr
    event = json.loads((tmp_path / "run" / "metrics.jsonl").read_text())
    assert "SVD trlanczos" in event["detail"]["basis"]


def test_dry_run_prints_the_plan_and_writes_nothing(lsr, tmp_path):
    done = lsr(2, "refine", JOB, "--dry-run", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    for word in ("memory per rank", "25550", "matrix_free", "MPI ranks        2"):
        assert word in done.stdout
    lines = done.stdout.partition("representations of J")[2].splitlines()[1:]
    assert any(line.startswith("  factored, recorded for every product  about") for line in lines)
    assert len({line.index(" about ") for line in lines}) == 1
    assert list(tmp_path.iterdir()) == []


BAD = {
    "missing file": (["refine", "jobs/nowhere.toml"], "does not exist"),
    "unknown key": (["refine", JOB, "--set", "subspace.rnak=5"], "did you mean 'rank'?"),
    "unknown section": (["refine", JOB, "--set", "subspaces.rank=5"], "did you mean 'subspace'?"),
    "wrong type": (["refine", JOB, "--set", "subspace.rank=\"many\""], "an integer is expected"),
    "wrong choice": (["refine", JOB, "--set", "solver.type=magic"], "'tsqr', 'lsqr', 'cgls'"),
    "rank above rows": (["refine", JOB, "--set", "subspace.rank=5000"], "use at most 751"),
    "negative rank": (["refine", JOB, "--set", "subspace.rank=-1"], "must be at least 1"),
    "contradiction": (["refine", JOB, "--set", "solver.space=full"], "needs an iterative solver"),
    "memory": (["refine", JOB, "--set", "compute.memory_per_rank=\"100MiB\""], "are needed"),
    "memory unit": (["refine", JOB, "--set", "compute.memory_per_rank=\"2 parsecs\""], "not understood"),
    "problem argument": (["refine", JOB, "--set", "problem.args.instnces=3"], "did you mean 'instances'?"),
    "problem argument type": (["refine", JOB, "--set", "problem.args.rows=1.5"], "an integer is expected"),
    "unknown problem": (["refine", JOB, "--set", "problem=function_fir"], "did you mean 'function_fit'?"),
    "missing weights": (["refine", JOB, "--set", "problem.weights=none.safetensors"], "does not exist"),
    "preset": (["refine", JOB, "--preset", "huge"], "has no preset 'huge'; it has: small"),
    "override syntax": (["refine", JOB, "--set", "rank"], "section.key=value"),
    "name": (["refine", JOB, "--set", "name=../esc"], "name = '../esc'"),
    "no instance": (["refine", JOB, "--set", "problem.args.instances=0"], "problem.args.instances = 0"),
    "other width": (
        ["refine", JOB, "--set", "problem.args.width=51"],
        "antiderivative.safetensors': 20 of its tensors do not fit width = 51, depth = 5",
    ),
    "petsc type": (["refine", JOB], "Unknown SVD type given: nonsense", "-lsr_svd_type", "nonsense"),
    "petsc solver": (["refine", JOB], "lapack cannot work with J", "-lsr_svd_type", "lapack"),
    "petsc method": (["refine", JOB], "gmres cannot work with J", "-lsr_ksp_type", "gmres"),
    "petsc preconditioner": (["refine", JOB], "jacobi cannot work with J", "-lsr_pc_type", "jacobi"),
    "petsc prefix": (["refine", JOB], "write -lsr_svd_type", "-svd_type", "cross"),
    "no cuda": (["refine", JOB, "--set", "compute.device=cuda"], "sees no GPU"),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD))
def test_wrong_input_gives_one_message_and_writes_nothing(case, tmp_path):
    words, expected, *petsc = BAD[case]
    done = serial(*words, "--out", tmp_path / "run", *(["--", *petsc] if petsc else []))
    assert done.returncode == (76 if case == "no cuda" else 2), done.stderr
    assert expected in done.stderr
    assert done.stderr.count("lsr-hpc:") == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_every_mistake_of_a_job_file_is_listed_at_once(tmp_path):
    job = tmp_path / "bad.toml"
    job.write_text(
        'problem = "antiderivative"\n[subspace]\nrnak = 3\nbasis = "none"\n[solver]\nmu = "much"\n[slver]\n'
    )
    done = serial("refine", job)
    assert done.returncode == 2
    for word in ("'subspace.rnak'", "solver.mu", "'slver'"):
        assert word in done.stderr


@pytest.mark.parametrize(
    ("override", "code"),
    [("subspace.rank=5000", 2), ("compute.memory_per_rank='100MiB'", 2), ("compute.device=cuda", 76)],
)
def test_wrong_input_is_one_message_on_many_ranks_too(lsr, override, code, tmp_path):
    done = lsr(3, "refine", JOB, "--set", override, "--out", tmp_path / "run")
    assert done.returncode == code
    assert done.stderr.count("lsr-hpc:") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("position", [3, 200, 60_000])
def test_tampered_weights_are_refused(position, tmp_path):
    for suffix in (".safetensors", ".json"):
        (tmp_path / f"w{suffix}").write_bytes(
            (REPOSITORY / f"jobs/weights/antiderivative{suffix}").read_bytes()
        )
    damaged = bytearray((tmp_path / "w.safetensors").read_bytes())
    damaged[position] ^= 0x10
    (tmp_path / "w.safetensors").write_bytes(damaged)
    done = serial(
        "refine", JOB, "--set", f"problem.weights={tmp_path / 'w.safetensors'}", "--out", tmp_path / "run"
    )
    assert done.returncode == 2
    assert "differs from its recorded SHA-256" in done.stderr
    assert not (tmp_path / "run").exists()


def test_pickled_weights_are_never_loaded(tmp_path):
    import torch

    torch.save({"a": torch.ones(2)}, tmp_path / "w.safetensors")
    done = serial(
        "refine", JOB, "--set", f"problem.weights={tmp_path / 'w.safetensors'}", "--out", tmp_path / "run"
    )
    assert done.returncode == 2
    assert "no safetensors file" in done.stderr


@pytest.mark.parametrize("variable", ["PMI_SIZE", "OMPI_COMM_WORLD_SIZE"])
def test_launcher_of_another_mpi_is_noticed(variable, tmp_path):
    """A launcher whose MPI is not mpi4py's starts n programs that are each alone."""
    done = serial("refine", JOB, "--out", tmp_path / "run", **{variable: "4"})
    assert done.returncode == 76
    assert "launcher belongs to another MPI" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_output_place_that_is_not_ours_is_left_alone(tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("precious")
    done = serial("refine", JOB, "--out", tmp_path / "thesis")
    assert done.returncode == 2
    assert "not a run of lsr-hpc" in done.stderr
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "precious"


def test_own_problem_from_a_file_is_refined_and_predicted(lsr, tmp_path):
    (tmp_path / "mine.py").write_text(OWN_PROBLEM)
    (tmp_path / "job.toml").write_text(
        '[problem]\nfunction = "mine.py:build"\n[problem.args]\nwidth = 9\n[subspace]\nrank = 20\n'
    )
    done = lsr(2, "refine", tmp_path / "job.toml", "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    np.save(tmp_path / "x.npy", np.linspace(0, 1, 7))
    done = serial("predict", tmp_path / "run", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy")[:, 0], np.exp(np.linspace(0, 1, 7)), atol=1e-4)


OWN_PROBLEM = """
import torch
from lsr_hpc import Evaluation, Problem, ResidualBlock

def build(width: int) -> Problem:
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(1, width), torch.nn.Tanh(), torch.nn.Linear(width, 1))
    x = torch.linspace(0, 1, 80)[:, None]
    y = x.double().exp()
    block = ResidualBlock(name="fit", residual=lambda u, x, y: u(x) - y, points=x, data=(y,))
    return Problem(name="mine", model=net, blocks=[block], evaluation=Evaluation(inputs=(x,), reference=y))
"""


OWN_FAMILY = """
import os
import sys
import torch
from lsr_hpc import Problem, ProblemFamily, ResidualBlock

class Scaled(torch.nn.Module):
    def __init__(self, scale):
        super().__init__()
        torch.manual_seed(0)
        # A factor that no parameter and no buffer holds: it lives in instance(i).model alone.
        self.scale = scale
        self.net = torch.nn.Sequential(torch.nn.Linear(1, 9), torch.nn.Tanh(), torch.nn.Linear(9, 1))

    def forward(self, x):
        return self.scale * self.net(x)

def instance(i):
    x = torch.linspace(0, 1, 80)[:, None]
    y = (1 + i) * x.double().exp()
    block = ResidualBlock(name="fit", residual=lambda u, x, y: u(x) - y, points=x, data=(y,))
    return Problem(name=f"mine {i}", model=Scaled(1.0 + i), blocks=[block])

def build():
    return ProblemFamily(name="mine", n_instances=3, instance=instance)

def fails_later():
    return ProblemFamily(name="mine", n_instances=3, instance=lambda i: instance(i) if i < 1 else 1 / 0)

def exits_on_one_rank():
    if os.environ["OMPI_COMM_WORLD_RANK"] == "1":
        sys.exit(0)
    return build()

def is_killed():
    def deadly(i):
        if i == 2:
            os.kill(os.getpid(), 9)
        return instance(i)
    return ProblemFamily(name="mine", n_instances=3, instance=deadly)
"""


@pytest.fixture
def own_job(tmp_path):
    (tmp_path / "mine.py").write_text(OWN_FAMILY)
    job = tmp_path / "job.toml"
    job.write_text('[problem]\nfunction = "mine.py:build"\n[subspace]\nrank = 12\n')
    return job


def test_each_instance_of_an_own_family_is_predicted_with_its_own_network(own_job, lsr, tmp_path):
    done = lsr(2, "refine", own_job, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    x = np.linspace(0, 1, 7)
    np.save(tmp_path / "x.npy", x)
    words = ["predict", tmp_path / "run", "--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"]
    assert serial(*words).returncode == 0
    y = np.load(tmp_path / "y.npy")
    np.testing.assert_allclose(y[:, :, 0], np.outer([1, 2, 3], np.exp(x)), atol=1e-4)
    assert serial(*words, "--instance", 2).returncode == 0
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), y[2])


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("fails_later", "instance(1) of its family failed at"),
        ("exits_on_one_rank", "MPI rank 1: "),
        ("nowhere", "its functions: build, exits_on_one_rank, fails_later, instance, is_killed"),
    ],
)
def test_failing_function_ends_all_ranks_with_one_message(function, expected, own_job, lsr, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = lsr(2, "refine", own_job, "--set", f"problem=mine.py:{function}", "--out", tmp_path / "a" / "run")
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("lsr-hpc:") == 1
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert [p for p in sorted(tmp_path.iterdir()) if p.name != "__pycache__"] == before


def test_killed_run_leaves_its_finished_instances_and_the_next_run_tells(own_job, lsr, tmp_path):
    done = lsr(2, "refine", own_job, "--set", "problem=mine.py:is_killed", "--out", tmp_path / "run")
    assert done.returncode not in {0, 2}
    (left,) = tmp_path.glob(".run.running-*")
    events = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
    assert [e["instance"] for e in events] == [0, 1]
    assert not (tmp_path / "run").exists()

    done = lsr(1, "refine", own_job, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert f"note: {left} is of a run that was killed" in done.stdout
    assert left.exists()


def test_petsc_option_that_nothing_asks_for_is_named(own_job, lsr, tmp_path):
    done = lsr(2, "refine", own_job, "--set", "problem=mine.py:instance", "--set", "problem.args.i=0",
               "--set", "subspace.basis=svd",
               "--out", tmp_path / "run", "--", "-lsr_svd_tpye", "trlanczos", "-lsr_svd_max_it", "50",
               "-lsr_ksp_max_it", "3")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("-lsr_svd_tpye, -lsr_ksp_max_it: misspelt") == 1


def test_wrong_points_and_places_of_predict_leave_everything_as_it_was(run_directory, tmp_path):
    np.save(tmp_path / "x.npy", np.ones((5, 2)))
    np.save(tmp_path / "good.npy", np.ones(5))
    (tmp_path / "dir.npy").mkdir()
    before = sorted(tmp_path.iterdir())
    for x, y, more, expected in [
        ("x.npy", "y.npy", [], "points of shape (5, 2) do not fit the network"),
        ("x.npy", "y.npy", ["--instance", 1], "this network takes 1 numbers per point"),
        ("good.npy", "dir.npy", [], "is there and no file"),
        ("good.npy", "good.npy", [], "is the input"),
        ("good.npy", "y.npy", ["--instance", 2], "holds instances 0 to 1"),
    ]:
        words = ["--input", tmp_path / x, "--output", tmp_path / y, *more]
        done = serial("predict", run_directory, *words)
        assert done.returncode == 2, done.stderr
        assert expected in done.stderr
        assert "Traceback" not in done.stderr
        assert sorted(tmp_path.iterdir()) == before


def test_damaged_and_foreign_predictors_are_refused_in_words(run_directory, tmp_path):
    from lsr_hpc.store import read_manifest, write_manifest

    run = tmp_path / "run"
    shutil.copytree(run_directory, run)
    np.save(tmp_path / "x.npy", np.ones(5))
    manifest = run / "predictor" / "predictor.json"
    good = read_manifest(manifest)

    def refusal() -> str:
        words = ["--input", tmp_path / "x.npy", "--output", tmp_path / "y.npy"]
        done = serial("predict", run, *words)
        assert done.returncode == 2, done.stderr
        assert "Traceback" not in done.stderr
        return done.stderr

    manifest.write_text('{"model": "something else"}')
    assert "not a file of lsr_hpc" in refusal()
    write_manifest(manifest, {"schema": 99})
    assert "schema 99" in refusal()
    write_manifest(manifest, {"schema": 1})
    assert "has no usable 'architecture'" in refusal()
    write_manifest(manifest, good)
    (run / "predictor" / "instance-00001.safetensors").unlink()
    assert "restore it" in refusal()


@pytest.mark.parametrize(
    "words", [["--help"], ["refine", "--help"], ["predict", "--help"], ["train", "--help"], ["problems"]]
)
def test_help_works_everywhere(words):
    done = serial(*words)
    assert done.returncode == 0
    assert "example:" in done.stdout or words == ["problems"] or words == ["--help"]


@pytest.mark.parametrize(
    ("job", "settings", "optimizer"),
    [
        ("jobs/function_fit.toml", ["train.steps=300", 'train.schedule = "exponential"'], "Adam"),
        ("jobs/poisson.toml", ["train.steps=30", "train.args.points=400"], "L-BFGS"),
    ],
)
def test_training_makes_weights_that_refine(job, settings, optimizer, tmp_path):
    words = ["--preset", "small", *(word for setting in settings for word in ("--set", setting))]
    done = serial("train", job, *words, "--out", tmp_path / "w.safetensors")
    assert done.returncode == 0, done.stderr
    assert f"steps of {optimizer}, seed 0" in done.stdout
    assert {t.dtype for t in load_file(tmp_path / "w.safetensors").values()} == {torch.float32}
    record = json.loads((tmp_path / "w.json").read_text())
    assert record["seed"] == 0
    assert f"--set {settings[0]}" in record["command"]
    words = ["--preset", "small", "--set", "subspace.rank=50"]
    words += ["--set", f"problem.weights={tmp_path / 'w.safetensors'}"]
    done = serial("refine", job, *words, "--out", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["error"]["before"] == pytest.approx(record["start_error"], rel=1e-3)
    again = shlex.split(record["command"])
    assert again[:3] == ["lsr-hpc", "train", job]
    assert serial(*again[1:], "--out", tmp_path / "again.safetensors").returncode == 0
    assert json.loads((tmp_path / "again.json").read_text())["sha256"] == record["sha256"]


@pytest.mark.parametrize(
    ("words", "out", "expected"),
    [
        (["train.args.held_out=1.0"], "w.safetensors", "train.args.held_out = 1.0"),
        (["train.batch_size=4001"], "w.safetensors", "train.batch_size = 4001: must be from 1 to 4000"),
        (["problem.args.points=0"], "w.safetensors", "problem.args.points = 0"),
        ([], ".", "is there and no file"),
        ([], "w/d.json", "ends in .safetensors"),
        ([], "mine.safetensors", "was not made by `lsr-hpc train`"),
    ],
)
def test_training_that_cannot_be_is_refused_before_it_starts(words, out, expected, tmp_path):
    (tmp_path / "mine.safetensors").write_text("precious")
    overrides = [w for o in words for w in ("--set", o)]
    done = serial("train", "jobs/function_fit.toml", "--preset", "small", *overrides, "--out", tmp_path / out)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["mine.safetensors"]
    assert (tmp_path / "mine.safetensors").read_text() == "precious"


@pytest.mark.parametrize("sink", ["/dev/full", "a closed pipe"])
def test_run_whose_output_nobody_takes_is_finished_all_the_same(sink, own_job, tmp_path):
    output = open(sink, "w") if sink == "/dev/full" else subprocess.PIPE
    words = ["refine", own_job, "--out", tmp_path / "run"]
    with subprocess.Popen(
        [LSR_HPC, *words], env=mpi_environment(), stdout=output, stderr=subprocess.PIPE, text=True
    ) as process:
        if sink == "/dev/full":
            output.close()
        else:
            process.stdout.close()
        assert "standard output is lost" in process.stderr.read()
    assert process.returncode == 0
    assert (tmp_path / "run" / "result.json").exists()
