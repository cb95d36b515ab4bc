"""``python -m benchmarks NAME``: one benchmark, its table, and on request its JSON and PNG."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from benchmarks import accuracy
from benchmarks.record import Record, save_json, save_markdown, save_png, table

_SUMMARIES = {
    "oneshot": "one-shot refinement against the published recipe, LSMR and dense least squares",
    "subspace": "captured energy against seconds of every way to a basis",
    "products": "rates of J V and J^T U against the dgemm rate",
    "scaling": "strong and weak scaling over MPI ranks, bytes and messages",
    "iterative": "rounds of refinement and alignment against continued training at equal seconds",
    "pipeline": "what controller, launch and checkpoints add to the rounds of a whole run",
    "predictor": "seconds and memory of the refined predictor over those of the plain network",
    "phases": "what counting flops, messages and seconds by phase costs",
    "memory": "a Jacobian ten times larger than the memory budget",
    "accuracy": "error against seconds beside other refiners, at equal time; has options of its own (--help)",
    "results": "every shipped job beside the published figures (docs/results.md)",
}


def main(words: list[str] | None = None) -> int:
    """Run one benchmark.

    Args:
        words: Command line; None takes the process's.

    Returns:
        Exit code.
    """
    words = sys.argv[1:] if words is None else words
    if words[:1] == ["accuracy"]:
        return accuracy.main(words[1:])
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Side-by-side measurements; ratios are taken within one run.",
        epilog="\n".join(f"{name:9s} {text}" for name, text in _SUMMARIES.items())
        + "\n\nexample: python -m benchmarks oneshot --preset small --json oneshot.json --png oneshot.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", choices=_SUMMARIES, metavar="NAME", help="one of: " + ", ".join(_SUMMARIES))
    parser.add_argument(
        "--preset",
        choices=["tiny", "small", "full"],
        default="full",
        help="small ends in about a minute, full may take many (default: full)",
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as a document")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the record")
    parser.add_argument("--png", type=Path, metavar="FILE", help="draw the record (needs matplotlib)")
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="setting of the job, as in lsr-hpc refine; may be repeated",
    )
    parser.add_argument(
        "--cores",
        type=int,
        default=min(2, len(os.sched_getaffinity(0))),
        help="cores of every arm: MPI ranks of ours, threads of the others (default: 2, where there are two)",
    )
    options = parser.parse_args(words)
    module = importlib.import_module(f"benchmarks.{options.name}")
    record: Record = module.run(options.preset, options.overrides, options.cores)
    record.command = "python -m benchmarks " + " ".join(words)
    print(table(record, module.COLUMNS))
    if options.markdown is not None:
        save_markdown(record, options.markdown, module.COLUMNS, module.__doc__, options.png)
    if options.json is not None:
        save_json(record, options.json)
    if options.png is not None:
        save_png(record, options.png, module.draw)
    return 0


if __name__ == "__main__":
    sys.exit(main())
