"""Section [campaign]: values of axes, the members they make, and what a directory of members keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lsr_hpc.campaign.layout import CampaignLayout
from lsr_hpc.campaign.members import member_job
from lsr_hpc.campaign.record import plan_members, read_record, register
from lsr_hpc.campaign.resources import share_out
from lsr_hpc.errors import JobError
from lsr_hpc.job import Job, load_job

JOB = '[problem]\nfunction = "mine:build"\n'


def job_of(directory: Path, campaign: str, above: str = "") -> Job:
    path = directory / "job.toml"
    path.write_text(f"{JOB}{above}\n[campaign]\n{campaign}\n", encoding="utf-8")
    return load_job(path)


def values_of(directory: Path, axis: str) -> list[Any]:
    job = job_of(directory, f"[campaign.axes]\nproblem.args.a = {axis}")
    assert job.campaign is not None
    values: list[Any] = job.campaign.axes["problem.args.a"]
    return values


@pytest.mark.parametrize(
    ("axis", "values"),
    [
        ("[1, 2.5, 'x', true]", [1, 2.5, "x", True]),
        ("[[1, 2], {b = 3}]", [[1, 2], {"b": 3}]),
        ("{range = [3, 6]}", [3, 4, 5, 6]),
        ("{range = [0, 10, 4]}", [0, 4, 8]),
        ("{range = [3, 1, -1]}", [3, 2, 1]),
        ("{range = [5, 5]}", [5]),
        ("{range = [0.0, 0.3, 0.1]}", [0.0, 0.1, 0.2, pytest.approx(0.3)]),
        ("{file = 'v.txt'}", [1, 0.5, "two words", "quoted", True]),
        ("{file = 'v.json'}", [1, [2], {"x": None}]),
        ("{file = 'table.json', column = 'b'}", [4, 5]),
        ("{file = 'v.csv'}", [1, 2]),
        ("{file = 'table.csv', column = 'b'}", [0.1, "x, y"]),
    ],
)
def test_an_axis_is_a_list_a_range_or_a_file(tmp_path: Path, axis: str, values: list[Any]) -> None:
    (tmp_path / "v.txt").write_text('# sizes\n1\n\n 0.5 \ntwo words\n"quoted"\ntrue\n')
    (tmp_path / "v.json").write_text('[1, [2], {"x": null}]')
    (tmp_path / "table.json").write_text('{"a": [1], "b": [4, 5]}')
    (tmp_path / "v.csv").write_text("\ufeffa\n1\n2\n", encoding="utf-8")
    (tmp_path / "table.csv").write_text('a, b\n1,0.1\n2,"x, y"\n')

    found = values_of(tmp_path, axis)

    assert found == values
    assert [type(v) for v in found[:3]] == [type(v) for v in values[:3]]


@pytest.mark.parametrize(
    ("campaign", "words"),
    [
        ("at_once = 1", "campaign.axes is missing"),
        ("[campaign.axes]", "campaign.axes is empty"),
        ("[campaign.axes]\nproblem.args.a = []", "problem.args.a has no values"),
        ("[campaign.axes]\nproblem.args.a = 3", "a list, a range or a file is expected"),
        ("[campaign.axes]\nproblem.args = [1]", "problem.args is no single setting"),
        ("[campaign.axes]\nproblem.function = ['a:b']", "problem.function is no single setting"),
        ("[campaign.axes]\nrun.ranks = [1, 2]", "run.ranks cannot differ between members"),
        ("[campaign.axes]\nname = ['a', 'b']", "name cannot differ between members"),
        ("[campaign.axes]\nsubspace = [1]", "subspace cannot differ"),
        ("[campaign.axes]\nproblem.args.a = [nan]", "no finite number"),
        ("[campaign.axes]\nproblem.args.a = [2026-01-01]", "no finite number"),
        ("[campaign.axes]\nproblem.args.a = {range = [0]}", "two or three numbers"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, true]}", "two or three numbers"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, inf]}", "two or three numbers"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, 5, 0]}", "leads nowhere"),
        ("[campaign.axes]\nproblem.args.a = {range = [5, 0]}", "leads nowhere"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, 1e9]}", "more than 100000 values"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, 1], file = 'x.txt'}", "write {range"),
        ("[campaign.axes]\nproblem.args.a = {range = [0, 1], column = 'x'}", "write {range"),
        ("[campaign.axes]\nproblem.args.a = {file = 3}", "file and column are strings"),
        ("[campaign.axes]\nproblem.args.a = {file = 'none.txt'}", "cannot be read"),
        ("[campaign.axes]\nproblem.args.a = {file = 'odd.bin'}", "ends in .txt, .json or .csv"),
        ("[campaign.axes]\nproblem.args.a = {file = 'bad.json'}", "a list is expected"),
        ("[campaign.axes]\nproblem.args.a = {file = 'nan.json'}", "no finite number"),
        ("[campaign.axes]\nproblem.args.a = {file = 'empty.txt'}", "holds no values"),
        ("[campaign.axes]\nproblem.args.a = {file = 'two.csv'}", "it has columns x, y: say which"),
        ("[campaign.axes]\nproblem.args.a = {file = 'two.csv', column = 'z'}", "no column 'z'"),
        ("[campaign.axes]\nproblem.args.a = {file = 'short.csv', column = 'y'}", "row 2 has no column"),
        ("[campaign.axes]\nproblem.args.a = [1]\n'problem.args.a' = [2]", "is there twice"),
        ("tires = 2\n[campaign.axes]\nproblem.args.a = [1]", "did you mean 'tries'?"),
        ("at_once = 0\n[campaign.axes]\nproblem.args.a = [1]", "campaign.at_once = 0"),
        ("combine = 'sum'\n[campaign.axes]\nproblem.args.a = [1]", "use one of 'product', 'zip'"),
        ("combine = 'zip'\n[campaign.axes]\nproblem.args.a = [1]\nsolver.mu = [1, 2]", "axes of one length"),
        (
            "[campaign.axes]\nproblem.args.a = {range = [1, 99999]}\nsolver.mu = [1, 2]",
            "make 199998 members",
        ),
    ],
)
def test_an_axis_that_cannot_be_is_refused_in_words(tmp_path: Path, campaign: str, words: str) -> None:
    (tmp_path / "odd.bin").write_text("1")
    (tmp_path / "bad.json").write_text("3")
    (tmp_path / "nan.json").write_text("[NaN]")
    (tmp_path / "empty.txt").write_text("# nothing\n")
    (tmp_path / "two.csv").write_text("x,y\n1,2\n")
    (tmp_path / "short.csv").write_text("x,y\n1\n")
    with pytest.raises(JobError) as caught:
        job_of(tmp_path, campaign)
    assert words in str(caught.value)


def test_the_resolved_job_has_the_values_and_reads_back_from_anywhere(tmp_path: Path) -> None:
    (tmp_path / "w.csv").write_text("file\na.safetensors\nsub/b.safetensors\n")
    job = job_of(
        tmp_path, "[campaign.axes]\nproblem.weights = {file = 'w.csv'}\nsolver.mu = {range = [1, 2]}"
    )
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "job.toml").write_text(job.as_toml())
    assert load_job(tmp_path / "elsewhere" / "job.toml") == job
    assert job.campaign is not None
    assert job.campaign.axes["problem.weights"] == [
        f"{tmp_path}/a.safetensors",
        f"{tmp_path}/sub/b.safetensors",
    ]


def settings_of(directory: Path, campaign: str) -> list[dict[str, Any]]:
    record = plan_members(CampaignLayout(directory / "out"), job_of(directory, campaign))
    return [dict(member.settings) for member in record.wanted_members]


def test_members_are_all_combinations_or_the_values_side_by_side(tmp_path: Path) -> None:
    axes = "[campaign.axes]\nproblem.args.a = [1, 2]\nsubspace.rank = [5, 6]"
    both = [{"problem.args.a": a, "subspace.rank": k} for a in (1, 2) for k in (5, 6)]
    assert settings_of(tmp_path, axes) == both
    assert settings_of(tmp_path, "combine = 'zip'\n" + axes) == [both[0], both[3]]


def test_a_member_is_the_base_with_its_settings(tmp_path: Path) -> None:
    above = "[problem.args]\nb = 2\nc = {d = 1, e = 2}\n[iterate]\nranks = [3, 4]\n[run]\nranks = 3"
    base = job_of(tmp_path, "[campaign.axes]\nproblem.args.a = [1]", above)
    job = member_job(base, {"problem.args.a": 7, "problem.args.c": {"f": 3}, "solver.mu": 1})
    assert job.problem.args == {"a": 7, "b": 2, "c": {"f": 3}}
    assert (job.solver.mu, job.run.ranks, job.campaign) == (1.0, 3, None)
    assert member_job(base, {}).iterate == base.iterate


def test_everything_that_is_wrong_with_members_is_said_at_once_and_with_their_names(tmp_path: Path) -> None:
    axes = (
        "[campaign.axes]\nsubspace.rank = [5, 0]\nsolver.mu = [0, -1]\nheld_out.fracton = [0.1]\n"
        "subspace.basis = ['krylov', 3]"
    )
    with pytest.raises(JobError) as caught:
        plan_members(CampaignLayout(tmp_path / "out"), job_of(tmp_path, axes))
    message = str(caught.value)
    assert "did you mean 'fraction'?" in message
    assert "subspace.basis = 3: a string is expected" in message
    assert 'member 0 (subspace.rank = 5, subspace.basis = "krylov", solver.mu = 0' in message

    with pytest.raises(JobError) as caught:
        settings_of(tmp_path, "[campaign.axes]\nsubspace.rank = [5, 0]\nsolver.mu = [0, -1]")
    message = str(caught.value)
    assert "member 1 (subspace.rank = 5, solver.mu = -1) and 1 other: solver.mu = -1.0: must be" in message
    assert "member 2 (subspace.rank = 0, solver.mu = 0) and 1 other: subspace.rank = 0: must be" in message


def test_equal_members_are_refused(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"member 2 .*there twice"):
        settings_of(tmp_path, "[campaign.axes]\nsolver.mu = [1, 2, 1.0]")


# --- what a directory keeps ---------------------------------------------------------------------------


@pytest.fixture
def layout(tmp_path: Path) -> CampaignLayout:
    (tmp_path / "out").mkdir()
    return CampaignLayout(tmp_path / "out")


def names(record: Any) -> dict[Any, str]:
    return {m.settings["problem.args.a"]: m.name for m in record.wanted_members}


def test_a_value_more_renames_nobody_and_a_value_less_is_kept_in_mind(
    tmp_path: Path, layout: CampaignLayout
) -> None:
    def registered(values: str) -> dict[Any, str]:
        return names(register(layout, job_of(tmp_path, f"[campaign.axes]\nproblem.args.a = {values}")))

    first = registered("[1, 3]")
    assert [name[:5] for name in first.values()] == ["0000-", "0001-"]
    more = registered("[1, 2, 3]")
    assert {a: more[a] for a in (1, 3)} == first
    assert more[2].startswith("0002-")
    less = registered("[2]")
    assert less == {2: more[2]}
    assert len(read_record(layout).members) == 3
    assert registered("[3, 2, 1]") == more


def test_how_it_is_carried_out_may_change_and_what_is_computed_may_not(
    tmp_path: Path, layout: CampaignLayout
) -> None:
    axes = "[campaign.axes]\nproblem.args.a = [1, 2]"
    first = names(register(layout, job_of(tmp_path, axes)))
    free = "[run]\nranks = 7\n[slurm]\nnodes = 4"
    assert names(register(layout, job_of(tmp_path, "tries = 9\n" + axes, free))) == first
    with pytest.raises(JobError) as caught:
        register(layout, job_of(tmp_path, axes, "[subspace]\nrank = 7\n[solver]\nmu = 1"))
    assert "holds a campaign with another base" in str(caught.value)
    assert "solver.mu: 0.0 there, 1.0 here\n  - subspace.rank: 100 there, 7 here" in str(caught.value)
    with pytest.raises(JobError, match=r"campaign\.command: 'refine' there, 'run' here"):
        register(layout, job_of(tmp_path, "command = 'run'\n" + axes))
    assert names(register(layout, job_of(tmp_path, axes))) == first


def test_an_axis_more_keeps_the_members_with_the_value_that_the_base_had(
    tmp_path: Path, layout: CampaignLayout
) -> None:
    axes = "[campaign.axes]\nproblem.args.a = [1, 2]"
    first = set(names(register(layout, job_of(tmp_path, axes))).values())
    more = register(layout, job_of(tmp_path, axes + "\nsubspace.rank = [50, 100]")).wanted_members
    assert {m.name for m in more if m.settings["subspace.rank"] == 100} == first
    assert len(more) == 4
    assert set(names(register(layout, job_of(tmp_path, axes))).values()) == first


def test_other_weights_under_the_same_name_are_another_base(tmp_path: Path, layout: CampaignLayout) -> None:
    weights = tmp_path / "w.safetensors"
    weights.write_bytes(b"one")
    job = "[campaign.axes]\nproblem.args.a = [1]"
    above = "weights = 'w.safetensors'"
    first = names(register(layout, job_of(tmp_path, job, above)))
    assert names(register(layout, job_of(tmp_path, job, above))) == first
    weights.write_bytes(b"two")
    with pytest.raises(JobError, match=r"problem\.weights sha256"):
        register(layout, job_of(tmp_path, job, above))
    by_weights = "[campaign.axes]\nproblem.args.a = [1]\nproblem.weights = ['w.safetensors']"
    assert names(register(layout, job_of(tmp_path, by_weights)))[1].startswith("0001-")


def test_an_identity_that_was_changed_is_refused(tmp_path: Path, layout: CampaignLayout) -> None:
    job = job_of(tmp_path, "[campaign.axes]\nproblem.args.a = [1]")
    register(layout, job)
    layout.record.write_text(layout.record.read_text().replace('"number": 0', '"number": 1'))
    with pytest.raises(JobError, match="changed or damaged"):
        register(layout, job)


# --- who gets which ranks -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("campaign", "expected"),
    [
        ("", (2, 8, 1)),
        ("ranks_per_member = 8", (8, 2, 2)),
        ("ranks_per_member = 16", (16, 1, 4)),
        ("nodes_per_member = 2", (8, 2, 2)),
        ("nodes_per_member = 1\nranks_per_member = 3", (3, 4, 1)),
        ("at_once = 3\nranks_per_member = 4", (4, 3, 1)),
    ],
)
def test_an_allocation_is_shared_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    campaign: str,
    expected: tuple[int, ...],
) -> None:
    for program in ("srun", "setpriv"):
        (tmp_path / program).write_text("#!/bin/sh\n")
        (tmp_path / program).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    allocation = {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "4", "SLURM_NTASKS_PER_NODE": "4"}
    job = job_of(tmp_path, f"{campaign}\n[campaign.axes]\nproblem.args.a = [1]")
    found = share_out(job, allocation)
    per_member, at_once, nodes = expected
    assert (found.settings.ranks, found.settings.instances_at_once) == (per_member, at_once)
    words = found.launcher.command(per_member, tmp_path / "spec.json", "1-0-1")
    assert f"--nodes={nodes}" in words
    assert f"--ntasks={per_member}" in words
    assert ("--overlap" if at_once == 1 else "--exact") in words


def test_more_nodes_than_there_are_are_refused(tmp_path: Path) -> None:
    job = job_of(tmp_path, "nodes_per_member = 5\n[campaign.axes]\nproblem.args.a = [1]")
    with pytest.raises(JobError, match="the allocation has 4 nodes"):
        share_out(job, {"SLURM_JOB_ID": "1", "SLURM_JOB_NUM_NODES": "4"})
