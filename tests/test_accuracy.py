"""The arms of ``accuracy`` take the steps of their formulas; the harness counts, judges and tells apart."""

from __future__ import annotations

import json
import math
import re
import time
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch.func import functional_call, jacrev

from benchmarks import accuracy, accuracy_arms, accuracy_document, accuracy_registry, arms, cases, worker
from benchmarks.descent import adam, lbfgs
from benchmarks.gauss_newton import Products, damped_step, gn_cg, last_layer
from benchmarks.natural_gradient import StreamedJacobian, best_step_size, natural_gradient
from benchmarks.track import Track, identity, judge
from lsr_hpc import Evaluation, Problem, ResidualBlock
from lsr_hpc.settings import HeldOutSettings, RefineSettings, SubspaceSettings

SETTINGS = RefineSettings(subspace=SubspaceSettings(rank=5), held_out=HeldOutSettings(fraction=0.0))


class Tiny:
    """A regression with a weighted second block, its dense Jacobian and residual by plain torch.

    Residuals are u - t, or u + u^3 - t where they are to be nonlinear in u.
    """

    def __init__(self, n: int = 40, *, cubic: bool = False, seed: int = 3) -> None:
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(2, 6), torch.nn.Tanh(), torch.nn.Linear(6, 1)).double()
        x = torch.rand(n + 5, 2, dtype=torch.float64)
        target = torch.sin(3 * x[:, :1]) * x[:, 1:]

        def misfit(u, x, t):
            value = u(x)
            return value + value**3 - t if cubic else value - t

        def block(name, lo, hi, weight):
            points, data = x[lo:hi], (target[lo:hi],)
            return ResidualBlock(name=name, residual=misfit, points=points, data=data, weight=weight)

        self.problem = Problem(
            name="tiny",
            model=net,
            blocks=[block("misfit", 0, n, 1.0), block("more", n, n + 5, 4.0)],
            evaluation=Evaluation(inputs=(x,), reference=target),
        )
        self.linear = cases.linearise(self.problem, SETTINGS)
        self.x, self.target = x, target
        scale = torch.tensor([1 / n] * n + [4 / 5] * 5, dtype=torch.float64).sqrt()
        shapes = {name: p.shape for name, p in net.named_parameters()}

        def residual(theta):
            pieces = torch.split(theta, [s.numel() for s in shapes.values()])
            named = {k: v.view(s) for (k, s), v in zip(shapes.items(), pieces, strict=True)}
            return scale * misfit(lambda z: functional_call(net, named, (z,)), x, target)[:, 0]

        self.residual = residual
        self.theta0 = torch.cat([p.detach().reshape(-1) for p in net.parameters()])

    def at(self, theta):
        """f and J, dense."""
        return self.residual(theta).detach(), jacrev(self.residual)(theta).detach()


def losses(track, tiny):
    return [float(tiny.residual(i.theta).square().sum()) for i in track.kept]


def is_close(found, expected, tolerance):
    return float((found - expected).norm()) <= tolerance * float(expected.norm())


@pytest.mark.parametrize("cubic", [False, True])
def test_cg_step_is_the_dense_damped_gauss_newton_step(cubic):
    tiny = Tiny(cubic=cubic)
    f, j = tiny.at(tiny.theta0)
    found, j_times, jt_times = Products(tiny.residual).at(tiny.theta0)
    assert is_close(found, f, 1e-14)
    for damping in (1e-1, 1e-4):
        expected = -torch.linalg.solve(j.T @ j + damping * torch.eye(j.shape[1]).double(), j.T @ f)
        for start in (torch.zeros_like(expected), torch.ones_like(expected)):
            step = damped_step(j_times, jt_times, jt_times(f), damping, start, progress=0.0)
            assert is_close(step, expected, 1e-7)


def test_cg_ends_early_where_nothing_is_gained_and_when_it_is_told_to():
    tiny = Tiny()
    f, _ = tiny.at(tiny.theta0)
    products = Products(tiny.residual)
    _, j_times, jt_times = products.at(tiny.theta0)
    zero = torch.zeros_like(tiny.theta0)
    damped_step(j_times, jt_times, jt_times(f), 1e-6, zero)
    assert products.j_columns < 200
    assert torch.equal(damped_step(j_times, jt_times, jt_times(f), 1e-6, zero, is_over=lambda: True), zero)


def test_gauss_newton_cg_never_raises_the_loss_and_ends_where_the_gradient_vanishes():
    tiny = Tiny(cubic=True)
    track = Track(6.0)
    gn_cg(tiny.residual, tiny.theta0, track)
    found = losses(track, tiny)
    # A rejected step leaves the weights where they are.
    assert all(b <= a for a, b in pairwise(found))
    f, j = tiny.at(track.last.theta)
    f0, j0 = tiny.at(tiny.theta0)
    assert float((j.T @ f).norm()) < 1e-4 * float((j0.T @ f0).norm())


@pytest.mark.parametrize("n", [12, 40], ids=["N < P", "N > P"])
@pytest.mark.parametrize("held_bytes", [2**30, 0], ids=["held", "streamed"])
def test_engd_w_step_is_the_dense_formula(n, held_bytes):
    tiny = Tiny(n)
    f, j = tiny.at(tiny.theta0)
    streamed = StreamedJacobian(tiny.linear, tiny.linear.theta0, held_bytes, points_per_block=7)
    expected = j.T @ torch.linalg.solve(j @ j.T + 1e-3 * torch.eye(len(f)).double(), f)
    assert is_close(streamed.kernel(), j @ j.T, 1e-13)
    assert is_close(streamed.times(tiny.theta0), j @ tiny.theta0, 1e-13)
    assert is_close(streamed.transposed_times(f), j.T @ f, 1e-13)
    assert is_close(streamed.damped_inverse(1e-3)(f), expected, 1e-10)


def test_spring_is_its_recurrence():
    tiny = Tiny(cubic=True)
    damping, momentum, step_size = 1e-3, 0.8, 0.3
    theta, phi = tiny.theta0, torch.zeros_like(tiny.theta0)
    expected = [theta]
    for _ in range(3):
        f, j = tiny.at(theta)
        kernel = j @ j.T + damping * torch.eye(len(f)).double()
        phi = momentum * phi + j.T @ torch.linalg.solve(kernel, f - momentum * j @ phi)
        theta = theta - step_size * phi
        expected.append(theta)

    class Four(Track):
        """Takes the first four iterates."""

        def tell(self, theta, delta=None, seconds=None, **notes):
            self.kept.append(theta.clone())
            return len(self.kept) < 4

    track = Four(1.0)
    natural_gradient(
        tiny.linear,
        tiny.residual,
        tiny.theta0,
        track,
        damping=damping,
        momentum=momentum,
        step_size=step_size,
    )
    for found, wanted in zip(track.kept, expected, strict=True):
        assert is_close(found, wanted, 1e-9)


def test_damping_grows_only_where_the_kernel_is_not_positive_definite():
    tiny = Tiny(12)
    solve = StreamedJacobian(tiny.linear, tiny.linear.theta0).damped_inverse(0.0)
    # 17 rows of 25 parameters, five points of them far from independent: still a finite step.
    assert bool(torch.isfinite(solve(torch.ones(17, dtype=torch.float64))).all())


def test_line_search_is_the_best_of_its_grid_and_never_raises_the_loss():
    tiny = Tiny(cubic=True)
    f, j = tiny.at(tiny.theta0)
    loss = float(f.square().sum())
    for direction in (j.T @ f, 100 * (j.T @ f), torch.linalg.lstsq(j, f[:, None]).solution[:, 0]):
        values = {
            2.0**-i: float(tiny.residual(tiny.theta0 - 2.0**-i * direction).square().sum()) for i in range(31)
        }
        assert best_step_size(tiny.residual, tiny.theta0, direction, loss) == min(values, key=values.get)
        assert min(values.values()) < loss
    assert best_step_size(tiny.residual, tiny.theta0, -(j.T @ f), loss) == 0.0


@pytest.mark.parametrize("momentum", [0.0, 0.8], ids=["ENGD-W", "SPRING"])
def test_line_searched_natural_gradients_never_raise_the_loss(momentum):
    tiny = Tiny(cubic=True)
    track = Track(2.0)
    counts = natural_gradient(tiny.linear, tiny.residual, tiny.theta0, track, damping=1e-8, momentum=momentum)
    found = losses(track, tiny)
    assert found[-1] < 0.2 * found[0]
    assert all(b <= a for a, b in pairwise(found))
    assert counts["jt_columns"] % 45 == 0


def test_last_layer_is_least_squares_on_its_columns():
    tiny = Tiny()
    f, j = tiny.at(tiny.theta0)
    track = Track(30.0)
    assert last_layer(tiny.linear, tiny.theta0, track) in {1, 2}
    # Linear(2, 6) has 18 parameters, Linear(6, 1) the 7 behind them.
    expected = torch.linalg.lstsq(j[:, 18:], -f[:, None]).solution[:, 0]
    step = track.last.theta - tiny.theta0
    assert float(step[:18].abs().max()) == 0.0
    assert is_close(step[18:], expected, 1e-9)
    assert track.last.delta is None


def test_last_layer_of_a_nonlinear_residual_ends_where_its_gradient_vanishes():
    tiny = Tiny(cubic=True)
    track = Track(30.0)
    assert last_layer(tiny.linear, tiny.theta0, track) > 1
    f, j = tiny.at(track.last.theta)
    assert float((j[:, 18:].T @ f).norm()) < 1e-6 * float(j[:, 18:].norm() * f.norm())


@pytest.mark.parametrize("is_scaled", [False, True])
def test_lsmr_finds_the_least_squares_solution(is_scaled):
    tiny = Tiny(cubic=True)
    f, j = tiny.at(tiny.theta0)
    track = Track(1.0)
    accuracy_arms._lsmr(j, f, tiny.theta0, track, is_scaled=is_scaled)
    expected = torch.linalg.lstsq(j, -f[:, None], driver="gelsd").solution[:, 0]
    smallest = float((f + j @ expected).norm())
    assert float((f + j @ track.last.delta).norm()) <= smallest * (1 + 1e-6)
    assert track.last.notes["iterations"] > 100
    assert torch.equal(track.last.theta, tiny.theta0)


def test_first_order_arms_lower_the_loss_and_count_gradients():
    tiny = Tiny(cubic=True)
    for method, share in ((adam, 0.9), (lbfgs, 1e-2)):
        track = Track(1.0)
        gradients = method(tiny.residual, tiny.theta0, track)
        found = losses(track, tiny)
        assert found[-1] < share * found[0]
        assert gradients > 10


def test_lbfgs_ends_by_itself_at_a_minimum():
    tiny = Tiny(seed=1)
    found = lbfgs(lambda theta: theta - 1.0, tiny.theta0, track := Track(20.0))
    assert track.seconds < 10.0
    assert float((track.last.theta - 1.0).abs().max()) < 1e-6
    assert found < 2000


def test_late_iterates_do_not_count_unless_they_are_the_first():
    tiny = Tiny()
    track = Track(10.0)
    assert track.tell(tiny.theta0, seconds=1.0)
    assert track.tell(tiny.theta0 + 1, seconds=1.1)
    assert not track.tell(tiny.theta0 + 2, seconds=11.0)
    assert [i.seconds for i in track.kept] == [1.0]
    assert float((track.last.theta - tiny.theta0).mean()) == 1.0
    found = track.judged(tiny.linear)
    assert [p["seconds"] for p in found["history"]] == [1.0, 1.1]
    assert (found["seconds"], found["is_late"], found["kind"]) == (1.1, False, "weights")

    one_shot = Track(10.0)
    assert not one_shot.tell(tiny.theta0, torch.zeros_like(tiny.theta0), seconds=12.0)
    found = one_shot.judged(tiny.linear)
    assert (found["seconds"], found["is_late"], found["kind"]) == (12.0, True, "predictor")


def test_clock_starts_by_itself():
    track = Track(0.05)
    assert not track.is_over
    time.sleep(0.06)
    assert track.is_over


def test_judge_tells_weights_from_predictors():
    tiny = Tiny(cubic=True)
    f, j = tiny.at(tiny.theta0)
    delta = 0.1 * torch.linspace(-1, 1, len(tiny.theta0), dtype=torch.float64)
    net = tiny.problem.model

    def field(theta):
        return functional_call(net, tiny.linear.layout.unflatten(theta), (tiny.x,))

    with torch.no_grad():
        predicted = field(tiny.theta0) + (jacrev(field)(tiny.theta0) @ delta)
    reference = tiny.target
    found = judge(tiny.linear, tiny.theta0, delta)
    assert found["error"] == pytest.approx(
        float((predicted - reference).norm() / reference.norm()), rel=1e-12
    )
    assert found["linear"] == pytest.approx(float((f + j @ delta).norm()), rel=1e-12)
    rows = (predicted + predicted**3 - reference)[:, 0]
    true = float(rows[:40].square().mean() + 4 * rows[40:].square().mean()) ** 0.5
    assert found["true"] == pytest.approx(true, rel=1e-12)
    assert found["true"] != pytest.approx(found["linear"], rel=1e-3)

    found = judge(tiny.linear, tiny.theta0 + delta)
    moved = field(tiny.theta0 + delta)
    assert found["error"] == pytest.approx(float((moved - reference).norm() / reference.norm()), rel=1e-12)
    assert found["true"] == pytest.approx(float(tiny.residual(tiny.theta0 + delta).norm()), rel=1e-12)
    assert found["linear"] is None
    assert judge(tiny.linear, tiny.theta0 * math.nan)["error"] is None


def test_digests_know_weights_points_and_row_weights():
    problem = Tiny().problem
    same = identity(Tiny().problem)
    assert identity(problem) == same
    first, second = problem.blocks
    heavier = replace(problem, blocks=[first, replace(second, weight=5.0)])
    other = replace(problem, blocks=[replace(first, points=first.points + 1e-15), second])
    assert identity(heavier)["rows_sha256"] != same["rows_sha256"] != identity(other)["rows_sha256"]
    with torch.no_grad():
        problem.model[0].bias[0] += 1e-12
    assert identity(problem)["theta0_sha256"] != same["theta0_sha256"]


def measurement(title, seed, errors, **more):
    history = [{"seconds": float(10**i), "error": e} for i, e in enumerate(errors)]
    last = {"seconds": history[-1]["seconds"], "error": errors[-1], "best_error": min(errors)}
    tags = {"problem": "poisson", "seed": seed, "instance": 0, "arm": "lbfgs", "title": title}
    figures = {"kind": "weights", "is_late": False, "true": 1.0, "linear": None, "peak_rss_bytes": 2**30}
    return {**tags, **figures, **last, "history": history, "foreign_cores": 0.5, **more}


def test_summary_has_medians_and_the_worst_and_says_what_was_not_reached():
    found = [
        measurement("a", 0, [1.0, 5e-2, 1e-3]),
        measurement("a", 1, [1.0, 2e-1, 2e-3]),
        measurement("a", 2, [1.0, 5e-3, 9e-1]),
        {**measurement("b", 0, [1.0]), "skipped": "no time"},
    ]
    first, second = accuracy.summarised(found)
    assert (first["median"], first["worst"], first["on_the_way"]) == (2e-3, 9e-1, 2e-3)
    assert first["mean"] == pytest.approx((1e-3 + 2e-3 + 9e-1) / 3)
    # Below 1e-1 after 10, 100 and 10 s; below 1e-2 after 100, 100 and 10; below 1e-3 in one case of three.
    assert first["reached"][:3] == [10.0, 100.0, math.inf]
    assert second["skipped"] == "no time"


def test_other_weights_or_rows_end_the_comparison():
    one = measurement("a", 0, [1.0], theta0_sha256="1", rows_sha256="2")
    accuracy._require_same_start([one, {**one, "arm": "adam"}])
    with pytest.raises(RuntimeError, match="lbfgs and adam had other weights or rows"):
        accuracy._require_same_start([one, {**one, "arm": "adam", "rows_sha256": "3"}])


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        (1e-3, 1e-2, "ours is best with 1.0e-03"),
        (
            1e-2,
            1e-3,
            "ours is not best: L-BFGS, 100 pairs has 1.0e-03 .* 10 times less .*; all of its time",
        ),
        (1e-3, 1.1e-3, "are equal with 1.0e-03 and 1.1e-03"),
    ],
)
def test_sentence_says_who_is_better_and_why(ours, theirs, words):
    lines = [
        {**line, "kind": "weights", "median": error, "seconds": 3.0}
        for line, error in (
            ({"arm": "ours_residual", "title": "ours, rounds: network"}, ours),
            ({"arm": "lbfgs", "title": "L-BFGS, 100 pairs"}, theirs),
        )
    ]
    assert re.search(words, accuracy_document.sentence(lines))


def test_dense_arm_is_left_out_where_it_would_not_end(monkeypatch):
    monkeypatch.setattr(accuracy_arms, "_LARGEST_DENSE", 1.0)
    case = {"job": "jobs/poisson.toml", "preset": "small", "overrides": ["subspace.rank=10"]}
    assert accuracy_arms.linear_solve(case, 1.0, "dense")["skipped"].startswith("left out: J is 2200 x 3297")


def run_here(arm):
    """An arm in this process, which is enough to see its record."""
    return arms.completed(arm, worker.call(arm.function, arm.arguments), 0.0)


WORDS = ["--preset", "tiny", "--budget", "1.5", "--seeds", "1", "--cores", "1", "--problem"]


def test_command_compares_keeps_and_writes(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(accuracy, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(accuracy, "run_arm", run_here)
    page, picture = tmp_path / "docs" / "page.md", tmp_path / "docs" / "page.png"
    words = [
        *WORDS,
        "poisson,antiderivative",
        "--instances",
        "1",
        "--arms",
        "start,lbfgs,dense,nncg,ours,ours_residual",
    ]
    files = ["--json", str(tmp_path / "all.json"), "--markdown", str(page), "--png", str(picture)]
    assert accuracy.main([*words, *files]) == 0
    record = json.loads((tmp_path / "all.json").read_text())
    by_title = {(m["problem"], m["title"]): m for m in record["arms"]}
    assert set(by_title) == {
        (problem, title)
        for problem in ("poisson", "antiderivative")
        for title in (
            *(accuracy_registry.ARMS[a].title for a in ("start", "lbfgs", "dense", "nncg", "ours")),
            "ours, rounds on the loss: predictor",
            "ours, rounds on the loss: network",
        )
    }
    for m in by_title.values():
        if "skipped" not in m:
            assert m["peak_rss_bytes"] > 0
            assert m["error"] == m["history"][-1]["error"]
    assert "publication" in by_title["poisson", "NNCG (DeepXDE)"]["skipped"]
    start = by_title["antiderivative", "start"]
    refined = by_title["antiderivative", "ours, one shot"]
    assert refined["error"] < 1e-2 * start["error"]
    assert refined["j_columns"] >= refined["rank"]
    assert (refined["kind"], start["kind"]) == ("predictor", "weights")
    network = by_title["antiderivative", "ours, rounds on the loss: network"]
    true = [p["true"] for p in network["history"]]
    assert true == sorted(true, reverse=True)

    text = page.read_text()
    for part in (
        "## poisson",
        "](page_poisson.png)",
        "](page_antiderivative.png)",
        "| L-BFGS, 100 pairs | weights |",
    ):
        assert part in text
    assert start["theta0_sha256"][:12] in text
    assert f"{refined['error']:.2e}" in text
    assert picture.with_name("page_poisson.png").stat().st_size > 10_000

    def not_again(arm):
        raise AssertionError(arm)

    monkeypatch.setattr(accuracy, "run_arm", not_again)
    capsys.readouterr()
    assert accuracy.main(words) == 0
    assert f"{refined['error']:.2e}" in capsys.readouterr().out
    with pytest.raises(AssertionError, match=r"budget_s': 2\.0"):
        accuracy.main([*words, "--budget", "2"])


def test_seeds_get_starts_and_rows_of_their_own(monkeypatch, tmp_path):
    made = []

    def train(command, **more):
        made.append(command)

    monkeypatch.setattr(accuracy, "RUNS", tmp_path)
    monkeypatch.setattr(accuracy, "run_command", train)
    target = accuracy_registry.PROBLEMS["poisson"]
    [shipped] = accuracy._cases("poisson", target, 0, "small", [], None)
    [second] = accuracy._cases("poisson", target, 2, "small", ["subspace.rank=3"], None)
    assert shipped["overrides"] == ["problem.args.seed=0"]
    assert second["overrides"][:2] == ["problem.args.seed=2", "subspace.rank=3"]
    assert "starts/poisson-small-2.safetensors" in second["overrides"][2]
    [command] = made
    assert command[command.index("train") :][:2] == ["train", "jobs/poisson.toml"]
    assert "train.seed=2" in command
    operator = accuracy_registry.PROBLEMS["antiderivative"]
    several = accuracy._cases("antiderivative", operator, 1, "small", [], 3)
    assert [c["instance"] for c in several] == [0, 1, 2]
    assert several[0]["overrides"] == ["problem.args.seed=8", "problem.args.instances=3"]


def test_unknown_names_are_refused(capsys):
    for words in (["--problem", "poison"], ["--problem", "poisson", "--arms", "adam,sgd"]):
        with pytest.raises(SystemExit):
            accuracy.main(words)
    assert "no arm 'sgd': use start, adam" in capsys.readouterr().err
