"""Whatever is killed, nothing is left running and at most the step in hand is lost; crashes end all ranks."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import pytest
from distributed.security import Security

from lsr_hpc.pipeline.attempt import EndedOutside, StopRequest, run_attempt
from lsr_hpc.pipeline.launch import MpiexecLauncher
from lsr_hpc.pipeline.lease import Lease, revoke, take
from lsr_hpc.pipeline.spec import StepResult, StepSpec, read_result, write_spec
from tests.mpi.conftest import REPOSITORY, mpi_environment
from tests.pipeline.conftest import events, eventually, result

pytestmark = pytest.mark.mpi
TOTAL = 9


def kill(pids):
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def launchers(runs):
    return [pid for pid in runs.processes("mpiexec") if pid not in runs.ranks()]


@pytest.mark.parametrize("victims", ["one rank", "all ranks", "mpiexec"])
def test_a_killed_step_is_done_again(runs, victims):
    layout = runs.begun("deaf_once")
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    eventually(lambda: len(runs.ranks()) == 2)
    ranks = runs.ranks()
    kill({"one rank": ranks[1:], "all ranks": ranks, "mpiexec": launchers(runs)}[victims])
    printed = runs.ended(controller, limit_s=30)

    assert result(layout)["instances"][0]["total"] == TOTAL
    first = layout.attempt(0, 0, 1)
    assert not first.result.exists()
    assert first.revoked.exists()
    assert "ended from outside" in printed
    assert [e["status"] for e in events(layout, "step")] == ["ended from outside", "done", "done", "done"]


def test_a_killed_controller_leaves_nothing_and_the_next_one_goes_on(runs):
    layout = runs.begun("deaf_once", instances=2, instances_at_once=2)
    controller = runs.start("resume", layout.root)
    for instance in range(2):
        eventually(layout.attempt(instance, 0, 1).heartbeat.exists)
    controller.kill()
    controller.communicate()
    started = time.monotonic()
    eventually(lambda: not runs.processes(), limit_s=10)
    assert time.monotonic() - started < 10
    assert "interrupted" in runs.lsr("status", layout.root)

    runs.lsr("resume", layout.root)
    assert [entry["total"] for entry in result(layout)["instances"]] == [TOTAL] * 2
    assert layout.attempt(0, 0, 1).revoked.exists()


def test_a_killed_light_worker_costs_nothing_but_time(runs):
    layout = runs.begun("summing", after_round=["tests.pipeline.functions:slow_report"])
    controller = runs.start("resume", layout.root)
    mark = layout.root / "light-0"
    kill([int(eventually(lambda: mark.exists() and mark.read_text()))])
    printed = runs.ended(controller)
    assert "a light worker was killed" in printed
    assert sorted(e["returned"]["total"] for e in events(layout, "function")) == [3, 6, 9]
    assert result(layout)["instances"][0]["total"] == TOTAL


def test_ended_from_outside_time_and_again_is_a_failure_with_the_last_words(runs):
    layout = runs.begun("vanishing", max_attempts=2, ranks=1)
    printed = runs.lsr("resume", layout.root, code=70)
    assert "round 0 attempt 2, the last of 2 in a row without a result: ended from outside" in printed
    assert "with exit status 1" in printed
    assert "| last words" in printed
    assert not layout.attempt(0, 0, 3).root.exists()
    # Whoever types it again wants it tried again.
    runs.lsr("resume", layout.root, code=70)
    assert layout.attempt(0, 0, 4).root.exists()


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("raising", "MPI rank 1 failed in phase 'basis': ZeroDivisionError: deliberate"),
        ("not_a_number", "MPI rank 1 failed: the residual of block 'equation' is NaN at point 7"),
        ("exiting", "MPI rank 1 failed: sys.exit(1) was called: raise an exception instead"),
    ],
)
def test_an_error_on_one_rank_ends_all_ranks_with_one_message_and_is_not_tried_again(runs, body, words):
    layout = runs.begun(body, instances=2 if body == "raising" else 1)
    printed = runs.lsr("resume", layout.root, code=70)
    assert printed.count(words) == 1
    failed = [e for e in events(layout, "step") if e["status"] == "failed"]
    assert len(failed) == 1
    assert failed[0]["wall_s"] < 20
    states = [entry["state"] for entry in result(layout)["instances"]]
    assert states == (["finished", "failed"] if body == "raising" else ["failed"])
    assert words in runs.lsr("status", layout.root)


def test_a_broken_environment_stops_everything(runs):
    layout = runs.begun("agreed", instances=2)
    printed = runs.lsr("resume", layout.root, code=76)
    assert "the disk is full" in printed
    assert not layout.attempt(1, 0, 1).root.exists()


# --- one attempt, without a controller ---------------------------------------------------------------


def spec_of(root: Path, body: str, **changes: object) -> StepSpec:
    values = {
        "run_id": "r",
        "instance": 0,
        "round": 0,
        "rounds": 1,
        "attempt": 1,
        "sequence": 1,
        "world_size": 2,
        "job_sha256": "0",
        "run_directory": str(root),
        "checkpoint": None,
        "checkpoint_seconds": 300.0,
        "keep": 2,
        "body": f"tests.pipeline.bodies:{body}",
    }
    return StepSpec(**(values | changes))


@pytest.fixture
def attempt(runs):
    """Does one attempt with mpiexec on two ranks; returns its files and its end."""
    environment = mpi_environment() | {
        "PYTHONPATH": str(REPOSITORY),
        "LSR_TEST_RUN": runs.mark,
        "OMP_NUM_THREADS": "1",
    }

    def run(body: str, launcher=None, **changes):
        spec = spec_of(runs.home, body, **changes)
        files = runs.layout(runs.home).attempt(spec.instance, spec.round, spec.attempt)
        outcome = run_attempt(launcher or MpiexecLauncher(), files, spec, environment, StopRequest(), 60.0)
        return files, outcome

    run.environment = environment
    return run


class TooFew(MpiexecLauncher):
    """Starts one rank fewer than it is asked to, as a launcher of another MPI would."""

    def command(self, world_size, spec, label):
        return super().command(world_size - 1, spec, label)


def test_a_world_of_another_size_is_refused(attempt):
    files, outcome = attempt("summing", TooFew(), world_size=3)
    assert isinstance(outcome, StepResult)
    assert (outcome.status, outcome.exit_code) == ("failed", 76)
    assert "was to run on 3 MPI ranks and finds itself in a world of 2" in outcome.message
    assert not files.lease.exists()


def test_a_second_program_for_the_same_attempt_does_nothing(attempt):
    files, outcome = attempt("summing")
    assert outcome.status == "done"
    before = {path.name: path.read_bytes() for path in files.root.iterdir()}
    again = subprocess.run(
        MpiexecLauncher().command(2, files.spec, ""),
        env=attempt.environment,
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert again.returncode == 0, again.stderr
    assert "in the hands of another program" in again.stdout
    assert {path.name: path.read_bytes() for path in files.root.iterdir()} == before


def test_whoever_lost_the_lease_does_not_publish(attempt, runs):
    files = runs.layout(runs.home).attempt(0, 0, 1)
    files.root.mkdir(parents=True)
    write_spec(files.spec, spec_of(runs.home, "slow"))
    with subprocess.Popen(
        MpiexecLauncher().command(2, files.spec, ""),
        env=attempt.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        eventually(files.heartbeat.exists)
        revoke(files)
        printed, _ = process.communicate(timeout=30)
    assert "its result is not published" in printed
    assert not files.result.exists()


def test_a_result_with_nan_is_a_crash_and_no_damaged_file(attempt):
    files, outcome = attempt("unpublishable")
    assert outcome.status == "failed"
    assert not files.result.exists()


def test_a_damaged_result_counts_as_none(attempt):
    files, _ = attempt("summing")
    content = bytearray(files.result.read_bytes())
    content[len(content) // 2] ^= 1
    files.result.write_bytes(content)
    from lsr_hpc.pipeline.attempt import read_outcome

    assert isinstance(read_outcome(files), EndedOutside)


@pytest.mark.parametrize("delay_s", [0.0, 0.05, 0.1, 0.2, 0.4, 0.6])
def test_a_signal_at_any_moment_of_the_start_is_not_lost_and_kills_nobody(runs, attempt, delay_s):
    """Ranks take signals to themselves from their first moment, long before they look at them."""
    files = runs.layout(runs.home).attempt(0, 0, 1)
    files.root.mkdir(parents=True)
    write_spec(files.spec, spec_of(runs.home, "endless"))
    with subprocess.Popen(
        MpiexecLauncher().command(2, files.spec, ""), env=attempt.environment, stdout=subprocess.PIPE
    ) as process:
        ranks = eventually(lambda: len(found := runs.ranks()) == 2 and found)
        time.sleep(delay_s)
        for pid in ranks:
            # The first to hear of it may have taken the other along.
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        process.communicate(timeout=30)
    assert process.returncode == 0
    assert read_result(files.result).status == "yielded"


def test_a_lease_is_taken_once_and_can_be_revoked(runs):
    files = runs.layout(runs.home).attempt(0, 0, 1)
    files.root.mkdir(parents=True)
    lease = take(files)
    assert isinstance(lease, Lease)
    assert lease.is_valid()
    assert take(files) is None
    revoke(files)
    revoke(files)
    assert not lease.is_valid()


# --- who listens where --------------------------------------------------------------------------------


def listeners(pids) -> set[tuple[str, int]]:
    """Local addresses and ports at which processes listen, from /proc."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                inodes.add(str(link.readlink()).removeprefix("socket:[").removesuffix("]"))
    found = set()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                host, _, port = fields[1].partition(":")
                words = bytes.fromhex(host)
                # Words of four bytes in the order of the machine, which is little-endian here.
                address = b"".join(words[i : i + 4][::-1] for i in range(0, len(words), 4))
                found.add((socket.inet_ntop(family, address), int(port, 16)))
    return found


def test_dask_listens_at_loopback_alone_and_the_controller_holds_no_mpi(runs):
    layout = runs.begun("held_up", light_workers=2)
    controller = runs.start("resume", layout.root)
    eventually(layout.attempt(0, 0, 1).heartbeat.exists)
    light = eventually(lambda: len(pids := runs.processes("spawn_main")) >= 2 and pids)
    eventually(lambda: all(listeners([pid]) for pid in light))

    assert {address for address, _ in listeners([controller.pid, *light])} == {"127.0.0.1"}
    mapped = Path(f"/proc/{controller.pid}/maps").read_text()
    assert not [name for name in ("libmpi", "libpetsc", "libslepc", "libtorch") if name in mapped]
    runs.lsr("stop", layout.root)
    runs.ended(controller, 75)


STRANGER = """
import sys
from distributed import Client
from distributed.security import Security
security = {"tls": Security.temporary, "tcp": lambda: None}[sys.argv[1].partition(":")[0]]()
try:
    Client(sys.argv[1], security=security, timeout=3)
except (OSError, TypeError) as error:
    sys.exit(f"refused: {error}")
"""


def answer(port: int, context: ssl.SSLContext | None) -> bytes:
    """What a port answers to a stranger who asks for a page; nothing if it refuses."""
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=5) as plain:
        with nullcontext(plain) if context is None else context.wrap_socket(plain) as talk:
            talk.sendall(b"GET /health HTTP/1.0\r\n\r\n")
            return talk.recv(1000)
    return b""


def test_strangers_do_not_get_in(runs):
    layout = runs.begun("held_up")
    controller = runs.start("resume", layout.root)
    eventually(lambda: layout.log.exists() and "Dask at tls://" in layout.log.read_text())
    line = next(line for line in layout.log.read_text().splitlines() if "Dask at tls://" in line)
    address = line.split("tls://")[1].split(",")[0]
    strangers = [
        subprocess.Popen([sys.executable, "-c", STRANGER, f"{scheme}://{address}"], stderr=subprocess.PIPE)
        for scheme in ("tls", "tcp")
    ]
    for stranger in strangers:
        _, complaint = stranger.communicate(timeout=60)
        assert b"refused: " in complaint
    # All ports, of controller and light worker: in the clear, with no certificate, and with another one.
    light = eventually(lambda: (pids := runs.processes("spawn_main")) and listeners(pids) and pids)
    no_certificate = ssl.create_default_context()
    other = Security.temporary().get_connection_args("client")["ssl_context"]
    for context in (no_certificate, other):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    ports = {port for _, port in listeners([controller.pid, *light])}
    assert int(address.rpartition(":")[2]) in ports
    assert len(ports) >= 5
    # HTTP of Dask, which asks for no certificate, has nothing to tell.
    contexts = (None, no_certificate, other)
    answers = {(port, context): answer(port, context) for port in ports for context in contexts}
    assert {text[:12] for text in answers.values()} <= {b"", b"HTTP/1.1 404"}, answers
    runs.lsr("stop", layout.root)
    runs.ended(controller, 75)
