"""Says in words whether this machine can run lsr_hpc, and what to type when it cannot.

Computed: one `Check` per thing that has to hold (MPI, PETSc, torch, threads, GPUs, run folder, ...).
Source: the libraries themselves, asked in short-lived subprocesses with a time limit. A library that
crashes, hangs or prints while it loads therefore costs one line of the report, and the calling process
never initialises MPI, PETSc or CUDA. Cost: a few seconds and one start of `mpiexec -n 2`.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from lsr_hpc.doctor_probes import MARK, shortened

__all__ = ["Check", "main", "run_checks"]

EXIT_OK = 0
EXIT_ENVIRONMENT = 76
OLDEST_PYTHON = (3, 11)
OLDEST_PETSC, NEWEST_PETSC = (3, 18), (3, 26)
FREE_GIB_WANTED = 1.0
SLOW_BLAS_GFLOPS = 3.0

FAST_BLAS = re.compile(r"openblas|mkl|blis|flexiblas|atlas|libsci_|armpl|essl|nvpl|accelerate", re.IGNORECASE)

AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
# Two ranks must fit on one core: Open MPI 4, Open MPI 5.
ON_ONE_CORE = {
    "OMPI_MCA_rmaps_base_oversubscribe": "1",
    "PRTE_MCA_rmaps_default_mapping_policy": ":oversubscribe",
}
REINSTALL = "make env (Debian, Ubuntu), or make the environment again from environment.yml"

Status = Literal["ok", "warn", "fail"]


@dataclass(frozen=True, slots=True)
class Check:
    """One finding.

    Attributes:
        name: What was looked at, one word.
        status: "ok"; "warn" (usable, but something is lost); "fail" (cannot run).
        detail: What was found, one line.
        remedy: What to type or change; empty for "ok".
    """

    name: str
    status: Status
    detail: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a subprocess said: one dictionary per process that answered, or why there is none."""

    replies: list[dict[str, Any]]
    problem: str = ""

    @property
    def data(self) -> dict[str, Any]:
        return self.replies[0] if self.replies else {}

    @property
    def error(self) -> str:
        errors = [str(reply["error"]) for reply in self.replies if "error" in reply]
        return self.problem or (errors[0] if errors else "")


def main(argv: Sequence[str] | None = None) -> int:
    """Run all checks and print them.

    Args:
        argv: Arguments after `lsr-hpc doctor`; those of the process when None.

    Returns:
        0 when the environment is usable (warnings allowed), else 76.
    """
    parser = argparse.ArgumentParser(
        prog="lsr-hpc doctor",
        description="Check MPI, PETSc, SLEPc, torch, BLAS, GPUs, SLURM and the run folder of this machine.",
        epilog="example: lsr-hpc doctor --run-dir /scratch/me/runs",
    )
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="folder for runs (default: runs)")
    parser.add_argument("--json", action="store_true", help='print {"status": ..., "checks": [...]}')
    parser.add_argument("--short", action="store_true", help="print only what is not ok, and the last line")
    parser.add_argument("--timeout", type=float, default=60.0, metavar="S", help="limit per check (60 s)")
    options = parser.parse_args(argv)

    checks = run_checks(options.run_dir, options.timeout)
    found = {check.status for check in checks}
    status: Status = "fail" if "fail" in found else "warn" if "warn" in found else "ok"
    code = EXIT_ENVIRONMENT if status == "fail" else EXIT_OK
    if options.json:
        report = {"status": status, "checks": [asdict(check) for check in checks]}
        print(json.dumps(report, indent=2, allow_nan=False))
    else:
        print("\n".join(_as_text(checks, code, short=options.short)))
    return code


def run_checks(run_dir: Path, timeout_s: float = 60.0) -> list[Check]:
    """Look at everything lsr_hpc needs.

    Args:
        run_dir: Folder in which runs are to be written; need not exist, and is not made.
        timeout_s: Time limit of each subprocess, seconds.

    Returns:
        The findings, in the order in which they should be repaired.
    """
    python = _check_python()
    if python.status == "fail":
        return [python]
    with ThreadPoolExecutor() as pool:  # they mostly wait: for files, for mpiexec, for a GPU driver
        torch = pool.submit(_probe, timeout_s, "torch")
        mpi = pool.submit(_probe, timeout_s, "mpi4py")
        petsc = pool.submit(_probe, timeout_s, "petsc")
        gpu = pool.submit(_probe, timeout_s, "gpu")
        dask = pool.submit(_probe, timeout_s, "dask")
        folder = pool.submit(_probe, timeout_s, "run_dir", str(run_dir.absolute()))
        world = pool.submit(_check_world, timeout_s)
        slurm = pool.submit(_check_slurm, min(timeout_s, 20.0))
    return [
        python,
        _check_numpy(torch.result()),
        _check_torch(torch.result()),
        _check_mpi(mpi.result(), petsc.result()),
        _check_petsc(petsc.result()),
        _check_slepc(petsc.result()),
        _check_blas(petsc.result()),
        world.result(),
        _check_threads(),
        _check_dask(dask.result()),
        _check_launch(min(timeout_s, 20.0)),
        _check_gpus(gpu.result()),
        slurm.result(),
        _check_run_dir(folder.result()),
    ]


# --- the checks: a probe's answer in, a sentence out -----------------------------------------------


def _check_python() -> Check:
    detail = f"{platform.python_version()} at {sys.executable}"
    if sys.version_info[:2] < OLDEST_PYTHON:
        return Check("python", "fail", detail, f"Python {_dotted(OLDEST_PYTHON)} or newer: {REINSTALL}")
    return Check("python", "ok", detail)


def _check_numpy(torch: _Answer) -> Check:
    data = torch.data
    if torch.error:
        return Check("numpy", "fail", torch.error, REINSTALL)
    if "torch_error" in data:
        return Check("numpy", "ok", f"{data['numpy']} (not tried with torch, which does not load)")
    if data["bridge_error"]:
        detail = f"{data['numpy']}, but torch cannot share arrays with it: {data['bridge_error']}"
        return Check("numpy", "fail", detail, f"they were built for different numpy versions: {REINSTALL}")
    return Check("numpy", "ok", f"{data['numpy']}, shares arrays with torch")


def _check_torch(torch: _Answer) -> Check:
    problem = torch.error or torch.data.get("torch_error", "")
    if problem:
        return Check("torch", "fail", problem, REINSTALL)
    return Check("torch", "ok", f"{torch.data['torch']}, threads per process: {torch.data['threads']}")


def _check_mpi(mpi: _Answer, petsc: _Answer) -> Check:
    if mpi.error:
        return Check("mpi", "fail", f"mpi4py does not load: {mpi.error}", REINSTALL)
    detail = f"{mpi.data['library']} (mpi4py {mpi.data['mpi4py']})"
    # Each alone, and both in one process: a second library may show up in any of the three.
    alone = petsc.data.get("libmpi", [])
    mapped = {*mpi.data["libmpi"], *alone, *petsc.data.get("libmpi_of_both", [])}
    if len(mapped) > 1:
        return Check(
            "mpi",
            "fail",
            f"two MPI libraries: mpi4py has {_listed(mpi.data['libmpi'])}, petsc4py {_listed(alone)}",
            "both must be built with one MPI: unset LD_LIBRARY_PATH and PYTHONPATH, leave other conda"
            f" environments and modules, then {REINSTALL}",
        )
    if not mapped:
        remedy = "nothing to do if the world check is ok"
        return Check("mpi", "warn", f"{detail}, library file not visible on this system", remedy)
    return Check("mpi", "ok", f"{detail}, {mapped.pop()}" + (", petsc4py the same" if alone else ""))


def _check_petsc(petsc: _Answer) -> Check:
    if petsc.error:
        return Check("petsc", "fail", f"petsc4py does not load: {petsc.error}", REINSTALL)
    data = petsc.data
    detail = f"{_dotted(data['petsc'])}, {data['scalar']} scalars, {data['index_bits']}-bit indices"
    if data["scalar"] != "float64":
        remedy = "a real double build is needed (Debian: python3-petsc4py-real; conda-forge: build real_*)"
        return Check("petsc", "fail", detail, remedy)
    if data["petsc4py"] != data["petsc"][:2]:
        detail += f", but petsc4py {_dotted(data['petsc4py'])}"
        return Check("petsc", "fail", detail, f"both must have the same minor version: {REINSTALL}")
    if not OLDEST_PETSC <= tuple(data["petsc"][:2]) <= NEWEST_PETSC:
        supported = f"{_dotted(OLDEST_PETSC)} to {_dotted(NEWEST_PETSC)}"
        return Check(
            "petsc", "warn", detail, f"supported are {supported}; run make test before you rely on it"
        )
    return Check("petsc", "ok", detail)


def _check_slepc(petsc: _Answer) -> Check:
    if petsc.error:
        return Check("slepc", "fail", "not tried: petsc4py does not load", "repair petsc first")
    data = petsc.data
    if "slepc_error" in data:
        return Check("slepc", "fail", f"slepc4py does not load: {data['slepc_error']}", REINSTALL)
    if data["slepc"][:2] != data["petsc"][:2]:
        detail = f"{_dotted(data['slepc'])} beside PETSc {_dotted(data['petsc'])}"
        return Check("slepc", "fail", detail, f"both must have the same minor version: {REINSTALL}")
    return Check("slepc", "ok", _dotted(data["slepc"]))


def _check_blas(petsc: _Answer) -> Check:
    if petsc.error:
        return Check("blas", "warn", "not looked at: petsc4py does not load", "repair petsc first")
    mapped: list[str] = petsc.data["blas"]
    remedy = "apt-get install libopenblas0-pthread, or conda install 'libblas=*=*openblas'"
    plain = [path for path in mapped if not FAST_BLAS.search(path)]
    if plain:
        return Check(
            "blas", "warn", f"reference BLAS, many times slower than OpenBLAS: {_listed(plain)}", remedy
        )
    if mapped:
        telling = [path for path in mapped if FAST_BLAS.search(os.path.basename(path))]
        return Check("blas", "ok", _listed(telling or mapped))
    gflops = petsc.data.get("gflops", 0.0)
    detail = f"not visible as a library; {gflops:.1f} Gflop/s in a matrix product"
    if gflops < SLOW_BLAS_GFLOPS:
        return Check("blas", "warn", f"{detail}, which is slow", remedy)
    return Check("blas", "ok", detail)


def _check_world(timeout_s: float) -> Check:
    # The one test that catches every mixture of MPI installations: two ranks must meet.
    mpiexec = shutil.which("mpiexec")
    if mpiexec is None:
        remedy = f"apt-get install openmpi-bin, module load openmpi, or {REINSTALL}"
        return Check("world", "fail", "no mpiexec on PATH", remedy)
    if _ranks_around_us() > 1:
        remedy = "run lsr-hpc doctor by itself, not under mpiexec or srun"
        return Check("world", "warn", "not tried: the doctor runs inside an MPI program", remedy)
    is_root = os.getuid() == 0
    env = ON_ONE_CORE | _environment() | (AS_ROOT if is_root else {})
    answer = _ask([mpiexec, "-n", "2", *_probe_command("world")], timeout_s, env)
    if answer.error:
        remedy = (
            "try by hand: mpiexec -n 2 hostname; from a SLURM step only with srun --overlap --pty bash;"
            " with several MPIs installed put the right one first on PATH"
        )
        return Check("world", "fail", f"{mpiexec} -n 2: {answer.error}", remedy)
    sizes = [int(reply["size"]) for reply in answer.replies]
    if sizes != [2, 2]:
        seen = f"{len(sizes)} program(s) of size {_listed(sorted(set(sizes)))}"
        remedy = (
            "this mpiexec and mpi4py belong to different MPIs: put the right one first on PATH"
            " (conda deactivate, module unload)"
        )
        return Check("world", "fail", f"{mpiexec} -n 2 gave {seen}, not one world of 2", remedy)
    if not all(reply["bytes_arrived"] for reply in answer.replies):
        remedy = "export OMPI_MCA_btl_vader_single_copy_mechanism=none (containers often need it)"
        return Check("world", "fail", "2 ranks meet, but 1 MiB sent between them arrives wrong", remedy)
    detail = f"2 ranks meet in one world, {mpiexec}"
    is_open_mpi = "Open MPI" in str(answer.data["library"])
    if is_root and is_open_mpi and any(name not in os.environ for name in AS_ROOT):
        remedy = "export " + " ".join(f"{name}=1" for name in AS_ROOT)
        return Check("world", "warn", f"{detail}, once root is allowed to start it", remedy)
    return Check("world", "ok", detail)


def _check_threads() -> Check:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    granted = os.environ.get("SLURM_CPUS_PER_TASK", "")
    most = min(cores, int(granted)) if granted.isdigit() else cores
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if not asked:
        detail = f"OMP_NUM_THREADS is not set: lsr-hpc shares {cores} core(s) out among the ranks of a node"
        return Check("threads", "ok", detail)
    if asked and (not asked.isdigit() or int(asked) < 1):
        return Check(
            "threads", "warn", f"OMP_NUM_THREADS={asked!r} is not a count", "export OMP_NUM_THREADS=1"
        )
    threads = int(asked or 1)
    detail = f"OMP_NUM_THREADS={threads} per rank on {cores} core(s)"
    if threads > most:
        return Check("threads", "warn", detail, f"export OMP_NUM_THREADS={most} or less")
    return Check("threads", "ok", f"{detail}: room for {cores // threads} rank(s)")


def _check_dask(dask: _Answer) -> Check:
    if dask.error:
        remedy = "pip install dask distributed cryptography (only lsr-hpc run needs them)"
        return Check("dask", "fail", f"the controller of lsr-hpc run cannot start: {dask.error}", remedy)
    detail = f"{dask.data['distributed']}, TLS certificates by cryptography {dask.data['cryptography']}"
    return Check("dask", "ok", detail)


def _check_launch(timeout_s: float) -> Check:
    # What the launch line of a step is made of, around mpiexec or srun.
    for command, package in (
        (["setpriv", "--pdeathsig", "TERM", "true"], "util-linux 2.33 or newer"),
        (["env", "--block-signal=USR1,TERM", "true"], "coreutils 8.31 or newer"),
    ):
        code, _, err = _run(command, timeout_s, dict(os.environ))
        if code != 0:
            detail = f"lsr-hpc run cannot start steps: {' '.join(command)}: {_last_line(err) or 'no answer'}"
            return Check("launch", "fail", detail, f"install {package}; lsr-hpc refine does not need it")
    return Check("launch", "ok", "setpriv --pdeathsig and env --block-signal work")


def _check_gpus(gpu: _Answer) -> Check:
    has_driver = shutil.which("nvidia-smi") is not None or Path("/dev/nvidiactl").exists()
    if gpu.error:
        advice = "see nvidia-smi, then TORCH=cuda make env" if has_driver else "repair torch first"
        return Check("gpus", "warn", f"cannot be used: {gpu.error}", f"runs on the CPU meanwhile; {advice}")
    devices = gpu.data["devices"]
    if devices:
        listed = _listed(f"{i}: {device['name']} {device['gib']:.0f} GiB" for i, device in enumerate(devices))
        return Check("gpus", "ok", f"{listed}; local rank i uses GPU i mod {len(devices)}")
    if has_driver:
        build = f"built for CUDA {gpu.data['cuda']}" if gpu.data["cuda"] else "a CPU build"
        remedy = "TORCH=cuda make env installs the CUDA build; see nvidia-smi and CUDA_VISIBLE_DEVICES"
        return Check("gpus", "warn", f"NVIDIA driver found, but torch ({build}) sees no GPU", remedy)
    return Check("gpus", "ok", "none, runs on the CPU")


def _check_slurm(timeout_s: float) -> Check:
    paths = {name: shutil.which(name) for name in ("sbatch", "sinfo")}
    missing = [name for name, path in paths.items() if path is None]
    if missing:
        remedy = "not needed on a laptop; on a cluster: module load slurm, or use a login node"
        return Check("slurm", "warn", f"no {_listed(missing)} on PATH", remedy)
    # Without a configuration SLURM's tools do not even tell their version.
    code, version, err = _run(["sinfo", "--version"], timeout_s, dict(os.environ))
    if code == 0:
        code, partitions, err = _run(["sinfo", "-h", "-o", "%P"], timeout_s, dict(os.environ))
        if code == 0:
            return Check("slurm", "ok", f"{version.strip()}, partitions {_listed(partitions.split())}")
    remedy = "needed only to submit jobs, not on a laptop; on a cluster set SLURM_CONF or ask the site"
    detail = f"{paths['sbatch']} {version.strip()}".strip()
    return Check("slurm", "warn", f"{detail} reaches no cluster: {_last_line(err) or 'no answer'}", remedy)


def _check_run_dir(folder: _Answer) -> Check:
    where = folder.data.get("where", "")
    if folder.error:
        remedy = "choose a writable folder on a POSIX file system: --run-dir here, --out for a run"
        return Check("run-dir", "fail", f"{where} {folder.error}".strip(), remedy)
    free_gib = folder.data["free"] / 2**30
    detail = f"{where} is writable, fsync {folder.data['fsync_ms']:.1f} ms, {free_gib:.1f} GiB free"
    if free_gib < FREE_GIB_WANTED:
        return Check("run-dir", "warn", detail, "free some space, or choose another folder with --out")
    return Check("run-dir", "ok", detail)


# --- how a probe is asked ---------------------------------------------------------------------------


def _probe(timeout_s: float, name: str, *arguments: str) -> _Answer:
    return _ask(_probe_command(name, *arguments), timeout_s, _environment())


def _probe_command(name: str, *arguments: str) -> list[str]:
    # By path, and without this folder on sys.path (-P): works wherever the package lies, and if it is broken.
    return [
        sys.executable,
        "-P",
        str(Path(__file__).with_name("doctor_probes.py").resolve()),
        name,
        *arguments,
    ]


def _ask(command: list[str], timeout_s: float, env: dict[str, str]) -> _Answer:
    code, out, err = _run(command, timeout_s, env)
    marked = [line.removeprefix(MARK) for line in out.splitlines() if line.startswith(MARK)]
    if code is None:
        return _Answer(
            [], f"no answer within {timeout_s:g} s (slow file system? --timeout {5 * timeout_s:g})"
        )
    if code < 0:
        return _Answer([], f"ended by signal {signal.Signals(-code).name}")
    if code != 0 or not marked:
        return _Answer([], f"exit status {code}: {_last_line(err) or _last_line(out) or 'no output'}")
    return _Answer([json.loads(text) for text in marked])


def _run(command: list[str], timeout_s: float, env: dict[str, str]) -> tuple[int | None, str, str]:
    """Run a command to its end or to the time limit, and do not wait for what it may leave behind.

    Args:
        command: Program and arguments.
        timeout_s: Time limit, seconds.
        env: Its whole environment.

    Returns:
        Exit status (None: over the limit; 127: could not be started), stdout, stderr.
    """
    # Files, not pipes: a grandchild that outlives the command would keep a pipe open.
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        try:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=env, start_new_session=True
            )
        except OSError as error:
            return 127, "", f"{command[0]}: {error.strerror}"
        code: int | None = None
        try:
            code = process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            for number in (signal.SIGTERM, signal.SIGKILL):  # mpiexec ends its ranks on TERM
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, number)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(3.0)
                    break
        texts = []
        for file in (out, err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
        return code, texts[0], texts[1]


def _ranks_around_us() -> int:
    names = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS")
    counts = [os.environ.get(name, "") for name in names]
    return max((int(count) for count in counts if count.isdigit()), default=1)


def _environment() -> dict[str, str]:
    # Ours, less what would make a probe a rank of an MPI program around us.
    if not any(name in os.environ for name in ("OMPI_COMM_WORLD_SIZE", "PMI_RANK", "PMIX_RANK")):
        return dict(os.environ)
    foreign = ("OMPI_", "PMIX_", "PMI_", "ORTE_", "PRTE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(foreign)}


# --- small helpers ----------------------------------------------------------------------------------


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if re.search(r"\w", line)]
    return shortened(lines[-1]) if lines else ""


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items)) or "none"


def _as_text(checks: Sequence[Check], code: int, *, short: bool) -> list[str]:
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        if short and check.status == "ok":
            continue
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.detail}")
        if check.status != "ok":
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.remedy}")
    failed, warned = (sum(check.status == status for check in checks) for status in ("fail", "warn"))
    if code == EXIT_OK:
        lines.append(f"exit {code}: lsr-hpc can run here ({len(checks)} checks, warnings: {warned})")
    else:
        lines.append(
            f"exit {code}: the environment is broken ({failed} of {len(checks)} checks failed, see ->)"
        )
    return lines


if __name__ == "__main__":
    sys.exit(main())
