"""Light workers on other nodes: which nodes, at which address, and those that do not start."""

from __future__ import annotations

import os
import socket
from functools import partial
from pathlib import Path

import pytest

from lsr_hpc.errors import EnvironmentProblem
from lsr_hpc.pipeline.cluster import replace_lost_workers, start_cluster
from lsr_hpc.settings import RunSettings
from lsr_hpc.slurm import Node, address_towards, other_nodes
from tests.slurm.cluster import until

SCONTROL = """#!/bin/sh
[ "$*" = "--oneliner show node c[1-3]" ] || exit 1
echo "NodeName=c1 Arch=x86_64 NodeAddr=10.0.0.1 NodeHostName=c1 OS=Linux 6.1 #1 SMP State=IDLE"
echo "NodeName=c2 Arch=x86_64 NodeAddr=c2.ib NodeHostName=c2 State=IDLE"
echo "NodeName=c3 Arch=x86_64 NodeAddr=10.0.0.3 NodeHostName=c3 State=ALLOCATED Reason=a=b"
"""


def program(home: Path, name: str, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = home / name
    path.write_text(text)
    path.chmod(0o755)
    monkeypatch.setenv("PATH", f"{home}:{os.environ['PATH']}")


def test_other_nodes_are_those_of_the_allocation_but_this_one(tmp_path, monkeypatch):
    program(tmp_path, "scontrol", SCONTROL, monkeypatch)
    inside = {"SLURMD_NODENAME": "c2", "SLURM_JOB_NODELIST": "c[1-3]"}
    assert other_nodes(inside) == [Node("c1", "10.0.0.1"), Node("c3", "10.0.0.3")]
    assert other_nodes({}) == []
    with pytest.raises(EnvironmentProblem, match="scontrol refused"):
        other_nodes(inside | {"SLURM_JOB_NODELIST": "x"})


def test_the_address_is_that_of_the_interface_in_between():
    assert address_towards("127.0.0.1", 9) == "127.0.0.1"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("198.51.100.1", 9))
        except OSError:
            pytest.skip("this machine has no way out of itself")
        assert address_towards("198.51.100.1", 9) == probe.getsockname()[0]


def test_a_worker_that_does_not_start_is_given_up_and_the_others_work(tmp_path, monkeypatch, caplog):
    program(
        tmp_path, "srun", "#!/bin/sh\necho started >> starts\necho no such node >&2\nexit 1\n", monkeypatch
    )
    monkeypatch.chdir(tmp_path)
    with start_cluster(RunSettings(), [Node("gone", "127.0.0.1")]) as client:
        cluster = client.cluster

        def has_ended(times: int) -> bool:
            worker = cluster.workers.get("light-gone-0")
            is_closed = worker is not None and worker.status.name == "closed"
            return is_closed and caplog.text.count("has ended") == times

        for i in range(3):
            until(partial(has_ended, i + 1), 20, "the end of srun")
            replace_lost_workers(client)
        until(lambda: "light-gone-0" not in cluster.worker_spec, 10, "the end of patience")
        assert Path("starts").read_text().split() == ["started"] * 3
        assert client.submit(os.getpid, resources={"cpu": 1}, pure=False).result(20) != os.getpid()
    assert "node gone has ended: no such node" in caplog.text
    assert "no more tries of light-gone-0" in caplog.text
