"""Job files to begin with and their schema say what the sections are, and nothing else."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
import tomllib
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from lsr_hpc.cli import main
from lsr_hpc.job import load_job
from lsr_hpc.job_description import described, job_schema, sections, settings_of
from lsr_hpc.job_template import job_template
from lsr_hpc.problems import PROBLEMS
from lsr_hpc.settings import IterateSettings, SubspaceSettings

REPOSITORY = Path(__file__).parents[1]
DEFAULTS = ("subspace", "solver", "held_out", "compute", "run", "slurm")


def uncommented(text: str) -> str:
    """Every setting that has a default, no longer in a comment."""
    names = "|".join(s.name for section in sections().values() for s in settings_of(section))
    text = text.partition("# Section [campaign]")[0]
    # It does not go together with [iterate].
    text = re.sub(r"# Section \[transfer\].*?(?=# Section )", "", text, flags=re.DOTALL)
    return re.sub(rf"^# ((?:{names}) = .*|\[iterate\])$", r"\1", text, flags=re.MULTILINE)


@pytest.mark.parametrize("problem", [*PROBLEMS, "mine.py:build"])
def test_template_is_a_job_with_all_defaults_and_stays_one_without_comments(
    problem: str, tmp_path: Path
) -> None:
    text = job_template(problem, "job")
    (tmp_path / "job.toml").write_text(text)
    (tmp_path / "whole.toml").write_text(uncommented(text))
    job, whole = load_job(tmp_path / "job.toml"), load_job(tmp_path / "whole.toml")

    assert job.iterate is None
    assert whole.iterate == IterateSettings()
    for section in DEFAULTS:
        kind = sections()[section]
        assert getattr(job, section) == getattr(whole, section) == kind()
    if problem in PROBLEMS:
        assert whole.train == job.train
    # Not a default was left in its comment.
    assert uncommented(text).count("\n# rank = ") == 0
    assert load_job(tmp_path / "job.toml", preset="small").subspace.rank < job.subspace.rank


@pytest.mark.parametrize("problem", PROBLEMS)
def test_template_has_every_argument_of_the_problem_with_its_default(problem: str) -> None:
    args = job_template(problem, "job").partition("[problem.args]\n")[2].partition("\n\n")[0]
    shown = tomllib.loads(re.sub(r"^# (\w+ = )", r"\1", args, flags=re.MULTILINE))
    parameters = list(inspect.signature(PROBLEMS[problem].build).parameters.values())[1:]
    # TOML has arrays where Python has tuples.
    assert shown == {
        p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in parameters
    }


@pytest.mark.parametrize("name", sections())
def test_every_setting_is_described(name: str) -> None:
    section = sections()[name]
    settings = settings_of(section)
    assert [s.name for s in settings] == [f.name for f in fields(section)]
    for setting in settings:
        assert len(setting.text) > 5
        assert "``" not in setting.text


def test_words_are_those_that_the_check_allows() -> None:
    basis = next(s for s in settings_of(SubspaceSettings) if s.name == "basis")
    assert basis.choices == ("krylov", "svd", "svd+krylov", "randomized", "dual", "random")
    for word in basis.choices:
        assert SubspaceSettings(basis=word).basis == word
    found = {(n, s.name): s.choices for n, c in sections().items() for s in settings_of(c) if s.choices}
    assert found["solver", "resolve"] == ("auto",)
    assert found["run", "launcher"] == ("auto", "mpiexec", "srun", "local")
    assert found["train", "optimizer"] == ("adam", "lbfgs")
    assert found["campaign", "combine"] == ("product", "zip")


def test_texts_of_several_lines_are_joined() -> None:
    def example() -> None:
        """Do nothing.

        Args:
            first: One
                and a half.
            second: Of :class:`~a.B`, ``two``.

        Returns:
            third: No.
        """

    assert described(example, "Args") == {"first": "One and a half.", "second": "Of a.B, two."}


def lsr_hpc(*words: object, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "lsr_hpc.cli", *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_written_job_is_trained_and_refined_as_its_comments_say(tmp_path: Path) -> None:
    lsr_hpc("init", "function_fit", cwd=tmp_path)
    path = tmp_path / "function_fit.toml"
    sizes = {"width": 8, "depth": 2, "points": 300}
    text = path.read_text()
    for name, value in sizes.items():
        text = re.sub(rf"^# {name} = \d+$", f"{name} = {value}", text, flags=re.MULTILINE)
    path.write_text(text.replace("steps = 2000", "steps = 50"))
    command = re.search(r"(train function_fit.toml --out \S+)", text)
    assert command is not None
    lsr_hpc(*command[1].split(), cwd=tmp_path)
    assert "smaller" in lsr_hpc(
        "refine", "function_fit.toml", "--preset", "small", "--out", "run", cwd=tmp_path
    )


def test_file_that_is_there_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine.py:build"]) == 0
    assert (tmp_path / "mine.toml").exists()
    (tmp_path / "mine.toml").write_text("my own")
    assert main(["init", "mine.py:build"]) == 2
    assert "is there already" in capsys.readouterr().err
    assert (tmp_path / "mine.toml").read_text() == "my own"
    assert main(["init", "poison"]) == 2
    assert "use one of advection, antiderivative" in capsys.readouterr().err


def complaints(schema: dict[str, Any], value: Any, where: str = "") -> list[str]:
    """What JSON Schema has against a value; the few words of it that ours uses."""
    for name in ("oneOf", "anyOf"):
        if name in schema:
            fitting = [s for s in schema[name] if not complaints(s, value, where)]
            return [] if fitting else [f"{where}: fits nothing"]
    if "enum" in schema:
        return [] if value in schema["enum"] else [f"{where}: {value!r}"]
    kinds = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }
    kind = schema["type"]
    if not isinstance(value, kinds[kind]) or (isinstance(value, bool) and kind != "boolean"):
        return [f"{where}: no {kind}"]
    found = []
    if kind == "array":
        found = [c for item in value for c in complaints(schema["items"], item, where)]
    if kind == "object" and "properties" in schema:
        found = [f"{where}.{name} is missing" for name in schema.get("required", ()) if name not in value]
        for name, item in value.items():
            if name in schema["properties"]:
                found += complaints(schema["properties"][name], item, f"{where}.{name}")
            else:
                found.append(f"{where}.{name} is unknown")
    return found


@pytest.mark.parametrize("path", sorted((REPOSITORY / "jobs").glob("*.toml")), ids=lambda p: p.stem)
def test_shipped_jobs_keep_to_the_schema(path: Path) -> None:
    assert complaints(job_schema(), tomllib.loads(path.read_text())) == []


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ".problem is missing"),
        ("problem = 3", ".problem: fits nothing"),
        ('problem = "p"\n[subspace]\nrnak = 3', ".subspace.rnak is unknown"),
        ('problem = "p"\n[subspace]\nrank = "3"', ".subspace.rank: no integer"),
        ('problem = "p"\n[subspace]\nbasis = "kry"', ".subspace.basis: 'kry'"),
        ('problem = "p"\n[solver]\nresolve = "no"', ".solver.resolve: fits nothing"),
        ('problem = "p"\n[iterate]\nranks = ["a"]', ".iterate.ranks: no integer"),
        ('problem = "p"\n[train]\nseed = 1', ".train.steps is missing"),
    ],
)
def test_schema_refuses_what_a_job_may_not_be(text: str, expected: str) -> None:
    assert complaints(job_schema(), tomllib.loads(text)) == [expected]


def test_published_schema_is_that_of_this_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["schema"]) == 0
    printed = capsys.readouterr().out
    assert (REPOSITORY / "docs" / "job.schema.json").read_text() == printed
    assert json.loads(printed) == job_schema()
