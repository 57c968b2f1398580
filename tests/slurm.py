"""A grid through Slurm on this machine: six cells in three stages and two partitions, disturbed, against `run.py grid`.

    python tests/slurm.py

One cell's kernel is killed, so that its job fails and is tried again; the node's daemon is started anew in between. It
needs root and Debian's slurm-wlm and munge, and leaves a machine alone that has a Slurm of its own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
from kills import result

ROOT = Path(__file__).resolve().parent.parent
HOME = ROOT / "runs" / "cluster"
CONF = Path("/etc/slurm/slurm.conf")  # jobs do not see SLURM_CONF
MINE = "ClusterName=seamlib-test"
RUN = [sys.executable, str(ROOT / "notebooks/run.py")]
SNAKEMAKE = [str(Path(sys.executable).with_name("snakemake")), "--profile", "notebooks/profiles/slurm",
             "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "5",
             "--seconds-between-status-checks", "3", "--latency-wait", "20",
             "--set-resources", "indirect_reuse:slurm_partition=long"]


def settings() -> str:
    """slurm.conf: this machine as the only node, in the partitions short and long, without accounting."""
    return f"""{MINE}
SlurmctldHost={socket.gethostname()}
SlurmUser=root
StateSaveLocation={HOME}/slurm/controller
SlurmdSpoolDir={HOME}/slurm/node
SlurmctldPidFile={HOME}/slurm/slurmctld.pid
SlurmdPidFile={HOME}/slurm/slurmd.pid
SlurmctldLogFile={HOME}/slurm/slurmctld.log
SlurmdLogFile={HOME}/slurm/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2
ReturnToService=2
NodeName={socket.gethostname()} CPUs={os.cpu_count()} RealMemory={psutil.virtual_memory().total // 2**20 - 500}
PartitionName=short Nodes=ALL Default=YES MaxTime=INFINITE
PartitionName=long Nodes=ALL MaxTime=INFINITE
"""


def missing() -> str:
    """Why this test cannot run here; empty if it can."""
    if left := [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]:
        return f"no {', '.join(left)}: install slurm-wlm and munge"
    if os.getuid():
        return "Slurm's daemons need root"
    mine = CONF.exists() and MINE in CONF.read_text()
    if not mine and (CONF.exists() or running("slurmctld", "slurmd")):
        return "there is a Slurm here already"
    return ""


def begin() -> None:
    """Start munge and Slurm's two daemons."""
    (HOME / "slurm/controller").mkdir(parents=True)
    (HOME / "slurm/node").mkdir()
    CONF.write_text(settings())
    os.makedirs("/run/munge", exist_ok=True)
    shutil.chown("/run/munge", "munge", "munge")
    if not running("munged"):
        subprocess.run(["runuser", "-u", "munge", "--", "munged"], check=True)
    subprocess.run(["slurmctld"], check=True)
    node()


def node() -> None:
    """Start the node's daemon, in the place of one that runs."""
    stop("slurmd")
    subprocess.run(["slurmd"], check=True)


def running(*names: str) -> list[psutil.Process]:
    return [p for p in psutil.process_iter(["name"]) if p.info["name"] in names]


def stop(*names: str) -> None:
    for process in running(*names):
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended by itself
            process.kill()
            process.wait()


def snakemake(*more: str) -> subprocess.Popen[str]:
    return subprocess.Popen([*SNAKEMAKE, *more], cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def kernels() -> list[psutil.Process]:
    """Kernels of the second stage."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"] or []
        with contextlib.suppress(psutil.NoSuchProcess):
            parents = process.parents() if "ipykernel_launcher" in line else []
            asked = {f"runs={HOME / 'slurm-runs'}", "indirect_reuse"}
            found += [process] * any(asked <= {*p.cmdline()} for p in parents)
    return found


def disturbed(process: subprocess.Popen[str]) -> str:
    """Kill the first kernel of the second stage, start the node's daemon anew; what Snakemake says in the end."""
    until = time.monotonic() + 240
    while process.poll() is None and time.monotonic() < until:
        if any((HOME / "slurm-runs/train_source").glob("*.json")) and (there := kernels()):
            time.sleep(2)
            there[0].kill()
            node()
            break
        time.sleep(0.2)
    else:
        process.kill()
        raise SystemExit("no cell of the second stage began")
    return process.communicate()[0]


def main() -> int:
    """0 if the grid ends with the records that `run.py grid` makes, and a partition that is not there is said."""
    if why := missing():
        print(f"left out: {why}")
        return 0
    stop("slurmctld", "slurmd")
    shutil.rmtree(HOME, ignore_errors=True)
    began = time.monotonic()
    with subprocess.Popen([*RUN, "grid", "six", "-p", f"runs={HOME / 'runs'}"], stdout=subprocess.DEVNULL,
                          env={**os.environ, "OMP_NUM_THREADS": "1"}) as other:  # while Slurm waits, most of the time
        try:
            begin()
            grid = snakemake("--default-resources", "slurm_account=root", "slurm_partition=short", "--config",
                             "preset=six", f"runs={HOME / 'slurm-runs'}")
            said = disturbed(grid)
            through = time.monotonic() - began
            jobs = [line for line in said.splitlines() if "has been submitted with SLURM jobid" in line]
            lost = snakemake("--default-resources", "slurm_account=root", "slurm_partition=nowhere", "--retries", "0",
                             "--config", "preset=six", f"runs={HOME / 'lost-runs'}")
            wrong, _ = lost.communicate()
        finally:
            stop("slurmctld", "slurmd")
            CONF.unlink(missing_ok=True)
    checks = {
        "all commands end as they should": (grid.returncode, lost.returncode, other.returncode) == (0, 1, 0),
        "the same records": result(HOME / "slurm-runs") == result(HOME / "runs"),
        "six records": len(result(HOME / "slurm-runs")) == 6,
        "a job more, as one failed": len(jobs) == 7,
        "a missing partition is named": "invalid partition specified: nowhere" in wrong,
    }
    print(f"{len(jobs)} jobs through Slurm in {through:.0f} s, beside the same by run.py")
    print("\n".join(f"{'ok   ' if ok else 'WRONG'} {what}" for what, ok in checks.items()))
    if not all(checks.values()):
        print(said, wrong, sep="\n")
    return int(not all(checks.values()))


if __name__ == "__main__":
    sys.exit(main())
