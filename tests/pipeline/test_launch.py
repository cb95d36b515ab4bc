"""Launch lines against files, to the word: what is missing on them does not show on one machine."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from lsr_hpc.errors import EnvironmentProblem, JobError
from lsr_hpc.pipeline.launch import (
    LocalLauncher,
    MpiexecLauncher,
    SrunLauncher,
    choose_launcher,
    step_environment,
)

GOLDEN = Path(__file__).parent / "golden"
HOSTILE = "/scratch/a b;touch c $(touch d) `e`\n'f\"&|\\ : {} %s -n 7"
CASES = {
    "local": (LocalLauncher(), 1, "/scratch/run"),
    "mpiexec": (MpiexecLauncher(), 4, "/scratch/run"),
    "mpiexec-hostile": (MpiexecLauncher(), 2, HOSTILE),
    "srun": (SrunLauncher(nodes=2, cpus_per_task=8), 4, "/scratch/run"),
    "srun-more-nodes-than-ranks": (SrunLauncher(nodes=4, cpus_per_task=2, mpi="pmi2"), 3, "/scratch/run"),
    "srun-uneven": (SrunLauncher(nodes=2), 5, "/scratch/run"),
    "srun-side-by-side": (SrunLauncher(nodes=2, is_alone=False), 4, "/scratch/run"),
    "srun-gpus": (SrunLauncher(nodes=2, cpus_per_task=8, has_gpus=True), 8, "/scratch/run"),
    "srun-hostile": (SrunLauncher(nodes=1), 2, HOSTILE),
}


@pytest.mark.parametrize("case", CASES)
def test_the_words_of_a_launch(case, monkeypatch):
    monkeypatch.setattr(sys, "executable", "/env/bin/python")
    launcher, ranks, root = CASES[case]
    spec = Path(root) / "steps/instance-0003/round-0007/attempt-1/spec.json"
    words = launcher.command(ranks, spec, "3-7-1")
    assert words == json.loads((GOLDEN / f"{case}.json").read_text())
    assert words[-1] == str(spec)


def test_one_process_is_one_rank():
    with pytest.raises(JobError, match=r"not run.ranks = 2"):
        LocalLauncher().command(2, Path("/x"), "")


@pytest.mark.parametrize(
    ("kind", "ranks", "environ", "expected"),
    [
        ("auto", 1, {}, LocalLauncher()),
        ("auto", 2, {}, MpiexecLauncher()),
        ("mpiexec", 1, {}, MpiexecLauncher()),
        ("auto", 2, {"SLURM_JOB_ID": "7"}, SrunLauncher(nodes=1, is_alone=False)),
        (
            "auto",
            8,
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "6", "SLURM_CPUS_PER_TASK": "4"},
            SrunLauncher(nodes=3, is_alone=False, cpus_per_task=4),
        ),
        # A GPU for every rank, and too few of them.
        (
            "auto",
            8,
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "4"},
            SrunLauncher(nodes=2, is_alone=False, has_gpus=True),
        ),
        (
            "auto",
            8,
            {"SLURM_JOB_ID": "7", "SLURM_JOB_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "3"},
            SrunLauncher(nodes=2, is_alone=False),
        ),
    ],
)
def test_the_launcher_follows_from_where_we_are(program, kind, ranks, environ, expected):
    for name in ("srun", "mpiexec", "setpriv", "env"):
        program(name)
    assert choose_launcher(kind, ranks, 2, environ) == expected


def test_a_missing_program_is_named(program):
    program("setpriv")
    program("env")
    with pytest.raises(EnvironmentProblem, match="needs mpiexec, which is not on PATH"):
        choose_launcher("mpiexec", 2, 1, {})


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program on a PATH that has nothing else."""
    monkeypatch.setenv("PATH", str(tmp_path))

    def put(name: str) -> None:
        (tmp_path / name).write_text("#!/bin/sh\n")
        (tmp_path / name).chmod(0o755)

    return put


def test_ranks_do_not_inherit_the_place_of_other_ranks_but_the_users_settings():
    foreign = {
        "OMPI_COMM_WORLD_RANK": "3",
        "OMPI_MCA_ess": "pmi",
        "OMPI_MCA_orte_hnp_uri": "x",
        "PMIX_RANK": "3",
        "PMI_RANK": "3",
        "PRTE_LAUNCHED": "1",
        "SLURM_CPU_BIND": "quiet,mask_cpu:0x1",
        "SLURM_GPUS_PER_NODE": "4",
        "SLURM_STEP_ID": "0",
        "SLURM_PROCID": "1",
        "SLURM_TASK_PID": "9",
    }
    own = {
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_MCA_btl": "self,tcp",
        "OMPI_MCA_rmaps_base_oversubscribe": "1",
        "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
        "SLURM_JOB_ID": "7",
        "SLURM_CPUS_PER_TASK": "6",
        "UCX_TLS": "rc",
        "PATH": "/bin",
    }
    expected = own | {"OMP_NUM_THREADS": "6", "OPENBLAS_NUM_THREADS": "6"}
    assert step_environment(2, 1, foreign | own) == expected


def test_threads_are_a_ranks_share_of_the_cores_unless_they_are_set(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)))
    assert step_environment(2, 3, {})["OMP_NUM_THREADS"] == "2"
    assert step_environment(8, 3, {})["OMP_NUM_THREADS"] == "1"
    assert step_environment(8, 3, {"OMP_NUM_THREADS": "5"})["OMP_NUM_THREADS"] == "5"
