"""Directories of runs, and what is done with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.errors.case import JOB, Case

PREDICT = "predict run --input x.npy --output y.npy"


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def points(values, name="x.npy"):
    def given(home: Path) -> None:
        np.save(home / name, np.asarray(values), allow_pickle=True)

    return given


def both(*actions):
    def given(home: Path) -> None:
        for action in actions:
            action(home)

    return given


X = points(np.linspace(-1, 1, 7)[:, None])


def begun(home: Path) -> None:
    """A directory of ``lsr-hpc run`` in which no round has been done yet."""

    from lsr_hpc.job import load_job
    from lsr_hpc.pipeline.layout import RunLayout
    from lsr_hpc.pipeline.record import write_record

    (home / "begun").mkdir(mode=0o700)
    write_record(RunLayout(home / "begun"), load_job(home / "job.toml"), "mine", 1)


def campaign_begun(home: Path) -> None:
    """A directory of ``lsr-hpc campaign`` in which no member has been done yet."""
    from lsr_hpc.campaign.layout import CampaignLayout
    from lsr_hpc.campaign.record import register
    from lsr_hpc.job import load_job

    (home / "many").mkdir(mode=0o700)
    register(CampaignLayout(home / "many"), load_job(home / "job.toml"))


MEMBERS = '[campaign.axes]\n"subspace.rank" = [2, 3]\n'
PREDICTIONS = [
    Case(
        what="`predict` on a directory that is no run",
        argv="predict . --input x.npy --output y.npy",
        given=X,
        says=". holds no predictor: give the run directory of a finished refinement",
    ),
    Case(
        what="`predict` on a run that is not there",
        argv=PREDICT,
        given=X,
        says="run holds no predictor: give the run directory of a finished refinement",
    ),
    Case(
        what="`predict` with a damaged correction",
        argv=PREDICT,
        run="run",
        given=both(X, lambda home: flip(home / "run/predictor/instance-00000.safetensors")),
        says="run/predictor/instance-00000.safetensors differs from its recorded SHA-256 (...): it was changed or damaged; restore it or make it again",
    ),
    Case(
        what="`predict` with a file missing",
        argv=PREDICT,
        run="run",
        given=both(X, lambda home: (home / "run/predictor/theta0.safetensors").unlink()),
        says="weights file run/predictor/theta0.safetensors does not exist: restore it, or refine again",
    ),
    Case(
        what="`predict` with a changed description",
        argv=PREDICT,
        run="run",
        given=both(X, lambda home: flip(home / "run/predictor/predictor.json")),
        says="run/predictor/predictor.json is damaged or not a file of lsr_hpc (JSONDecodeError): restore it or make it again",
    ),
    Case(
        what="`predict` after the function of the problem has gone",
        argv=PREDICT,
        run="run",
        given=both(X, lambda home: (home / "mine.py").unlink()),
        says="problem.function: file HERE/mine.py does not exist: its path is relative to the job file",
    ),
    Case(
        what="`predict` after the network has changed",
        argv=PREDICT,
        run="run",
        given=X,
        build="return problem(model=nn.Linear(1, 1))",
        says='the predictor in run/predictor does not fit the given network (RuntimeError: Error(s) in loading state_dict for Linear: Missing key(s) in state_dict: "weight", "bias". Unexpected key(s) in state_dict: "0.bias", "0.weight", "2.bias", "2.weight"): restore the network that was refined',
    ),
    Case(
        what="points that are not there",
        argv=PREDICT,
        run="run",
        says="--input x.npy does not exist: check the path",
    ),
    Case(
        what="points that are no array",
        argv=PREDICT,
        run="run",
        given=lambda home: (home / "x.npy").write_text("1 2 3"),
        says="--input x.npy is not a readable .npy array (it does not begin like one): write it by numpy.save, as numbers",
    ),
    Case(
        what="points that would have to be unpickled",
        argv=PREDICT,
        run="run",
        given=points([{"a": 1}]),
        says="--input x.npy is not a readable .npy array (Object arrays cannot be loaded when allow_pickle=False): write it by numpy.save, as numbers",
    ),
    Case(
        what="points of another width",
        argv=PREDICT,
        run="run",
        given=points(np.zeros((7, 3))),
        says="--input: points of shape (7, 3) do not fit the network (RuntimeError: mat1 and mat2 shapes cannot be multiplied (7x3 and 1x6)): give what it is called with",
    ),
    Case(
        what="no points",
        argv=PREDICT,
        run="run",
        given=points(np.zeros((0, 1))),
        says="--input x.npy has shape (0, 1): give points as (n, d) or (n,), at least one of them",
    ),
    Case(
        what="NaN in the points",
        argv=PREDICT,
        run="run",
        given=points([[0.0], [np.nan]]),
        says="--input x.npy holds NaN or Inf, first in point 1 (from 0): leave such points out",
    ),
    Case(
        what="complex points",
        argv=PREDICT,
        run="run",
        given=points([[1j]]),
        says="--input x.npy holds complex128: one array of real numbers is expected",
    ),
    Case(
        what="points as words",
        argv="predict run --input x.csv --output y.npy",
        run="run",
        given=lambda home: (home / "x.csv").write_text("x\n1.0\ntwo\n"),
        says="--input x.csv is not a readable .csv array (could not convert string 'two' to float64 at row 1, column 1.): write a point per line, with commas between the numbers and at most one line of names above",
    ),
    Case(
        what="several arrays, none called x",
        argv="predict run --input x.npz --output y.npy",
        run="run",
        given=lambda home: np.savez(home / "x.npz", a=np.zeros(3), b=np.zeros(3)),
        says="--input x.npz holds the arrays a, b: name the points 'x'",
    ),
    Case(
        what="values over the points",
        argv="predict run --input x.npy --output x.npy",
        run="run",
        given=X,
        says="--output x.npy is the input: name another file",
    ),
    Case(
        what="values in a file of an unknown kind",
        argv="predict run --input x.npy --output y.txt",
        run="run",
        given=X,
        says="--output y.txt: name a file that ends in .npy or .npz or .csv",
    ),
    Case(
        what="values in a directory",
        argv="predict run --input x.npy --output here.npy",
        run="run",
        given=both(X, lambda home: (home / "here.npy").mkdir()),
        says="--output here.npy is there and no file: name a new file that ends in .npy or .npz or .csv",
    ),
    Case(
        what="a table of two instances",
        argv="predict run --input x.npy --output y.csv",
        run="family",
        given=X,
        says="--output y.csv: a table holds one instance, add --instance I, or use .npy",
    ),
    Case(
        what="`predict` after instances have gone",
        argv=PREDICT,
        run="family",
        given=X,
        says="run holds 2 instances, but its problem function now makes 1: restore the function that was refined",
    ),
    Case(
        what="an instance that is not there",
        argv=PREDICT + " --instance 3",
        run="run",
        given=X,
        says="instance 3 does not exist: run/predictor holds instances 0 to 0, name one of those",
    ),
]
CASES = [
    Case(
        what="`status` on a directory that is no run",
        argv="status .",
        says="HERE is no run directory of `lsr-hpc run` (there is no run.json in it): give what was its --out",
    ),
    Case(
        what="`status` on a refinement",
        argv="status run",
        run="run",
        says="HERE/run is of `lsr-hpc refine`, which is done at once and has no rounds: see `lsr-hpc report HERE/run`",
    ),
    Case(
        what="`status` on what is not there",
        argv="status nowhere",
        says="HERE/nowhere is no run directory of `lsr-hpc run` (it does not exist): give what was its --out",
    ),
    Case(
        what="`resume` on a directory that is no run",
        argv="resume .",
        says="HERE is no run directory of `lsr-hpc run` (there is no run.json in it): give what was its --out",
    ),
    Case(
        what="`resume` on a refinement",
        argv="resume run",
        run="run",
        says="HERE/run is of `lsr-hpc refine`, which is done at once and has no rounds: see `lsr-hpc report HERE/run`",
    ),
    Case(
        what="`resume` on a run with a changed identity",
        argv="resume begun",
        given=both(begun, lambda home: flip(home / "begun/run.json")),
        says="HERE/begun/run.json is damaged or not a file of lsr_hpc (JSONDecodeError): restore it or make it again",
    ),
    Case(
        what="`resume` on a run with a changed job",
        argv="resume begun",
        given=both(begun, lambda home: flip(home / "begun/job.toml")),
        says="HERE/begun/job.toml is missing or was changed after the run began: restore it",
    ),
    Case(
        what="`resume --submit` of a run that was not submitted",
        argv="resume begun --submit",
        given=begun,
        says="HERE/begun.slurm/job.sbatch does not exist: the run was not begun by submit; go on without --submit",
    ),
    Case(
        what="`run` into a run of another job",
        argv="run job.toml --out begun --set subspace.rank=9",
        given=begun,
        says="HERE/begun holds a run of another job: name another --out. Different are\n  - subspace.rank: 5 there, 9 here",
    ),
    Case(
        what="`refine` into a run with rounds",
        argv="refine job.toml --out begun",
        given=begun,
        says="--out begun holds rounds of `lsr-hpc run`: name another directory",
    ),
    Case(
        what="`stop` on a directory that is no run",
        argv="stop .",
        says="HERE is no run directory of `lsr-hpc run` (there is no run.json in it): give what was its --out",
    ),
    Case(
        what="`logs` of a directory that is no run",
        argv="logs .",
        says="HERE has no log yet: is it a run directory? `-f` waits for one",
    ),
    Case(
        what="`logs -f` of a run that nobody works at",
        argv="logs nowhere -f",
        says="HERE/nowhere has no log, and no job or controller that would write one: give the run directory",
    ),
    Case(
        what="`report` on a directory that is no run",
        argv="report .",
        says=". holds no finished run: give --out of refine or run",
    ),
    Case(
        what="`report` on a run that is not finished",
        argv="report begun",
        given=begun,
        says="begun holds no finished run: finish it with `lsr-hpc resume begun`",
    ),
    Case(
        what="`report` on a damaged refinement",
        argv="report run",
        run="run",
        given=lambda home: flip(home / "run/result.json"),
        says="run: result.json differs from its SHA-256: see `lsr-hpc verify`, and restore a copy or run again",
    ),
    Case(
        what="`report` into a directory of yours",
        argv="report run --out letters",
        run="run",
        given=lambda home: ((home / "letters").mkdir(), (home / "letters/a.txt").write_text("mine")),
        says="--out letters is not empty and not a run of lsr-hpc: name another directory",
    ),
    Case(
        what="`verify` on a directory that is no run",
        argv="verify .",
        says=". is no run directory of lsr_hpc: give what was --out of refine or run",
    ),
    Case(
        what="`verify` on what is not there",
        argv="verify nowhere",
        says="nowhere is no directory: give what was --out of refine or run",
    ),
    Case(
        what="`verify` on a damaged refinement",
        argv="verify run",
        run="run",
        code=70,
        printed=True,
        given=lambda home: flip(home / "run/result.json"),
        says="damaged: result.json",
    ),
    Case(
        what="`campaign --collect` where there is no campaign",
        argv="campaign job.toml --collect --out nowhere",
        job=JOB + MEMBERS,
        says="HERE/nowhere is no directory of `lsr-hpc campaign` (there is no campaign.json in it): give what was its --out",
    ),
    Case(
        what="`report` on a campaign of which nothing is done",
        argv="report many",
        job=JOB + MEMBERS,
        given=campaign_begun,
        says="many: no member is done: go on with `lsr-hpc resume many`",
    ),
    Case(
        what="`report` on a campaign beside others",
        argv="report many run --out out",
        job=JOB + MEMBERS,
        given=campaign_begun,
        says="many is a campaign, which has a report by itself: leave the others out",
    ),
    Case(
        what="`run` into a campaign",
        argv="run job.toml --out many",
        job=JOB + MEMBERS,
        given=campaign_begun,
        says="--out many holds a campaign: name another directory",
    ),
]
