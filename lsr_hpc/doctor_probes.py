"""The doctor's probes: each loads one part of the installation in a process of its own and tells what it saw.

Run by path (``python -P doctor_probes.py NAME [ARGUMENT]``), so this file imports nothing of the package and
works where the package is broken. The answer is one line of JSON behind a mark; whatever a library prints
around it is ignored.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["MARK", "shortened"]

MARK = "lsr-doctor:"
# Libraries that a process has mapped, by file name: the MPI library itself (not its Fortran or C++ halves),
# and anything that offers BLAS. For the second the folder counts too: Debian calls each of them libblas.so.3.
_LIBMPI = re.compile(r"^(libmpi(ch)?|libmpi_(abi|cray|gnu_\d+|gnu|intel|nvidia|amd))\.(so|\d*\.?dylib)")
_ANY_BLAS = re.compile(r"^lib(f?blas|openblas|mkl_rt|mkl_core|blis|flexiblas|[st]atlas|sci_|armpl|essl|nvpl)")


def shortened(text: str, limit: int = 200) -> str:
    """Cut a text that is too long for a line of the report.

    Args:
        text: Any text.
        limit: Largest number of characters.

    Returns:
        The text, or its beginning and dots.
    """
    return text if len(text) <= limit else text[: limit - 3] + "..."


def _probe_torch() -> dict[str, Any]:
    import numpy as np

    answer: dict[str, Any] = {"numpy": np.__version__, "bridge_error": ""}
    try:
        import torch
    except Exception as error:
        return answer | {"torch_error": _described(error)}
    try:
        array = np.arange(3.0)
        tensor = torch.from_numpy(array)
        tensor += 1.0
        if array.tolist() != [1.0, 2.0, 3.0] or tensor.numpy().tolist() != array.tolist():
            answer["bridge_error"] = "values differ"
    except Exception as error:
        answer["bridge_error"] = _described(error)
    return answer | {"torch": torch.__version__, "threads": torch.get_num_threads()}


def _probe_gpu() -> dict[str, Any]:
    import torch

    devices = []
    for index in range(torch.cuda.device_count()):
        torch.ones(1, device=f"cuda:{index}").sum().item()  # a GPU that is listed may still refuse work
        properties = torch.cuda.get_device_properties(index)
        devices.append({"name": properties.name, "gib": properties.total_memory / 2**30})
    return {"cuda": torch.version.cuda, "devices": devices}


def _probe_mpi4py() -> dict[str, Any]:
    import mpi4py

    mpi4py.rc.initialize = False
    from mpi4py import MPI

    return {"mpi4py": mpi4py.__version__, "library": _mpi_name(MPI), "libmpi": _mapped(_LIBMPI)}


def _probe_petsc() -> dict[str, Any]:
    import numpy
    import petsc4py
    from petsc4py import PETSc

    answer: dict[str, Any] = {
        "petsc4py": [int(part) for part in petsc4py.__version__.split(".")[:2]],
        "petsc": list(PETSc.Sys.getVersion()),
        "scalar": numpy.dtype(PETSc.ScalarType).name,
        "index_bits": 8 * numpy.dtype(PETSc.IntType).itemsize,
        "libmpi": _mapped(_LIBMPI),
        # numpy from pip brings a BLAS of its own, which PETSc does not use
        "blas": [path for path in _mapped(_ANY_BLAS) if "/numpy.libs/" not in path],
    }
    if not answer["blas"]:
        answer["gflops"] = _matrix_product_gflops(PETSc)
    try:
        from slepc4py import SLEPc

        answer["slepc"] = list(SLEPc.Sys.getVersion())
    except Exception as error:
        answer["slepc_error"] = _described(error)
    with suppress(Exception):  # reported by the mpi4py probe
        from mpi4py import MPI  # noqa: F401
    answer["libmpi_of_both"] = _mapped(_LIBMPI)
    return answer


def _probe_dask() -> dict[str, Any]:
    from importlib.metadata import version

    from distributed.security import Security

    Security.temporary()
    return {name: version(name) for name in ("distributed", "cryptography")}


def _probe_world() -> dict[str, Any]:
    from mpi4py import MPI

    comm = MPI.COMM_WORLD
    answer = {"rank": comm.rank, "size": comm.size, "library": _mpi_name(MPI), "bytes_arrived": True}
    if comm.size == 2:
        # Large enough to take the single-copy path, which containers may forbid.
        sent, received = bytes([comm.rank + 1]) * (1 << 20), bytearray(1 << 20)
        comm.Sendrecv(sent, dest=1 - comm.rank, recvbuf=received, source=1 - comm.rank)
        answer["bytes_arrived"] = received == bytes([2 - comm.rank]) * (1 << 20)
    return answer


def _probe_run_dir(asked: str) -> dict[str, Any]:
    wanted = Path(asked)
    home = next(folder for folder in (wanted, *wanted.parents) if folder.exists())
    answer: dict[str, Any] = {"where": asked if home == wanted else f"{asked} (to be made in {home})"}
    try:
        with tempfile.TemporaryDirectory(prefix=".lsr-doctor-", dir=home) as made:
            answer["fsync_ms"] = _try_file_rules(Path(made))
    except OSError as error:
        return answer | {"error": f"cannot be used: {error.strerror or error}"}
    return answer | {"free": shutil.disk_usage(home).free}


def _try_file_rules(folder: Path) -> float:
    """Do what checkpoints rely on: exclusive creation, fsync, rename of a folder over an empty one.

    Args:
        folder: An empty folder to work in.

    Returns:
        Milliseconds for the fsync of one small file and of its folder.

    Raises:
        OSError: If the file system does not keep to one of the rules.
    """
    exclusive = os.O_CREAT | os.O_EXCL | os.O_WRONLY
    new, final = folder / "new", folder / "final"
    new.mkdir()
    final.mkdir()
    handles = [os.open(new / "lease", exclusive), os.open(new, os.O_RDONLY)]
    try:
        started = time.perf_counter()
        os.write(handles[0], b"x")
        for handle in handles:
            os.fsync(handle)
        spent_ms = (time.perf_counter() - started) * 1e3
    finally:
        for handle in handles:
            os.close(handle)
    with suppress(FileExistsError):
        os.close(os.open(new / "lease", exclusive))
        raise OSError("a file that exists was created again (O_EXCL does not hold)")
    os.rename(new, final)
    if (final / "lease").read_bytes() != b"x":
        raise OSError("a renamed folder lost its content")
    return spent_ms


_PROBES: dict[str, Callable[..., dict[str, Any]]] = {
    "torch": _probe_torch,
    "gpu": _probe_gpu,
    "mpi4py": _probe_mpi4py,
    "petsc": _probe_petsc,
    "dask": _probe_dask,
    "world": _probe_world,
    "run_dir": _probe_run_dir,
}


def _answer(name: str, *arguments: str) -> None:
    warnings.simplefilter("ignore")
    try:
        answer = _PROBES[name](*arguments)
    except Exception as error:
        answer = {"error": _described(error)}
    print(f"\n{MARK}{json.dumps(answer)}", flush=True)


def _mapped(pattern: re.Pattern[str]) -> list[str]:
    # Real paths of the matching files this process has mapped; none where the system does not tell (macOS).
    try:
        fields = [line.split(maxsplit=5) for line in Path("/proc/self/maps").read_text().splitlines()]
    except OSError:
        return []
    paths = {field[5] for field in fields if len(field) == 6}
    return sorted({os.path.realpath(path) for path in paths if pattern.match(os.path.basename(path))})


def _matrix_product_gflops(petsc: Any) -> float:
    size, best_s = 400, float("inf")
    matrix = petsc.Mat().createDense((size, size), comm=petsc.COMM_SELF)
    matrix.setUp()
    matrix.getDenseArray()[:] = 1.0
    matrix.assemble()
    for _ in range(5):
        started = time.perf_counter()
        product = matrix.matMult(matrix)
        best_s = min(best_s, time.perf_counter() - started)
        product.destroy()
    return 2e-9 * size**3 / best_s


def _mpi_name(mpi: Any) -> str:
    return str(mpi.Get_library_version()).splitlines()[0].split(",")[0].strip("\0 ")


def _described(error: Exception) -> str:
    return shortened(f"{type(error).__name__}: {error}".splitlines()[0])


if __name__ == "__main__":
    _answer(*sys.argv[1:])
