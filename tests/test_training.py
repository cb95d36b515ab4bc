"""The trainer of the starts: its loss against one written out, its optimisers against a known minimum."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lsr_hpc.errors import AccuracyError, JobError
from lsr_hpc.problem import Evaluation, Field, Problem, ResidualBlock
from lsr_hpc.settings import TrainingSettings
from lsr_hpc.training import TrainingTask, draw_batch, train

# Legendre polynomials: an optimiser without curvature gets to the minimum of a well-conditioned problem.
X = torch.from_numpy(np.polynomial.legendre.legvander(np.linspace(-1, 1, 40), 3)[:, 1:])
Y = torch.exp(X[:, :1])


def misfit(u: Field, x: Tensor, y: Tensor) -> Tensor:
    return u(x) - y


def linear_problem() -> Problem:
    torch.manual_seed(3)
    return Problem(
        name="linear",
        model=nn.Linear(3, 1),
        blocks=[
            ResidualBlock(name="all", residual=misfit, points=X, data=(Y,)),
            ResidualBlock(name="ends", residual=misfit, points=X[[0, -1]], data=(Y[[0, -1]],), weight=5.0),
        ],
        evaluation=Evaluation(inputs=(X,), reference=Y),
    )


def minimum() -> tuple[float, np.ndarray]:
    """Weighted least squares by numpy: smallest loss, values at X."""
    a = np.hstack([X.numpy(), np.ones((40, 1))])
    scale = np.concatenate([np.full(40, np.sqrt(1 / 40)), np.full(2, np.sqrt(5 / 2))])[:, None]
    rows, y = np.vstack([a, a[[0, -1]]]), np.vstack([Y.numpy(), Y.numpy()[[0, -1]]])
    c = np.linalg.lstsq(scale * rows, scale * y, rcond=None)[0]
    return float(np.sum((scale * (rows @ c - y)) ** 2)), a @ c


@pytest.mark.parametrize(
    ("settings", "accuracy"),
    [
        (TrainingSettings(steps=50, optimizer="lbfgs"), 1e-8),
        (TrainingSettings(steps=4000, learning_rate=3e-2), 1e-4),
        (TrainingSettings(steps=10, learning_rate=3e-2, lbfgs_steps=50), 1e-7),
    ],
    ids=["lbfgs", "adam", "adam, then lbfgs"],
)
def test_training_finds_the_weighted_least_squares_solution(
    settings: TrainingSettings, accuracy: float
) -> None:
    task = TrainingTask.of(linear_problem(), settings)
    loss, values = minimum()
    metrics = train(task, settings, lambda _: None)

    assert metrics["steps"] == settings.steps + settings.lbfgs_steps
    assert metrics["loss"] == pytest.approx(loss, rel=accuracy)
    np.testing.assert_allclose(task.model(X).detach().numpy(), values, atol=10 * accuracy)
    expected = np.linalg.norm(values - Y.numpy()) / np.linalg.norm(Y.numpy())
    assert metrics["error"] == pytest.approx(expected, abs=10 * accuracy)


def test_lbfgs_makes_the_iterations_asked_for_and_no_others() -> None:
    """Two calls of 20 and one of 7 are what one call of 47 is, on a loss that takes longer than that."""

    def trained(steps: int) -> Tensor:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
        task = TrainingTask(model=model, loss=lambda _: (model(X) - Y).square().mean(), error=lambda: 0.0)
        train(task, TrainingSettings(steps=steps, optimizer="lbfgs"), lambda _: None)
        return nn.utils.parameters_to_vector(model.parameters()).detach()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)).double()
    optimiser = torch.optim.LBFGS(
        model.parameters(),
        max_iter=47,
        max_eval=1000,
        history_size=100,
        tolerance_grad=0,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimiser.zero_grad()
        loss = (model(X) - Y).square().mean()
        loss.backward()
        return loss

    optimiser.step(closure)
    once = nn.utils.parameters_to_vector(model.parameters()).detach()
    assert (trained(47) - once).norm() < 1e-6 * once.norm()
    assert (trained(40) - once).norm() > 1e-4 * once.norm()


def test_batches_are_drawn_from_the_seed_and_absent_size_takes_all() -> None:
    generator = torch.Generator().manual_seed(1)
    expected = torch.randint(9, (4,), generator=torch.Generator().manual_seed(1))

    assert draw_batch(9, TrainingSettings(steps=1, batch_size=4), generator).tolist() == expected.tolist()
    assert draw_batch(9, TrainingSettings(steps=1), generator).tolist() == list(range(9))


def test_batch_size_leaves_small_blocks_whole() -> None:
    task = TrainingTask.of(linear_problem(), TrainingSettings(steps=1, batch_size=8))
    generator, mine = torch.Generator().manual_seed(1), torch.Generator().manual_seed(1)
    batch = torch.randint(40, (8,), generator=mine)
    ends = (task.model(X[[0, -1]]) - Y[[0, -1]]).square().mean()

    expected = (task.model(X[batch]) - Y[batch]).square().mean() + 5 * ends
    assert task.loss(generator).item() == pytest.approx(expected.item(), rel=1e-14)


def test_divergence_and_batches_in_line_searches_are_refused_in_words() -> None:
    settings = TrainingSettings(steps=30, learning_rate=1e200)
    task = TrainingTask.of(linear_problem(), settings)
    with pytest.raises(AccuracyError, match=r"lower train\.learning_rate"):
        train(task, settings, lambda _: None)
    with pytest.raises(JobError, match=r"train\.batch_size = 5.*the same points in every step"):
        TrainingSettings(steps=1, optimizer="lbfgs", batch_size=5)
    with pytest.raises(JobError, match=r"train\.batch_size = 5.*the same points in every step"):
        TrainingSettings(steps=1, lbfgs_steps=9, batch_size=5)
    with pytest.raises(JobError, match=r"train\.lbfgs_steps = 9 are those behind Adam"):
        TrainingSettings(steps=1, optimizer="lbfgs", lbfgs_steps=9)
    with pytest.raises(JobError, match=r"train\.optimizer = 'sgd'"):
        TrainingSettings(steps=1, optimizer="sgd")
