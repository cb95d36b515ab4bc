"""What a refinement costs per GPU: flops, bytes and messages, and which term takes over where.

    python -m benchmarks.cost_model --rows 1e9 --parameters 1e8 --gpus 1024 --rank 100

A model, not a measurement: ``python -m benchmarks scaling`` checks its byte counts against counted ones, and
its seconds rest on the rates of :class:`Hardware`, which are assumptions.
"""

# Legend: N rows, P parameters, k rank of the subspace, b = k + oversampling, p processes with a GPU each.

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass

__all__ = ["Hardware", "Size", "Term", "crossovers", "gather_bytes", "main", "memory", "terms", "tsqr_bytes"]

_WORD = 8


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """Assumed rates of one process.

    Attributes:
        flops: Of the GPU in block products, per second.
        bandwidth: Of the network, bytes per second each way.
        latency: Seconds per message.
        host_flops: Of the host in small dense factorisations, per second.
        memory_bytes: Of the GPU.
    """

    flops: float = 30e12
    bandwidth: float = 50e9
    latency: float = 5e-6
    host_flops: float = 50e9
    memory_bytes: float = 141e9


@dataclass(frozen=True, kw_only=True)
class Size:
    """A refinement.

    Attributes:
        rows: N.
        parameters: P.
        rank: k.
        gpus: p.
        oversampling: Extra columns of the block.
        iterations: Block iterations for the basis, one J and one J^T product each.
        columns_per_chunk: Columns exchanged at once.
        passes: Forward passes per column of one product: 2 matrix-free, 1 with a factored Jacobian.
    """

    rows: float
    parameters: float
    rank: int
    gpus: int
    oversampling: int = 10
    iterations: int = 1
    columns_per_chunk: int = 128
    passes: int = 2

    @property
    def width(self) -> int:
        """Columns b of a block."""
        return self.rank + self.oversampling


@dataclass(frozen=True)
class Term:
    """One term of the cost, per process.

    Attributes:
        name: What it is.
        flops: Floating-point operations.
        n_bytes: Bytes received.
        messages: Messages received.
        seconds: At the assumed rates.
    """

    name: str
    flops: float
    n_bytes: float
    messages: float
    seconds: float


def gather_bytes(columns: int, parameters: float, processes: int) -> float:
    """Bytes each process receives when a panel is gathered, or summed and scattered.

    Args:
        columns: Vectors in the panel.
        parameters: P.
        processes: p.

    Returns:
        ``8 * columns * P * (p - 1) / p``.
    """
    return _WORD * columns * parameters * (processes - 1) / processes


def tsqr_bytes(columns: int, processes: int) -> float:
    """Bytes the first process receives in one TSQR, R factors only, sent as full squares.

    Args:
        columns: Columns m of the tall matrix.
        processes: p.

    Returns:
        ``8 m^2 ceil(log2 p)``.
    """
    return _WORD * columns**2 * _levels(processes)


def _levels(processes: int) -> int:
    return math.ceil(math.log2(processes)) if processes > 1 else 0


def terms(size: Size, hardware: Hardware) -> list[Term]:
    """Every term of one refinement.

    Args:
        size: The refinement.
        hardware: Assumed rates.

    Returns:
        The terms in the order of the algorithm.
    """
    n, p_local = size.rows / size.gpus, size.parameters / size.gpus
    b, k, q = size.width, size.rank, size.iterations
    columns = 2 * q * b + k

    def exchange(name: str, wide: int) -> Term:
        n_bytes = gather_bytes(wide, size.parameters, size.gpus)
        messages = math.ceil(wide / size.columns_per_chunk) * (size.gpus - 1)
        return Term(name, 0, n_bytes, messages, n_bytes / hardware.bandwidth + messages * hardware.latency)

    def compute(name: str, flops: float, rate: float) -> Term:
        return Term(name, flops, 0, 0, flops / rate)

    # A forward pass over this process's rows takes 2 n P flops.
    forward = 2 * n * size.parameters
    levels = _levels(size.gpus)
    reduce_bytes = tsqr_bytes(k + 1, size.gpus)
    return [
        compute("products with J and J^T", (size.passes * columns + 3) * forward, hardware.flops),
        exchange("gather V", q * b + k),
        exchange("reduce-scatter J^T U", q * b),
        # Householder QR and its Q, of the panels on the row side and on the parameter side.
        compute("orthonormalise panels", 4 * q * (n + p_local) * b**2, hardware.flops),
        compute("TSQR of [J V | -r0], local", 2 * n * (k + 1) ** 2, hardware.host_flops),
        compute("TSQR, tree", levels * 10 / 3 * (k + 1) ** 3, hardware.host_flops),
        Term(
            "TSQR, R factors",
            0,
            reduce_bytes,
            levels,
            reduce_bytes / hardware.bandwidth + levels * hardware.latency,
        ),
        # Column-scaled SVD with both sides, on the first process.
        compute("SVD of the reduced factor", 20 * k**3, hardware.host_flops),
    ]


def memory(size: Size) -> dict[str, float]:
    """Bytes per process by use.

    Args:
        size: The refinement.

    Returns:
        Bytes.
    """
    n, p_local = size.rows / size.gpus, size.parameters / size.gpus
    return {
        "V and its work space": _WORD * p_local * (size.rank + 2 * size.width),
        "J V and sketch": _WORD * n * (2 * size.rank + size.width),
        "theta0, delta": 2 * _WORD * size.parameters,
        "exchange buffers, per column": 4 * _WORD * size.parameters,
        "J itself (never stored)": _WORD * n * size.parameters,
    }


def crossovers(size: Size, hardware: Hardware) -> dict[str, float]:
    """Where another term than the products takes over, everything else held fixed.

    Args:
        size: The refinement.
        hardware: Assumed rates.

    Returns:
        The value at which the named term equals the products, by a description of what is varied.
    """
    # Products: passes * 2 n P flops a column; exchange: 8 P bytes a column. P and b cancel.
    rows_per_gpu = _WORD * hardware.flops / (2 * size.passes * hardware.bandwidth)
    product_rate = (2 * size.iterations + 1) * size.passes * 2 * size.parameters / hardware.flops
    local_rows = size.rows / size.gpus
    return {
        "exchange: rows per GPU below": rows_per_gpu,
        "exchange: GPUs above": size.rows / rows_per_gpu,
        "local TSQR on the host: rank above": product_rate * hardware.host_flops / 2,
        "SVD of the reduced factor: rank above": math.sqrt(
            product_rate * local_rows * hardware.host_flops / 20
        ),
        "latency of the exchange: parameters below": (size.gpus - 1)
        * hardware.latency
        * hardware.flops
        / (2 * size.passes * local_rows * size.columns_per_chunk),
    }


def main() -> None:
    """Print the model for the sizes on the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cost_model", description=__doc__)
    parser.add_argument("--rows", type=float, default=1e9)
    parser.add_argument("--parameters", type=float, default=1e8)
    parser.add_argument("--gpus", type=int, default=1024)
    parser.add_argument("--rank", type=int, default=100)
    parser.add_argument("--iterations", type=int, default=1)
    parser.add_argument("--columns-per-chunk", type=int, default=16)
    parser.add_argument("--passes", type=int, default=2, help="2 matrix-free, 1 factored")
    parser.add_argument("--flops", type=float, default=Hardware.flops)
    parser.add_argument("--bandwidth", type=float, default=Hardware.bandwidth)
    options = vars(parser.parse_args())
    hardware = Hardware(flops=options.pop("flops"), bandwidth=options.pop("bandwidth"))
    size = Size(**options)
    print("| term, per GPU | flops | bytes | messages | seconds |\n| --- | --- | --- | --- | --- |")
    for t in terms(size, hardware):
        print(f"| {t.name} | {t.flops:.2g} | {t.n_bytes:.2g} | {t.messages:.0f} | {t.seconds:.3g} |")
    print("\n| memory per GPU | GB |\n| --- | --- |")
    for name, n_bytes in memory(size).items():
        print(f"| {name} | {n_bytes / 1e9:.3g} |")
    print("\n| equal to the products at | |\n| --- | --- |")
    for name, value in crossovers(size, hardware).items():
        print(f"| {name} | {value:.3g} |")


if __name__ == "__main__":
    main()
