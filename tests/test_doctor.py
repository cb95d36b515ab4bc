"""The doctor finds a good environment good, and names what is wrong with a broken one."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lsr_hpc import doctor, doctor_probes
from lsr_hpc.doctor import Check

NAMES = "python numpy torch mpi petsc slepc blas world threads dask launch gpus slurm run-dir".split()


@pytest.fixture(autouse=True)
def _as_make_sets_it(monkeypatch):
    for name, value in (doctor.AS_ROOT | {"OMP_NUM_THREADS": "1"}).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Puts a program with the given shell script first on PATH."""

    def put(name: str, script: str) -> Path:
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        file = folder / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return file

    return put


@pytest.fixture
def stub(tmp_path, monkeypatch):
    """Puts a Python package with the given source before the real one."""

    def put(name: str, source: str) -> None:
        package = tmp_path / "stubs" / name
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(source)
        monkeypatch.setenv("PYTHONPATH", str(package.parent))

    return put


def diagnosis(capsys, *arguments: str) -> tuple[int, dict[str, dict[str, str]]]:
    code = doctor.main(["--json", *arguments])
    report = json.loads(capsys.readouterr().out)
    assert set(report) == {"status", "checks"}
    assert (report["status"] == "fail") == (code == 76)
    return code, {check["name"]: check for check in report["checks"]}


@pytest.mark.mpi
def test_this_environment_is_good(tmp_path, capsys):
    code, checks = diagnosis(capsys, "--run-dir", str(tmp_path))
    assert [check for check in checks.values() if check["status"] == "fail"] == []
    assert code == 0
    assert list(checks) == NAMES
    assert "one world" in checks["world"]["detail"]
    assert checks["mpi"]["detail"].endswith("petsc4py the same")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.mpi
def test_no_library_is_loaded_into_the_calling_process():
    heavy = ["mpi4py", "petsc4py", "slepc4py", "torch", "numpy"]
    source = (
        "import sys; from lsr_hpc.doctor import main; main(['--short']);"
        f"print('loaded', [name for name in {heavy} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, timeout=100, check=True
    )
    assert done.stdout.splitlines()[-1] == "loaded []"


# --- broken environments, made broken for real ------------------------------------------------------


@pytest.mark.mpi
def test_petsc4py_that_does_not_load_fails_with_a_remedy(stub, tmp_path, capsys):
    stub("petsc4py", "raise ImportError('libpetsc_real.so.3.18: cannot open shared object file')")
    code, checks = diagnosis(capsys, "--run-dir", str(tmp_path))
    assert code == 76
    assert checks["petsc"]["status"] == checks["slepc"]["status"] == "fail"
    assert "libpetsc_real.so.3.18: cannot open" in checks["petsc"]["detail"]
    assert "make env" in checks["petsc"]["remedy"]
    assert checks["mpi"]["status"] == checks["torch"]["status"] == "ok"


def test_two_programs_of_size_one_are_not_a_world(program):
    program("mpiexec", 'shift 2; "$@"; "$@"')
    check = doctor._check_world(60.0)
    assert check.status == "fail"
    assert "2 program(s) of size 1, not one world of 2" in check.detail
    assert "PATH" in check.remedy


def test_missing_mpiexec_fails(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor._check_world(60.0)
    assert (check.status, check.detail) == ("fail", "no mpiexec on PATH")
    assert "openmpi-bin" in check.remedy


def test_mpiexec_that_refuses_is_quoted(program):
    program("mpiexec", "echo 'not enough slots' >&2; echo ------ >&2; exit 3")
    check = doctor._check_world(60.0)
    assert check.status == "fail"
    assert check.detail.endswith("exit status 3: not enough slots")


def test_mpiexec_that_hangs_is_ended_at_the_time_limit(program, tmp_path):
    program("mpiexec", f"echo $$ > {tmp_path}/pid; trap '' TERM; sleep 1000 & wait; wait")
    started = time.monotonic()
    check = doctor._check_world(1.0)
    assert time.monotonic() - started < 20
    assert check.status == "fail"
    assert "no answer within 1 s" in check.detail
    assert not Path("/proc", (tmp_path / "pid").read_text().strip()).exists()


def test_ranks_that_cannot_load_mpi4py_are_told_apart_from_a_bad_launcher(stub):
    stub("mpi4py", "raise ImportError('no libmpi.so.40')")
    check = doctor._check_world(60.0)
    assert check.status == "fail"
    assert "no libmpi.so.40" in check.detail


def test_a_library_that_crashes_costs_one_line(stub):
    stub("torch", "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    check = doctor._check_torch(doctor._probe(60.0, "torch"))
    assert (check.status, check.detail) == ("fail", "ended by signal SIGSEGV")


def test_torch_that_does_not_load_leaves_numpy_readable(stub):
    stub("torch", "raise OSError('libtorch_cpu.so: cannot open')")
    answer = doctor._probe(60.0, "torch")
    assert doctor._check_torch(answer).detail == "OSError: libtorch_cpu.so: cannot open"
    assert doctor._check_numpy(answer).status == "ok"


def test_chatty_libraries_do_not_disturb_the_answer(stub):
    stub("mpi4py", "print('hello'); print('lsr', end='')\nclass rc: pass\n__version__ = '9'\nMPI = None")
    assert "Get_library_version" in doctor._probe(60.0, "mpi4py").error


# --- broken environments that cannot be made here: what probes would answer --------------------------


def petsc_answer(**changes) -> doctor._Answer:
    data = {
        "petsc4py": [3, 20],
        "petsc": [3, 20, 1],
        "slepc": [3, 20, 0],
        "scalar": "float64",
        "index_bits": 32,
        "libmpi": ["/usr/lib/libmpi.so.40.30.4"],
        "libmpi_of_both": ["/usr/lib/libmpi.so.40.30.4"],
        "blas": ["/usr/lib/openblas-pthread/libblas.so.3", "/usr/lib/libopenblasp-r0.3.21.so"],
    }
    return doctor._Answer([data | changes])


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", "3.20.1, float64 scalars, 32-bit indices"),
        ({"scalar": "complex128"}, "fail", "real double build"),
        ({"scalar": "float32"}, "fail", "real double build"),
        ({"petsc4py": [3, 21]}, "fail", "same minor version"),
        ({"petsc": [3, 17, 4], "petsc4py": [3, 17]}, "warn", "3.18 to 3.26"),
        ({"petsc": [3, 18, 5], "petsc4py": [3, 18]}, "ok", "3.18.5"),
        ({"petsc": [3, 26, 0], "petsc4py": [3, 26]}, "ok", "3.26.0"),
        ({"petsc": [3, 27, 0], "petsc4py": [3, 27]}, "warn", "3.18 to 3.26"),
    ],
)
def test_petsc_must_be_real_double_and_in_range(changes, status, words):
    check = doctor._check_petsc(petsc_answer(**changes))
    assert check.status == status
    assert words in check.detail + check.remedy


@pytest.mark.parametrize(
    ("changes", "status"),
    [({}, "ok"), ({"slepc": [3, 19, 2]}, "fail"), ({"slepc_error": "ImportError: no slepc4py"}, "fail")],
)
def test_slepc_must_fit_petsc(changes, status):
    assert doctor._check_slepc(petsc_answer(**changes)).status == status


@pytest.mark.parametrize(
    ("changes", "status", "words"),
    [
        ({}, "ok", "/usr/lib/libopenblasp-r0.3.21.so"),
        ({"blas": ["/usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0"]}, "warn", "reference BLAS"),
        ({"blas": ["/usr/lib/x86_64-linux-gnu/blis-openmp/libblas.so.3"]}, "ok", "blis-openmp"),
        ({"blas": ["/env/lib/libmkl_rt.so.2"]}, "ok", "mkl"),
        ({"blas": [], "gflops": 1.2}, "warn", "1.2 Gflop/s"),
        ({"blas": [], "gflops": 40.0}, "ok", "40.0 Gflop/s"),
    ],
)
def test_reference_blas_is_noticed(changes, status, words):
    check = doctor._check_blas(petsc_answer(**changes))
    assert check.status == status
    assert words in check.detail


@pytest.mark.parametrize("field", ["libmpi", "libmpi_of_both"])
def test_mpi4py_and_petsc4py_must_share_one_mpi_library(field):
    mpi = doctor._Answer([
        {"mpi4py": "3.1.4", "library": "Open MPI v4", "libmpi": ["/usr/lib/libmpi.so.40.30.4"]}
    ])
    assert doctor._check_mpi(mpi, petsc_answer()).status == "ok"
    check = doctor._check_mpi(mpi, petsc_answer(**{field: ["/opt/mpich/lib/libmpi.so.12.1"]}))
    assert check.status == "fail"
    assert check.remedy


@pytest.mark.parametrize(
    ("name", "is_mpi"),
    [
        ("libmpi.so.40.30.4", True),
        ("libmpich.so.12.1.8", True),
        ("libmpi_gnu_91.so.12", True),
        ("libmpi_abi.so.0", True),
        ("libmpi_cxx.so.40", False),
        ("libmpi_mpifh.so.40", False),
        ("libmpifort.so.12", False),
    ],
)
def test_only_the_mpi_library_itself_is_compared(name, is_mpi):
    assert bool(doctor_probes._LIBMPI.match(name)) == is_mpi


def test_numpy_that_torch_cannot_use_fails():
    answer = doctor._Answer([
        {"numpy": "1.24.2", "torch": "2.1", "threads": 1, "bridge_error": "RuntimeError: x"}
    ])
    assert doctor._check_numpy(answer).status == "fail"
    assert doctor._check_torch(answer).status == "ok"


def test_gpus_are_listed_with_the_ranks_that_use_them():
    devices = [{"name": "NVIDIA A100", "gib": 39.6}, {"name": "NVIDIA A100", "gib": 39.6}]
    check = doctor._check_gpus(doctor._Answer([{"cuda": "12.6", "devices": devices}]))
    assert check.status == "ok"
    assert check.detail == "0: NVIDIA A100 40 GiB, 1: NVIDIA A100 40 GiB; local rank i uses GPU i mod 2"


def test_a_gpu_without_a_cuda_build_of_torch_is_a_warning(program):
    program("nvidia-smi", "exit 0")
    check = doctor._check_gpus(doctor._Answer([{"cuda": None, "devices": []}]))
    assert check.status == "warn"
    assert "TORCH=cuda make env" in check.remedy


@pytest.mark.parametrize("name", ["distributed", "cryptography"])
def test_without_what_the_controller_needs_it_says_who_needs_it(stub, name):
    stub(name, f"raise ImportError('no {name}')")
    check = doctor._check_dask(doctor._probe(60.0, "dask"))
    assert check.status == "fail"
    assert name in check.detail
    assert "only lsr-hpc run" in check.remedy


@pytest.mark.parametrize(("name", "package"), [("setpriv", "util-linux"), ("env", "coreutils")])
def test_tools_of_the_launch_line_that_are_too_old_are_named(program, name, package):
    assert doctor._check_launch(5.0).status == "ok"
    program(name, "echo 'unrecognized option' >&2; exit 1")
    check = doctor._check_launch(5.0)
    assert check.status == "fail"
    assert "unrecognized option" in check.detail
    assert package in check.remedy


# --- threads, SLURM, run folder, report -------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "granted", "status"),
    [("1", None, "ok"), ("4", None, "ok"), ("5", None, "warn"), ("4", "2", "warn"), ("4", "8", "ok"),
     ("", None, "ok"), ("many", None, "warn"), ("0", None, "warn"), ("2,1", None, "ok")],
)  # fmt: skip
def test_threads_per_rank_must_fit_the_cores(monkeypatch, asked, granted, status):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", asked)
    monkeypatch.delenv("SLURM_CPUS_PER_TASK", raising=False)
    if granted:
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", granted)
    assert doctor._check_threads().status == status


def test_no_slurm_is_only_a_warning(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    check = doctor._check_slurm(5.0)
    assert check.status == "warn"
    assert "not needed on a laptop" in check.remedy


def test_slurm_tells_version_and_partitions(program):
    program("sbatch", "exit 1")
    program("sinfo", 'if [ "$1" = --version ]; then echo slurm 23.11.4; else echo "batch*"; echo gpu; fi')
    check = doctor._check_slurm(5.0)
    assert (check.status, check.detail) == ("ok", "slurm 23.11.4, partitions batch*, gpu")


def test_slurm_without_a_cluster_says_why(program):
    program("sbatch", "exit 1")
    program("sinfo", "echo 'fatal: Could not establish a configuration source' >&2; exit 1")
    check = doctor._check_slurm(5.0)
    assert check.status == "warn"
    assert "Could not establish a configuration source" in check.detail


def test_a_run_folder_is_tried_where_it_would_be_made(tmp_path):
    check = doctor._check_run_dir(doctor._probe(60.0, "run_dir", str(tmp_path / "a" / "b")))
    assert check.status in {"ok", "warn"}  # a warning when the disk is nearly full
    assert "is writable" in check.detail
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("place", ["file/below", "/proc/self/runs"])
def test_a_run_folder_that_cannot_be_written_fails(tmp_path, place):
    (tmp_path / "file").touch()
    check = doctor._check_run_dir(doctor._probe(60.0, "run_dir", str(tmp_path / place)))
    assert check.status == "fail"
    assert "--out" in check.remedy


def test_every_complaint_comes_with_a_remedy_and_the_code_comes_last(monkeypatch, capsys):
    found = [
        Check("mpi", "ok", "fine"),
        Check("blas", "warn", "slow", "do a"),
        Check("petsc", "fail", "no", "do b"),
    ]
    monkeypatch.setattr(doctor, "run_checks", lambda *_: found)
    assert doctor.main([]) == 76
    lines = capsys.readouterr().out.splitlines()
    assert lines[:-1] == [
        "ok    mpi    fine",
        "warn  blas   slow",
        "             -> do a",
        "fail  petsc  no",
        "             -> do b",
    ]
    assert lines[-1].startswith("exit 76: the environment is broken")
    monkeypatch.setattr(doctor, "run_checks", lambda *_: found[:2])
    assert doctor.main(["--short"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warn  blas  slow"
    assert lines[-1].startswith("exit 0")
