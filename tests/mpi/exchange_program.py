"""MPI program behind the tests: blocks travel by every kind of exchange, and arrive as they would by hand."""

from __future__ import annotations

import torch
from mpi4py import MPI

from lsr_hpc.comm import even_ranges
from lsr_hpc.exchange import HostExchange, MpiDeviceExchange, TorchExchange, open_exchange

comm = MPI.COMM_WORLD
torch.set_num_threads(1)
# CPU tensors stand for those of a GPU: MPI takes both by the same protocol, Gloo has NCCL's interface.
exchanges = [HostExchange(comm), MpiDeviceExchange(comm), TorchExchange(comm, "gloo")]
for n in (1, 2, 7, 1000):
    ranges = even_ranges(n, comm.size)
    lo, hi = ranges[comm.rank]
    for b in (1, 5):
        generator = torch.Generator().manual_seed(n)
        # Small integers, whose sums are exact in any order.
        parts = torch.randint(-99, 99, (comm.size, b, n), generator=generator, dtype=torch.float64)
        whole = parts[0]
        for exchange in exchanges:
            gathered = exchange.gather(whole[:, lo:hi], ranges)
            reduced = exchange.reduce(parts[comm.rank], ranges)
            assert torch.equal(gathered, whole), (exchange.name, n, b)
            assert torch.equal(reduced, parts.sum(dim=0)[:, lo:hi]), (exchange.name, n, b)
assert open_exchange(comm, torch.device("cpu"), "auto").name == "host"
comm.Barrier()
if comm.rank == 0:
    print("all blocks arrived")
