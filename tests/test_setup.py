"""scripts/setup.sh, the Makefile and .ci/run: what they do, do not do twice, and say when it goes wrong.

The script runs for real, on a copy of the project, with stand-ins for apt-get, dpkg-query, id, nvidia-smi and
Python that note how they were called.
"""

import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent

PYTHON = """#!/bin/sh
echo "python $*" >>"$NOTES"
case "$*" in
  "-m venv "*) mkdir -p .venv/bin .venv/site && ln -s "$LSR_SYSTEM_PYTHON" .venv/bin/python
    echo "include-system-site-packages = true" >.venv/pyvenv.cfg ;;
  *sysconfig*) echo .venv/site ;;
  "-m pip uninstall"*) rm -f torch-build ;;
  "-m pip install"*) [ -z "$PIP_HANGS" ] || exec sleep 1000
    case "$*" in
      *"$PIP_FAILS"*) echo "ERROR: No matching distribution found"; exit 1 ;;
      *torch==*+cpu*) echo cpu >torch-build ;;
      *torch==*) echo cuda >torch-build ;;
      *--editable*) ln -sf "$LSR_SYSTEM_PYTHON" .venv/bin/lsr-hpc ;;
    esac ;;
  *"import torch"*) cat torch-build 2>/dev/null ;;
  *"import numpy"*) echo 1.24.2 ;;
  *importlib.metadata*) echo "torch==2.13.0+cpu"; echo "key==9" ;;
  *"sys.exit(sys.version_info"*) exit "${TOO_OLD:-0}" ;;
  *"sys.version_info"*) echo 3.11 ;;
  "doctor --short") echo "exit ${DOCTOR:-0}: said the doctor"; exit "${DOCTOR:-0}" ;;
  *) echo "stand-in: unexpected $*" >&2; exit 99 ;;
esac
"""
DPKG_QUERY = """#!/bin/sh
for package; do :; done
case " $MISSING " in *" $package "*) [ -e apt-installed ] || exit 1 ;; esac
printf installed
"""
APT_GET = """#!/bin/sh
echo "apt-get $*" >>"$NOTES"
cat "$LSR_POLICY_FILE" >>"$NOTES" 2>/dev/null
[ -z "$APT_FAILS" ] || { echo "E: Unable to locate package"; exit 100; }
case "$*" in *" install "*) touch apt-installed ;; esac
"""


@dataclass
class Machine:
    """A copy of the project on a pretended Debian."""

    project: Path
    env: dict[str, str]

    def run(self, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        command = [str(self.project / "scripts" / "setup.sh"), *arguments]
        return subprocess.run(
            command, env=self.env | env, capture_output=True, text=True, timeout=60, check=False
        )

    def calls(self, word: str = "") -> list[str]:
        notes = Path(self.env["NOTES"])
        return [line for line in notes.read_text().splitlines() if word in line] if notes.exists() else []


@pytest.fixture
def machine(tmp_path):
    project, system, programs = tmp_path / "my project", tmp_path / "system", tmp_path / "bin"
    (project / "scripts").mkdir(parents=True)
    shutil.copy(ROOT / "scripts" / "setup.sh", project / "scripts")
    shutil.copy(ROOT / "pyproject.toml", project)
    for name in ("petsc", "slepc"):
        for build in (
            "3.9/x86_64-linux-gnu-real",
            "3.18/x86_64-linux-gnu-real",
            "3.18/x86_64-linux-gnu-complex",
        ):
            (system / f"{name}dir" / f"{name}{build}" / f"lib/python3/dist-packages/{name}4py").mkdir(
                parents=True
            )
        unwanted = f"{name}64-3.18/x86_64-linux-gnu-real/lib/python3/dist-packages/{name}4py"
        (system / f"{name}dir" / unwanted).mkdir(parents=True)
    programs.mkdir()
    scripts = {
        "python3": PYTHON,
        "dpkg-query": DPKG_QUERY,
        "apt-get": APT_GET,
        "nvidia-smi": "#!/bin/sh\nexit 9\n",
    }
    scripts["id"] = "#!/bin/sh\necho ${WHO:-0}\n"
    for name, script in scripts.items():
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    env = {
        "PATH": f"{programs}:/usr/bin:/bin",
        "HOME": str(tmp_path),
        "NOTES": str(tmp_path / "notes"),
        "PIP_FAILS": "nothing",
        "LSR_SYSTEM_PYTHON": str(programs / "python3"),
        "LSR_PETSC_ROOT": str(system / "petscdir"),
        "LSR_SLEPC_ROOT": str(system / "slepcdir"),
        "LSR_POLICY_FILE": str(tmp_path / "policy-rc.d"),
    }
    return Machine(project, env)


def test_the_first_run_sets_up_and_the_second_does_nothing(machine):
    assert machine.run("--check").returncode == 1
    first = machine.run()
    assert first.returncode == 0, first.stdout + first.stderr
    assert [line[:5] for line in first.stdout.splitlines() if line.startswith("[")] == [
        f"[{i}/5]" for i in range(1, 6)
    ]
    assert "said the doctor" in first.stdout
    before = machine.calls()
    started = time.monotonic()
    second = machine.run()
    assert time.monotonic() - started < 1.0
    assert (second.returncode, second.stdout) == (0, "set-up: complete (.venv)\n")
    assert machine.calls() == before
    assert machine.run("--check").returncode == 0


def test_the_stamp_records_what_was_installed(machine):
    machine.run()
    stamp = (machine.project / ".venv" / ".lsr-setup").read_text()
    assert "torch=cpu\n" in stamp
    assert "torch==2.13.0+cpu\n" in stamp
    assert machine.run("--check").returncode == 0  # "key==9" above is a package, not the stamp's own key


def test_bindings_of_the_newest_real_build_are_found(machine):
    machine.run()
    lines = (machine.project / ".venv" / "site" / "petsc-slepc.pth").read_text().splitlines()
    assert [re.sub(r".*/system/", "", line) for line in lines] == [
        "petscdir/petsc3.18/x86_64-linux-gnu-real/lib/python3/dist-packages",
        "slepcdir/slepc3.18/x86_64-linux-gnu-real/lib/python3/dist-packages",
    ]


def test_without_a_real_build_of_petsc_it_says_so(machine):
    root = Path(machine.env["LSR_PETSC_ROOT"])
    for folder in [*root.glob("*/*-real")]:
        shutil.rmtree(folder)
    done = machine.run()
    assert done.returncode == 76
    assert "step [2/5] virtual environment .venv: no real build of petsc4py" in done.stderr
    assert "python3-petsc4py-real" in done.stderr


@pytest.mark.parametrize("file", ["pyproject.toml", "scripts/setup.sh"])
def test_a_changed_project_is_set_up_again_in_the_same_environment(machine, file):
    machine.run()
    with (machine.project / file).open("a") as out:
        out.write("\n# changed\n")
    assert machine.run("--check").returncode == 1
    assert machine.run().returncode == 0
    assert len(machine.calls("-m venv")) == 1
    assert len(machine.calls("--editable")) == 2


def test_a_moved_project_gets_a_new_environment(machine):
    machine.run()
    machine.project = machine.project.rename(machine.project.with_name("elsewhere"))
    assert machine.run().returncode == 0
    assert len(machine.calls("-m venv")) == 2


def test_an_environment_of_somebody_else_is_left_alone(machine):
    (machine.project / ".venv").mkdir()
    (machine.project / ".venv" / "precious").touch()
    done = machine.run()
    assert done.returncode == 76
    assert "mv .venv .venv.old" in done.stderr
    assert (machine.project / ".venv" / "precious").exists()


def test_a_failure_names_the_step_shows_the_log_and_is_repeated_next_time(machine):
    done = machine.run(PIP_FAILS="--editable")
    assert done.returncode == 76
    assert "set-up FAILED in step [4/5] lsr_hpc and its tools" in done.stderr
    assert "    | ERROR: No matching distribution found" in done.stderr
    assert "what to do:" in done.stderr
    assert machine.run("--check").returncode == 1
    assert machine.run().returncode == 0
    assert len(machine.calls("-m venv")) == 1


def test_an_interrupt_ends_what_was_running(machine):
    # A shell starts background jobs with SIGINT ignored, which no trap can undo: give the script the default.
    command = ["env", "--default-signal=INT", str(machine.project / "scripts" / "setup.sh")]
    env = machine.env | {"PIP_HANGS": "1"}
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        limit = time.monotonic() + 20.0
        while not machine.calls("pip install") and time.monotonic() < limit:
            time.sleep(0.02)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(20) == 130
        finally:
            process.kill()
    assert children
    limit = time.monotonic() + 5.0
    while left := [child for child in children if Path("/proc", child).exists()]:
        assert time.monotonic() < limit, left
        time.sleep(0.05)


def test_an_environment_that_does_not_work_is_not_called_complete(machine):
    done = machine.run(DOCTOR="76")
    assert done.returncode == 76
    assert "exit 76: said the doctor" in done.stdout
    assert "FAILED in step [5/5] doctor" in done.stderr
    assert machine.run("--check").returncode == 1


def test_a_python_that_is_too_old_is_refused(machine):
    done = machine.run(TOO_OLD="1")
    assert done.returncode == 76
    assert "3.11 or newer is needed" in done.stderr


# --- packages of the distribution -------------------------------------------------------------------


def test_only_missing_packages_are_installed_and_no_daemon_is_started(machine):
    done = machine.run(MISSING="openmpi-bin munge")
    assert done.returncode == 0, done.stderr
    install = machine.calls("apt-get")[1]
    assert install.endswith("install -y --no-install-recommends openmpi-bin munge")
    assert "exit 101" in machine.calls()
    assert not Path(machine.env["LSR_POLICY_FILE"]).exists()


def test_the_machines_own_policy_on_daemons_is_kept(machine):
    policy = Path(machine.env["LSR_POLICY_FILE"])
    policy.write_text("#!/bin/sh\nexit 0\n")
    machine.run(MISSING="munge")
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


def test_a_failing_apt_is_shown_and_leaves_no_policy_behind(machine):
    done = machine.run(MISSING="munge", APT_FAILS="1")
    assert done.returncode == 76
    assert "step [1/5] packages of the distribution: apt-get update failed" in done.stderr
    assert "| E: Unable to locate package" in done.stderr
    assert not Path(machine.env["LSR_POLICY_FILE"]).exists()


def test_without_root_it_tells_what_to_type(machine):
    done = machine.run(MISSING="openmpi-bin slurmd", WHO="1000")
    assert done.returncode == 76
    assert "sudo apt-get install --no-install-recommends openmpi-bin slurmd" in done.stderr
    assert "environment.yml" in done.stderr
    assert machine.calls("apt-get") == []


def test_without_root_slurm_is_not_insisted_on(machine):
    done = machine.run(MISSING="slurmd", WHO="1000")
    assert done.returncode == 0, done.stderr
    assert "not installed: slurmd (only some tests need them" in done.stdout


def test_extras_are_installed_when_asked_for_and_stay(machine):
    assert machine.run(MISSING="chromium").returncode == 0
    assert not machine.calls("chromium")
    (plain,) = machine.calls("--editable")
    assert ".[dev]" in plain
    done = machine.run(MISSING="chromium", LSR_EXTRAS="1")
    assert done.returncode == 0, done.stderr
    assert machine.calls("apt-get")[-1].endswith("chromium")
    with_extras = machine.calls("--editable")[-1]
    assert ".[dev,docs,onnx,peers]" in with_extras
    # An open range of torch could bring gigabytes.
    assert "torch==" in with_extras
    # Both ways of asking find them there.
    for asked in ({}, {"LSR_EXTRAS": "1"}):
        assert "complete" in machine.run(MISSING="", **asked).stdout
    assert len(machine.calls("--editable")) == 2


def test_other_systems_are_sent_to_conda(machine):
    for name in ("apt-get", "dpkg-query"):
        (Path(machine.env["PATH"].split(":")[0]) / name).unlink()
    tools = Path(machine.env["HOME"]) / "tools"
    tools.mkdir()
    for name in "bash cat cut dirname flock grep head mkdir readlink sed sha256sum tail tr".split():
        (tools / name).symlink_to(shutil.which(name))
    first = machine.env["PATH"].split(":")[0]
    (tools / "env").symlink_to("/usr/bin/env")
    done = machine.run(PATH=f"{first}:{tools}")
    assert done.returncode == 76
    assert "conda env create -f environment.yml" in done.stderr


# --- torch ------------------------------------------------------------------------------------------


def torch_requests(machine: Machine) -> list[str]:
    return [call for call in machine.calls("pip install") if "torch==" in call]


def test_without_a_gpu_only_cpu_builds_are_ever_asked_for(machine):
    done = machine.run(PIP_FAILS="torch==")
    assert done.returncode == 76
    requests = torch_requests(machine)
    assert all(request.endswith("+cpu") for request in requests)
    assert ["--index-url https://download.pytorch.org/whl/cpu" in request for request in requests] == [
        False,
        True,
    ]
    assert "TORCH=cuda make env" in done.stderr


def test_the_cpu_index_is_tried_second(machine):
    wheel = "--progress-bar off --constraint build/setup/constraints.txt torch=="
    assert machine.run(PIP_FAILS=wheel).returncode == 0
    assert len(torch_requests(machine)) == 2


def test_a_gpu_brings_the_cuda_build(machine):
    smi = Path(machine.env["PATH"].split(":")[0]) / "nvidia-smi"
    smi.write_text("#!/bin/sh\necho 'GPU 0: NVIDIA A100 (UUID: GPU-1)'\n")
    assert machine.run().returncode == 0
    assert [request.split()[-1] for request in torch_requests(machine)] == ["torch==2.13.0"]


def test_the_cuda_build_can_be_forced_and_stays(machine):
    machine.run()
    assert machine.run("--check", TORCH="cuda").returncode == 1
    assert machine.run(TORCH="cuda").returncode == 0
    assert len(machine.calls("pip uninstall -y torch")) == 1
    assert torch_requests(machine)[-1].endswith("torch==2.13.0")
    assert machine.run("--check").returncode == 0
    (machine.project / "pyproject.toml").write_text("# changed\n")
    machine.run()
    assert torch_requests(machine)[-1].endswith("torch==2.13.0")


def test_an_unknown_build_of_torch_is_refused(machine):
    done = machine.run(TORCH="rocm")
    assert done.returncode == 76
    assert "Use TORCH=cpu or TORCH=cuda" in done.stderr


def test_numpy_is_held_at_the_distributions_version(machine):
    machine.run()
    constraints = (machine.project / "build" / "setup" / "constraints.txt").read_text().splitlines()
    assert constraints[0] == "numpy==1.24.2"
    assert [line.split("==")[0] for line in constraints[1:]] == ["dask", "distributed"]
    assert all("--constraint build/setup/constraints.txt" in call for call in machine.calls("pip install"))


def test_torch_and_numpy_share_arrays():
    array = np.arange(6.0).reshape(2, 3)
    tensor = torch.from_numpy(array)
    tensor[1, 2] = -1.0
    assert array[1, 2] == -1.0
    np.testing.assert_array_equal(np.asarray(tensor.T), array.T)
    assert tensor.dtype is torch.float64


# --- Makefile, continuous integration, conda --------------------------------------------------------


def test_make_alone_lists_the_targets():
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, timeout=20, check=True)
    targets = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("make ")]
    assert targets == [
        "help",
        "env",
        "demo",
        "docs",
        "lint",
        "test",
        "test-slow",
        "torture",
        "chain",
        "cluster",
        "results",
        "results-full",
        "accuracy",
        "clean",
    ]


def test_make_sets_nothing_up_for_an_environment_of_your_own():
    # Without what a make around this test hands down: its own choice of environment.
    env = {
        k: v for k, v in os.environ.items() if k not in {"MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS", "LSR_BIN"}
    }

    def plan(*words: str) -> str:
        command = ["make", "-n", "lint", *words]
        done = subprocess.run(
            command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=20, check=True
        )
        return done.stdout

    assert "scripts/setup.sh" in plan()
    yours = plan("LSR_BIN=/opt/env/bin")
    assert "setup.sh" not in yours
    assert "/opt/env/bin/python -m mypy" in yours


@pytest.mark.parametrize("status", [0, 2])
def test_ci_ends_with_pytests_closing_lines_and_makes_status(tmp_path, status):
    lines = [
        "lint",
        "== short test summary info ==",
        "FAILED a",
        "== 1 failed, 2 passed in 3.00s ==",
        "make: error",
    ]
    script = "".join(f"echo '{line}'\n" for line in lines)
    (tmp_path / "make").write_text(f'#!/bin/sh\necho "make $*"\n{script}exit {status}\n')
    (tmp_path / "make").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(
        [ROOT / ".ci" / "run"], env=env, capture_output=True, text=True, timeout=20, check=False
    )
    assert done.returncode == status
    assert done.stdout.splitlines() == [
        "make test",
        *lines,
        "",
        f"== make test: exit status {status}",
        *lines[1:],
    ]


def test_conda_pins_the_four_packages_to_one_minor_version():
    text = (ROOT / "environment.yml").read_text()
    pins = dict(re.findall(r"^  - ((?:petsc|slepc)(?:4py)?) (3\.\d+)\.\*", text, flags=re.MULTILINE))
    assert set(pins) == {"petsc", "slepc", "petsc4py", "slepc4py"}
    assert len(set(pins.values())) == 1
