"""A real SLURM for tests: one controller and two virtual nodes in a folder of its own, without root or system services.

Node `cpu1` is the default partition `main`; node `gpu1` is the partition `gpu`, with two GPUs that can be counted and
are not there. Both claim 16 cores of this machine.
"""

import os
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue")
PATH = os.pathsep.join([os.environ["PATH"], "/usr/sbin"])  # not everybody's PATH has the daemons
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=PATH)]

CONFIG = """
ClusterName=test
SlurmctldHost={host}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
CredType=cred/none
# A requeued job may start again after this, not after two minutes.
AuthInfo=cred_expire=10
SlurmctldPort={port}
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd-%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd-%n.log
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
EnforcePartLimits=ALL
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
ReturnToService=2
SlurmdTimeout=10
KillWait=3
GresTypes=gpu
SlurmdParameters=config_overrides
NodeName=cpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={cpu1} CPUs=16 RealMemory=12000 State=UNKNOWN
NodeName=gpu1 NodeHostname={host} NodeAddr=127.0.0.1 Port={gpu1} CPUs=16 RealMemory=12000 Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=cpu1 Default=YES MaxTime=UNLIMITED DefaultTime=5 State=UP
PartitionName=gpu Nodes=gpu1 MaxTime=UNLIMITED DefaultTime=5 State=UP
"""
GPUS = """
AutoDetect=off
NodeName=gpu1 Name=gpu File=/dev/null
NodeName=gpu1 Name=gpu File=/dev/zero
"""
# What a site gives to --slurm-partition-config.
PARTITIONS = """
partitions:
  main: {max_runtime: 10000}
  gpu: {max_runtime: 10000, max_gpu: 2}
"""
# The executor takes SLURM_* out of a job step's environment; a cluster without /etc/slurm gives its config back here.
SRUN = """#!/bin/sh
SLURM_CONF={config} exec {srun} "$@"
"""
# There is no accounting database: answer the executor's second way of asking for states as the first one does.
SACCT = """#!/bin/sh
while [ $# -gt 0 ]; do
    [ "$1" = --name ] && exec squeue --states=all --noheader --format='%i|%T' --name "$2"
    shift
done
echo "no accounting here" >&2; exit 1
"""


@dataclass(frozen=True)
class Cluster:
    """A running cluster: its folder, and the environment in which its commands reach it."""

    root: Path
    environment: dict[str, str]

    def __call__(self, *command: str) -> str:
        """Run one of SLURM's commands; its output."""
        return subprocess.check_output(command, env=self.environment, text=True, timeout=60).strip()

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        subprocess.run([program("slurmd"), "-N", name], env=self.environment, stdin=subprocess.DEVNULL, check=True)

    def lose_node(self, name: str) -> None:
        """End all that runs on a node at once, as a power cut would."""
        jobs = self("squeue", "--noheader", "--nodelist", name, "--format=%A").split()
        daemon = int((self.root / "run" / f"slurmd-{name}.pid").read_text())
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                command = (process / "cmdline").read_bytes().decode(errors="replace")
                variables = (process / "environ").read_bytes().decode(errors="replace").split("\0")
                of_job = any(f"SLURM_JOB_ID={job}" in variables or f"slurmstepd: [{job}." in command for job in jobs)
                if of_job or int(process.name) == daemon:
                    os.kill(int(process.name), signal.SIGKILL)

    def wait_until_idle(self, seconds: float = 30) -> None:
        """Wait until both nodes are up and free."""
        deadline = time.monotonic() + seconds
        while set(self("sinfo", "--noheader", "--Node", "--format=%T").split()) != {"idle"}:
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def logs(self) -> str:
        """What the daemons wrote."""
        return "\n".join(f"== {path.name}\n{path.read_text()}" for path in sorted((self.root / "log").glob("*.log")))

    def stop(self) -> None:
        """Cancel every job, then end the daemons."""
        with suppress(subprocess.SubprocessError):
            self("scancel", "--user", str(os.getuid()))
            deadline = time.monotonic() + 15
            while self("squeue", "--noheader") and time.monotonic() < deadline:
                time.sleep(0.2)
        for path in (self.root / "run").glob("*.pid"):
            with suppress(ProcessLookupError, ValueError):
                os.kill(int(path.read_text()), signal.SIGTERM)


def start(root: Path) -> Cluster:
    """Start a cluster in `root`, a new folder."""
    for name in ("etc", "run", "log", "state", "spool/cpu1", "spool/gpu1", "bin"):
        (root / name).mkdir(parents=True)
    config = root / "etc" / "slurm.conf"
    port, cpu1, gpu1 = free_ports(3)
    user = subprocess.check_output(["id", "-un"], text=True).strip()
    host = socket.gethostname().partition(".")[0]
    config.write_text(CONFIG.format(root=root, host=host, user=user, port=port, cpu1=cpu1, gpu1=gpu1))
    config.with_name("gres.conf").write_text(GPUS)
    config.with_name("cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainCores=no\n")
    (root / "partitions.yaml").write_text(PARTITIONS)
    for name, text in {"srun": SRUN.format(config=config, srun=program("srun")), "sacct": SACCT}.items():
        (root / "bin" / name).write_text(text)
        (root / "bin" / name).chmod(0o755)
    environment = os.environ | {"SLURM_CONF": str(config), "PATH": f"{root / 'bin'}{os.pathsep}{PATH}"}
    cluster = Cluster(root, environment)
    subprocess.run([program("slurmctld"), "-i"], env=environment, stdin=subprocess.DEVNULL, check=True)
    cluster.start_node("cpu1")
    cluster.start_node("gpu1")
    try:
        cluster.wait_until_idle()
    except BaseException:
        cluster.stop()
        raise
    return cluster


def program(name: str) -> str:
    """The path of one of SLURM's programs."""
    return shutil.which(name, path=PATH) or name


def free_ports(count: int) -> list[int]:
    """Ports that nothing listens on now."""
    sockets = [socket.create_server(("", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
