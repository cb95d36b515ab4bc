"""When the rounds end."""

from __future__ import annotations

from lsr_hpc.iterative.state import IterateState, RoundRecord
from lsr_hpc.settings import IterateSettings

__all__ = ["advice", "why_stop"]

# A round counts as an improvement if it lowers the best residual of network or predictor by a tenth.
_IMPROVED = 0.9
# The rounds were worth their time if they made the predictor so many times better than the first one did.
_WORTH = 2.0


def why_stop(state: IterateState, settings: IterateSettings) -> str:
    """Look at the rounds done so far.

    Args:
        state: State after a round.
        settings: Section ``[iterate]``.

    Returns:
        Why no further round is to be done, or nothing.
    """
    last = state.records[-1]
    error, wanted = last.network_error, settings.target_error
    if error is not None and wanted is not None and error <= wanted:
        return f"the network's error {error:.2e} reached iterate.target_error"
    if settings.target_residual is not None and last.network_residual <= settings.target_residual:
        return f"the network's residual {last.network_residual:.2e} reached iterate.target_residual"
    if len(state.records) >= settings.rounds:
        return f"all {settings.rounds} rounds are done"
    if settings.max_seconds is not None and state.seconds >= settings.max_seconds:
        return f"iterate.max_seconds = {settings.max_seconds:g} are over"
    if rounds_without_gain(state.records) >= settings.patience:
        return f"{settings.patience} rounds in a row improved neither network nor predictor by a tenth"
    return ""


def rounds_without_gain(records: tuple[RoundRecord, ...]) -> int:
    """Rounds since the last one that lowered the best residual of the network or of the predictor.

    Args:
        records: All rounds.

    Returns:
        Their number.
    """
    best_network, best_predictor = records[0].network_residual_before, float("inf")
    idle = 0
    for record in records:
        gained = (
            record.network_residual < _IMPROVED * best_network
            or record.predictor_residual < _IMPROVED * best_predictor
        )
        idle = 0 if gained else idle + 1
        best_network = min(best_network, record.network_residual)
        best_predictor = min(best_predictor, record.predictor_residual)
    return idle


def advice(state: IterateState) -> str:
    """Whether rounds were needed, or one refinement would have done.

    Args:
        state: State after the last round.

    Returns:
        A sentence with the figures.
    """
    first, best = state.records[0], state.predictor
    if best is None:
        return ""
    in_errors = first.predictor_error is not None and best.error is not None
    before = first.predictor_error if in_errors else first.predictor_residual
    after = best.error if in_errors else best.residual
    assert before is not None
    assert after is not None
    what = "error" if in_errors else "residual"
    if before <= _WORTH * after:
        return (
            f"one refinement is the cheaper way to the predictor: {what} {before:.1e} in "
            f"{first.refine_seconds:.0f} s, against {after:.1e} after {len(state.records)} rounds in "
            f"{state.seconds:.0f} s; rounds are for the network's own weights"
        )
    return (
        f"the rounds made the predictor {before / after:.1f} times better: {what} {before:.1e} after one "
        f"refinement ({first.refine_seconds:.0f} s), {after:.1e} after {len(state.records)} rounds "
        f"({state.seconds:.0f} s)"
    )
