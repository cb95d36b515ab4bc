"""A private SLURM of four nodes on this machine: munged, slurmctld and four slurmd, all in one folder.

``python -m tests.slurm.cluster`` opens a shell on it, ``... COMMAND`` runs a command; then it is gone.

Debian's slurmd is built for several on one host (``-N``). Nothing of the system is used or touched: own
ports, own munge socket and key, no cgroups, no systemd, no accounting. The daemons are children of this
process and end with it; each node claims two cores and two GPUs, whatever the machine has.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from tests.mpi.conftest import mpi_environment

__all__ = ["NODES", "Cluster", "private_cluster", "until", "why_not"]

T = TypeVar("T")

NODES = 4
CORES = 2
_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")

# %n, the name of the node, keeps the folders of the four slurmd apart; without it in TmpFS their PMIx folders
# collide. cred_expire: a requeued job waits for the end of its last credential, 120 s by default.
# config_overrides: nodes may claim more cores than there are.
_CONF = """\
ClusterName=lsrtest
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={base}/run/munge.sock,cred_expire=5
SlurmctldPort={controller}
SlurmdPort={first}
StateSaveLocation={base}/state
SlurmdSpoolDir={base}/spool/%n
SlurmctldPidFile={base}/run/slurmctld.pid
SlurmdPidFile={base}/run/slurmd.%n.pid
SlurmctldLogFile={base}/log/slurmctld.log
SlurmdLogFile={base}/log/slurmd.%n.log
TmpFS={base}/tmp/%n
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MpiDefault=pmix
SwitchType=switch/none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,sched_min_interval=0,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=5
MinJobAge=60
InactiveLimit=0
SlurmctldTimeout=30
SlurmdTimeout={silence}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n[1-{nodes}] NodeHostname={host} NodeAddr=127.0.0.1 Port=[{first}-{last}] CPUs={cores} Gres=gpu:2
PartitionName=batch Default=YES Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=1 GraceTime=10
PartitionName=urgent Nodes=ALL MaxTime=60 DefaultTime=5 State=UP PriorityTier=10 PreemptMode=OFF
"""


def why_not() -> str:
    """Why there can be no private cluster here; nothing if there can."""
    if missing := [program for program in _PROGRAMS if shutil.which(program) is None]:
        return f"not on PATH: {', '.join(missing)}"
    return "it needs root" if os.getuid() else ""


def until(condition: Callable[[], T], limit_s: float, what: str) -> T:
    """Wait until a condition holds; returns what made it hold."""
    end = time.monotonic() + limit_s
    while not (found := condition()):
        if time.monotonic() > end:
            raise TimeoutError(f"waited {limit_s:g} s in vain for {what}")
        time.sleep(0.1)
    return found


class Cluster:
    """A SLURM of four nodes, up between ``start`` and ``stop``.

    Args:
        base: A folder of its own; its path must be short (a socket lies in it) and without spaces.
        silence_s: For how long a slurmd may be silent before its node is taken for down.
    """

    def __init__(self, base: Path, silence_s: int = 60) -> None:
        self.base = base
        self.conf = base / "slurm.conf"
        self.environment = os.environ | {"SLURM_CONF": str(self.conf)}
        self._silence_s = silence_s
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        """Bring it up; about a second."""
        for name in (
            "run",
            "log",
            "state",
            *(f"{d}/n{i + 1}" for d in ("spool", "tmp") for i in range(NODES)),
        ):
            (self.base / name).mkdir(parents=True, mode=0o700)
        controller, *ports = _free_ports(1 + NODES)
        self.conf.write_text(
            _CONF.format(
                base=self.base,
                host=socket.gethostname().partition(".")[0],
                controller=controller,
                first=ports[0],
                last=ports[-1],
                nodes=NODES,
                cores=CORES,
                silence=self._silence_s,
            )
        )
        # Any device will do, because nothing asks what it is.
        (self.base / "gres.conf").write_text("Name=gpu File=/dev/null\nName=gpu File=/dev/zero\n")
        key = self.base / "munge.key"
        key.touch(0o600)
        key.write_bytes(os.urandom(1024))
        run, log = self.base / "run", self.base / "log"
        self._begin(
            *("munged", "munged", "--foreground", "--force", f"--key-file={key}"),
            *(f"--socket={run}/munge.sock", f"--pid-file={run}/munged.pid"),
            *(f"--log-file={log}/munged.log", f"--seed-file={run}/munge.seed"),
        )
        until((run / "munge.sock").exists, 10, "munged")
        # -c: there is no earlier state.
        self._begin("slurmctld", "slurmctld", "-D", "-c", "-f", str(self.conf))
        for i in range(NODES):
            self.begin(f"n{i + 1}")
        until(self.is_idle, 30, f"idle nodes; see {log}")

    def stop(self) -> None:
        """Cancel what is there and end every process of the cluster; nothing is left."""
        with suppress(subprocess.SubprocessError, RuntimeError, TimeoutError):
            self.command("scancel", "--user=root")
            until(lambda: not self.command("squeue", "--noheader"), 15, "an empty queue")
        # The controller first, or it would see its nodes fail; munged last.
        for name in sorted(self._daemons, key=lambda name: (name == "munged", name != "slurmctld")):
            daemon = self._daemons[name]
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        # slurmstepd and what it has started outlive their slurmd.
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def command(self, *words: str, limit_s: float = 20) -> str:
        """What a command of SLURM prints; a failure is an error."""
        done = subprocess.run(
            words,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=limit_s,
            stdin=subprocess.DEVNULL,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(words)}: {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout.strip()

    def answers(self) -> bool:
        """Whether slurmctld does."""
        done = subprocess.run(["scontrol", "ping"], env=self.environment, capture_output=True, timeout=60)
        return done.returncode == 0

    def is_idle(self) -> bool:
        """Whether every node is up and without a job."""
        done = subprocess.run(
            ["sinfo", "--noheader", "--Node", "--partition=batch", "--format=%t"],
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout.split() == ["idle"] * NODES

    def processes(self, word: str = "") -> list[int]:
        """Living processes of the cluster and its jobs whose command line has a word."""
        mark, found = f"SLURM_CONF={self.conf}".encode(), []
        for directory in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                environment = (directory / "environ").read_bytes().split(b"\0")
                command = (directory / "cmdline").read_bytes()
                if mark in environment and word.encode() in command:
                    found.append(int(directory.name))
        return found

    def begin(self, name: str) -> None:
        """Start the slurmd of a node, or slurmctld with what it has stored."""
        words = ["slurmctld"] if name == "slurmctld" else ["slurmd", "-N", name]
        self._begin(name, *words, "-D", "-f", str(self.conf))

    def kill(self, name: str) -> None:
        """Kill slurmctld, or the slurmd of a node; what slurmd has started lives on."""
        self._daemons[name].kill()
        self._daemons[name].wait()

    def _begin(self, name: str, *words: str) -> None:
        # Should this process be killed, its daemons end too.
        command = ["setpriv", "--pdeathsig", "TERM", *words]
        with (self.base / "log" / f"{name}.out").open("ab") as output:
            self._daemons[name] = subprocess.Popen(
                command,
                env=self.environment,
                cwd=self.base,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


@contextmanager
def private_cluster(silence_s: int = 60) -> Iterator[Cluster]:
    """A cluster in a temporary folder, of which nothing is left at the end."""
    base = Path(tempfile.mkdtemp(prefix="lsr-slurm-"))
    made = Cluster(base, silence_s)
    try:
        made.start()
        yield made
    finally:
        made.stop()
        shutil.rmtree(base)
    until(lambda: not made.processes(), 10, "the end of all processes of the cluster")


def _free_ports(n: int) -> list[int]:
    """Ports in a row that nobody listens on, below those that the kernel hands out."""
    for first in range(21000 + os.getpid() % 9000, 32000, n):
        with suppress(OSError):
            ports = list(range(first, first + n))
            for port in ports:
                with socket.socket() as probe:
                    probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    probe.bind(("127.0.0.1", port))
            return ports
    raise RuntimeError("no free ports for a private SLURM")


def main(command: Sequence[str]) -> int:
    """Run a command on a cluster of its own, by default a shell."""
    reason = why_not()
    if reason:
        print(f"no private SLURM: {reason}")
        return 76
    with private_cluster() as cluster:
        environment = mpi_environment() | cluster.environment
        environment |= {
            "LSR_BIN": str(Path(sys.executable).parent),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "OMPI_MCA_btl": "self,tcp",
        }
        if not command:
            print(cluster.command("sinfo"))
            print(
                "sbatch, squeue, scancel and lsr-hpc submit go to these nodes; leave the shell to stop them."
            )
        # Ctrl-C is for the shell; a handler, for what is ignored here would be ignored there.
        before = signal.signal(signal.SIGINT, lambda *_: None)
        try:
            shell = [os.environ.get("SHELL", "/bin/bash")]
            return subprocess.run([*(command or shell)], env=environment, check=False).returncode
        finally:
            signal.signal(signal.SIGINT, before)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
