"""A Slurm of one node on this machine, below one folder: munge, a controller, and a node daemon
that can lose its power."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "unshare")

CONF = """\
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CredType=cred/munge
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdTimeout=15
MinJobAge=3600
ReturnToService=2
MpiDefault=none
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={megabytes} State=UNKNOWN
PartitionName=work Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str:
    """What this machine lacks for a Slurm of its own, in words; an empty text where nothing."""
    sbin = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    lacks = [name for name in PROGRAMS if shutil.which(name, path=sbin) is None]
    if lacks:
        return f"no {', '.join(lacks)}: apt-get install slurm-wlm munge"
    return (
        ""
        if os.geteuid() == 0 and Path("/etc/slurm").is_dir()
        else "a node daemon needs root, and a folder /etc/slurm"
    )


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not after {seconds} s"
        time.sleep(0.3)


class Slurm:
    """``with Slurm() as slurm``: commands run with ``slurm.environment`` talk to it."""

    def __init__(self, cpus: int = 1, megabytes: int = 4000):
        # Below /tmp: a socket's path has at most 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
        for name, mode in (("munge", 0o755), ("state", 0o700), ("spool", 0o755)):
            (self.folder / name).mkdir(mode=mode)
        self.folder.chmod(0o755)
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            two.bind(("127.0.0.1", 0))
            ports = one.getsockname()[1], two.getsockname()[1]
        self.host = socket.gethostname().partition(".")[0]
        (self.folder / "slurm.conf").write_text(
            CONF.format(
                host=self.host, folder=self.folder, ports=ports, cpus=cpus, megabytes=megabytes
            )
        )
        # Slurm 22.05 wants some cgroup plugin, though nothing here uses cgroups.
        version = "cgroup/v2" if Path("/sys/fs/cgroup/cgroup.controllers").exists() else "cgroup/v1"
        (self.folder / "cgroup.conf").write_text(f"CgroupPlugin={version}\n")
        self.environment = os.environ | {
            "SLURM_CONF": str(self.folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin",
        }
        self.running: list[subprocess.Popen] = []
        self.node: subprocess.Popen | None = None

    def __enter__(self) -> Slurm:
        key, munge = self.folder / "munge" / "key", self.folder / "munge"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        try:
            self._start(
                "munged",
                "--foreground",
                f"--key-file={key}",
                f"--socket={munge}/socket",
                *(f"--{what}-file={munge}/{what}" for what in ("pid", "log", "seed")),
            )
            wait_for("munge", (munge / "socket").exists, 20)
            self._start("slurmctld", "-D")
            wait_for("the controller", lambda: self.host in self.say("sinfo", "-h", "-o", "%n"), 30)
            self.start_node()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        if self.node is not None:
            self.kill_node()
        for process in reversed(self.running):
            process.terminate()
        for process in self.running:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, *command: str) -> subprocess.Popen:
        with (self.folder / "said.log").open("ab") as said:
            process = subprocess.Popen(
                command, env=self.environment, stdout=said, stderr=said, stdin=subprocess.DEVNULL
            )
        self.running.append(process)
        return process

    def start_node(self) -> None:
        """The node daemon in a process namespace of its own: what dies with it is all that it
        started, as when a machine loses its power.

        There the configuration lies where Slurm looks by itself: Snakemake takes SLURM_CONF, like
        all such variables, out of a job's environment.
        """
        self.node = self._start(
            *"unshare --pid --fork --kill-child --mount-proc sh -c".split(),
            f"mount --bind {self.folder} /etc/slurm && exec slurmd -D",
        )
        wait_for("the node", lambda: self.node_state() in ("idle", "mix", "alloc"), 60)

    def kill_node(self) -> None:
        node, self.node = self.node, None
        node.send_signal(signal.SIGKILL)
        node.wait()
        self.running.remove(node)

    def node_state(self) -> str:
        """idle, alloc, down; with a star where it does not answer."""
        return self.say("sinfo", "-h", "-o", "%t").strip()

    def say(self, *command: str) -> str:
        return subprocess.run(
            command, env=self.environment, capture_output=True, text=True, timeout=60, check=False
        ).stdout

    def running_jobs(self, least: int = 0, most: int = 86_400) -> list[str]:
        """Those that have run for so many seconds."""
        jobs = [
            line.split() for line in self.say("squeue", "-h", "-t", "R", "-o", "%i %M").splitlines()
        ]
        return [
            job
            for job, took in jobs
            if least <= sum(60**i * int(n) for i, n in enumerate(reversed(took.split(":")))) <= most
        ]

    def restarts(self, job: str) -> int:
        said = self.say("scontrol", "show", "job", job)
        return int(said.partition("Restarts=")[2].split()[0])
