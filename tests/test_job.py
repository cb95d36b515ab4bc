"""Job files: what is read comes back, what cannot be is refused with the key, the value and a remedy."""

from __future__ import annotations

import datetime
import tomllib
from pathlib import Path
from typing import Any

import pytest

from lsr_hpc.errors import JobError
from lsr_hpc.job import Job, load_job
from lsr_hpc.toml_text import dump_toml

TABLES: dict[str, dict[str, Any]] = {
    "plain": {"a": 1, "b": -0.5, "c": True, "d": "text", "e": [1, 2], "f": []},
    "numbers": {"a": 1e-300, "b": 1e22, "c": float("inf"), "d": 2**62, "e": -(2**63)},
    "nested": {"x": {"y": {"z": 1}, "w": {}}, "empty": {}},
    "array of tables": {"x": [{"a": 1, "b": {"c": [True]}}, {"a": 2}, {}]},
    "arrays in arrays": {"x": [[1, 2], [{"a": [{}]}]]},
    "strings": {"a": 'quotes " and \\', "b": "line\nbreak\ttab\x00\x1f\x7f", "c": "Ä π 😀 \u2028", "d": ""},
    "keys": {"a b": 1, "": 2, "ä": 3, '"': {"x.y": {"😀": 4}}, "1": 5, "-": 6},
    "dates": {
        "a": datetime.date(2026, 2, 28),
        "b": datetime.time(7, 32, 0, 999),
        "c": datetime.datetime(1979, 5, 27, 7, 32),
        "d": datetime.datetime(1979, 5, 27, 7, 32, tzinfo=datetime.timezone(datetime.timedelta(hours=-7))),
        "e": [datetime.date(1, 1, 1)],
    },
}


@pytest.mark.parametrize("kind", list(TABLES))
def test_written_toml_reads_back_to_the_same(kind: str) -> None:
    read = tomllib.loads(dump_toml(TABLES[kind]))

    assert read == TABLES[kind]
    assert {k: type(v) for k, v in read.items()} == {k: type(v) for k, v in TABLES[kind].items()}


def job_file(directory: Path, text: str, name: str = "job.toml") -> Path:
    path = directory / name
    path.write_text(text, encoding="utf-8")
    return path


def refusal(path: Path, *overrides: str, preset: str | None = None) -> str:
    with pytest.raises(JobError) as caught:
        load_job(path, overrides, preset)
    return str(caught.value)


def test_resolved_job_reads_back_to_the_same_job_from_anywhere(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        '[problem]\nfunction = "mine.py:build"\nweights = "w.safetensors"\n'
        "[problem.args]\nwhen = 2026-01-01\n[[problem.args.boundaries]]\nx = 0.0\n"
        "[[problem.args.boundaries]]\nx = 1.0\n[problem.args.deep.deeper]\n[subspace]\nrank = 5\n",
    )
    job = load_job(path)
    (tmp_path / "elsewhere").mkdir()

    assert load_job(job_file(tmp_path / "elsewhere", job.as_toml())) == job
    assert job.problem.args["boundaries"] == [{"x": 0.0}, {"x": 1.0}]
    assert job.problem.function == f"{tmp_path}/mine.py:build"
    assert job.problem.path == str(tmp_path)
    assert job.problem.weights == str(tmp_path / "w.safetensors")


@pytest.mark.parametrize("name", ["../esc", "", "a/b", ".hidden", "..", "a b", "ä", "a\\nb", "x" * 101])
def test_name_that_could_lead_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    path = job_file(tmp_path, f'name = "{name}"\nproblem = "antiderivative"\n')

    assert "name = " in refusal(path)
    assert "letters, digits" in refusal(path)


def test_name_taken_from_the_file_is_held_to_the_same(tmp_path: Path) -> None:
    text = 'problem = "antiderivative"\n'

    assert load_job(job_file(tmp_path, text, "run-1.b_2.toml")).name == "run-1.b_2"
    assert "name = 'my job'" in refusal(job_file(tmp_path, text, "my job.toml"))
    assert load_job(job_file(tmp_path, text, "my job.toml"), ["name=mine"]).name == "mine"


def test_presets_are_checked_whether_used_or_not(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        'problem = "antiderivative"\n[subspace]\nrank = 5\n[preset.small.subspace]\nrnak = 3\n'
        '[preset.large.subspace]\nrank = -1\n[preset.other]\nproblem = "function_fit"\n',
    )
    for preset in (None, "other", "small"):
        message = refusal(path, preset=preset)
        assert "did you mean 'rank'?" in message
        assert "preset.large: subspace.rank = -1" in message
        assert message.count("rnak") == 1


def test_mistake_of_the_job_is_not_repeated_for_each_preset(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        'problem = "antiderivative"\n[subspace]\nrnak = 3\n[preset.a]\n[preset.b.subspace]\nrank = 2\n',
    )

    assert refusal(path).count("rnak") == 1


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("preset = 5", "tables [preset.NAME] are expected"),
        ("[preset]\nsmall = 3", "a table [preset.small] is expected"),
        ("subspace = 3", "a table [subspace] is expected"),
        ("[[subspace]]\nrank = 3", "a table [subspace] is expected"),
        ("x = [" + "[" * 5000, "not valid TOML"),
        ("x = " + "9" * 5000, "not valid TOML"),
        ("[solver]\nmu = " + "9" * 400, "solver.mu"),
        ("[solver]\nmu = nan", "solver.mu = nan"),
        ("[solver]\ntolerance = inf", "solver.tolerance = inf"),
        ("[subspace]\nrank = true", "an integer is expected"),
        ("[subspace]\nrank = 1979-05-27", "an integer is expected"),
        ("[train]\nsteps = 1\nbatch_size = 1\nlearning_rate = inf", "train.learning_rate = inf"),
        ('name = ["a"]', "a string is expected"),
    ],
)
def test_odd_values_are_refused_in_words(text: str, expected: str, tmp_path: Path) -> None:
    assert expected in refusal(job_file(tmp_path, f'problem = "antiderivative"\n{text}\n'))


def test_file_that_is_no_text_or_no_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'name = "\xe4"')

    (tmp_path / "bom.toml").write_bytes(b'\xef\xbb\xbfproblem = "antiderivative"')

    assert load_job(tmp_path / "bom.toml").problem.function == "antiderivative"
    assert "not UTF-8 text" in refusal(tmp_path / "latin.toml")
    assert "cannot be read (Is a directory)" in refusal(tmp_path)
    assert "does not exist" in refusal(tmp_path / "nowhere.toml")


@pytest.mark.parametrize(
    ("override", "read"),
    [
        ("problem.args.a=word", "word"),
        ("problem.args.a=0.5", 0.5),
        ("problem.args.a=[1, {b = 2}]", [1, {"b": 2}]),
        ("problem.args.a=a=b", "a=b"),
        ("problem.args.a=1\nname = 2", "1\nname = 2"),
        ("problem.args.a=" + "[" * 5000, "[" * 5000),
    ],
)
def test_override_is_toml_or_a_word(override: str, read: Any, tmp_path: Path) -> None:
    job = load_job(job_file(tmp_path, 'problem = "antiderivative"\n'), [override])

    assert job.problem.args == {"a": read}


def test_text_that_cannot_be_written_again_is_refused_at_once(tmp_path: Path) -> None:
    # A word of the command line in another encoding arrives with lone surrogates.
    path = job_file(tmp_path, 'problem = "antiderivative"\n')

    assert "cannot be used" in refusal(path, "problem.args.a=\udcff")
    assert "cannot be used" in refusal(path, 'problem.weights="a\\u0000b"')


def test_defaults_are_those_of_the_settings(tmp_path: Path) -> None:
    job = load_job(job_file(tmp_path, 'problem = "antiderivative"\n'))

    assert isinstance(job, Job)
    assert job == Job(name="job", problem=job.problem)


def test_all_values_of_a_section_that_are_out_of_range_are_listed(tmp_path: Path) -> None:
    path = job_file(
        tmp_path,
        'problem = "antiderivative"\n[subspace]\nrank = 0\nbasis = "magic"\nseed = -1\n[compute]\n'
        'device = "tpu"\nmemory_per_rank = "2 parsecs"\n[held_out]\nfraction = 0.95\n'
        "seed = 18446744073709551616\n"
        "[solver]\ncut = 1.0\n[train]\nsteps = 0\nbatch_size = -1\nlearning_rate = 0.0\ndecay = nan\n",
    )
    message = refusal(path)

    for key in (
        "subspace.rank", "subspace.basis", "subspace.seed", "compute.device", "compute.memory_per_rank",
        "held_out.fraction", "held_out.seed", "solver.cut", "train.steps", "train.batch_size",
        "train.learning_rate", "train.decay",
    ):  # fmt: skip
        assert message.count(key) == 1
