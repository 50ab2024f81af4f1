"""Two hosts, started as docs/clusters.md says: by torchrun and by SLURM; deaths and cut cables."""

import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil

from .network import Hosts, two_hosts
from .processes import same_weights, write_run
from .table import Row

ROOT = Path(__file__).resolve().parents[2]
STEPS = 150
AT_MOST = 60  # seconds from a death to the end of the others
START = 600  # seconds at most until training begins, or a run of this size ends
FIT = [
    "--config=recipe.yaml", "--save_every=10", f"--trainer.max_steps={STEPS}", "--existing=resume",
    "--trainer.num_nodes=2", "--trainer.devices=1", "--trainer.strategy=ddp",
]  # fmt: skip


def rows(folder: Path, seed: int, share: float) -> Iterator[Row]:
    """An uninterrupted run, then the same one with a death in it, and the same command again."""
    rng = random.Random(seed)
    folder = write_run(folder / "shared", rng, train=200, val=6, test=4)
    with two_hosts(folder) as hosts:
        where = f"one machine, {hosts.reason}" if hosts.reason else "two network namespaces"
        apart = None if hosts.reason else Path(shutil.copytree(folder, folder.with_name("apart")))
        ended = _Torchrun(hosts, "whole", apart).ended(START)
        yield Row(f"torchrun, {where}", 1, int(not ended), "ends, also without a shared folder")
        kills = {"a process of the second": 1, "a process of the first": 0}
        for what, host in list(kills.items())[: max(1, round(2 * share))]:
            lost = _dies(hosts, f"killed-{host}", rng, host)
            yield Row(f"SIGKILL of {what} host", 1, lost, "ends in a minute, goes on, same weights")
        if not hosts.reason:
            lost = _dies(hosts, "cut", rng, None)
            yield Row("a cut cable", 1, lost, "both end in a minute, go on, same weights")
        yield Row("sbatch file, SIGTERM, requeue", 1, _slurm(hosts, rng), "143, then same weights")


class _Torchrun:
    """The command of docs/clusters.md on two hosts."""

    def __init__(self, hosts: Hosts, name: str, apart: Path | None = None) -> None:
        self.folder, self.name = hosts.folder, name
        self.running = []
        for host in (0, 1):
            command = [
                sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1",
                f"--node-rank={host}", f"--master-addr={hosts.first}",
                f"--master-port={hosts.port}", "-m", "transformer", "fit", *FIT,
                f"--run_dir={name}",
            ]  # fmt: skip
            self.running.append(_start(hosts, host, command, apart if host else None, name))

    def ended(self, seconds: float) -> bool:
        """Waits for both; whether they did well. Those that hang are killed."""
        until = time.monotonic() + seconds
        codes = [_wait(process, until) for process in self.running]
        if any(codes):
            print(f"{self.name}: {codes}\n{self.output()}", file=sys.stderr)
        return not any(codes)

    def output(self) -> str:
        """All that both have printed so far."""
        return "".join((self.folder / f"{self.name}-{host}.txt").read_text() for host in (0, 1))

    def worker(self, host: int) -> psutil.Process:
        """The process of `transformer fit` on a host."""
        (worker,) = psutil.Process(self.running[host].pid).children(recursive=True)[:1]
        return worker


def _start(
    hosts: Hosts, host: int, command: list[str], home: Path | None, name: str
) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    with (hosts.folder / f"{name}-{host}.txt").open("ab") as output:
        return subprocess.Popen(
            hosts.on(host, command, home), cwd=hosts.folder, env=environment, stdout=output,
            stderr=subprocess.STDOUT,
        )  # fmt: skip


def _wait(process: subprocess.Popen[bytes], until: float) -> int:
    try:
        return process.wait(max(0.0, until - time.monotonic()))
    except subprocess.TimeoutExpired:
        for each in (*psutil.Process(process.pid).children(recursive=True), process):
            each.kill()
        return process.wait()


def _until_trained(folder: Path, rng: random.Random) -> None:
    """Waits for the first checkpoint, and a random moment longer."""
    until = time.monotonic() + START
    while not (folder / "checkpoints/last.ckpt").exists() and time.monotonic() < until:
        time.sleep(0.05)
    time.sleep(rng.uniform(0, 0.3))


def _dies(hosts: Hosts, name: str, rng: random.Random, host: int | None) -> int:
    """A process is killed on a host, or the cable is cut; 1 if anything is not as promised."""
    run = _Torchrun(hosts, name)
    _until_trained(hosts.folder / name, rng)
    if host is None:
        hosts.cable("down")
    else:
        run.worker(host).kill()
    before = time.monotonic()
    codes = [_wait(process, before + 2 * AT_MOST) for process in run.running]
    seconds = time.monotonic() - before
    hosts.cable("up") if host is None else None
    said = re.search("process.* of this run.* is gone", run.output())
    again = _Torchrun(hosts, name).ended(START)
    fine = 0 not in codes and seconds < AT_MOST and said and again
    if fine and same_weights(hosts.folder, name):
        return 0
    print(f"{name}: {codes} after {seconds:.0f} s\n{run.output()}", file=sys.stderr)
    return 1


def _slurm(hosts: Hosts, rng: random.Random) -> int:
    """The sbatch file, stopped by SIGTERM before its time is over, and begun again; 1 if lost."""
    folder = hosts.folder
    _write_cluster(hosts)
    codes = []
    for stopped in (True, False):
        job = subprocess.Popen(
            ["bash", "train.sbatch"], cwd=folder, env=_environment(hosts),
            stdout=(folder / "slurm.txt").open("ab"), stderr=subprocess.STDOUT,
        )  # fmt: skip
        if stopped:
            _until_trained(folder / "slurm", rng)
            for task in psutil.Process(job.pid).children(recursive=True):
                if "--existing" in task.cmdline() and task.name().startswith("python"):
                    task.send_signal(signal.SIGTERM)
        codes.append(_wait(job, time.monotonic() + START))
    asked = folder / "scontrol.txt"
    requeued = asked.exists() and asked.read_text() == f"requeue {os.getpid()}\n"
    if codes == [143, 0] and requeued and same_weights(folder, "slurm"):
        return 0
    print(f"slurm: {codes}, {requeued}\n{(folder / 'slurm.txt').read_text()}", file=sys.stderr)
    return 1


def _write_cluster(hosts: Hosts) -> None:
    """The page's sbatch file with the recipe of the test; srun, scontrol and transformer."""
    page = (ROOT / "docs/clusters.md").read_text()
    (text,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", page, re.DOTALL)
    ours = "--config recipe.yaml --run_dir slurm --save_every 10 --trainer.max_steps"
    text = re.sub(r"--config \S+", f"{ours} {STEPS}", text)
    text, changed = re.subn(r"--data.max_tokens \d+", "", text)  # of the page's recipe
    assert changed == 1
    (hosts.folder / "train.sbatch").write_text(text)
    numbers = "SLURM_PROCID={0} SLURM_NODEID={0} SLURM_LOCALID=0"
    tasks = (
        f'{numbers.format(host)} {shlex.join(hosts.on(host, []))} "$@" &\npids="$pids $!"\n'
        for host in (0, 1)
    )
    programs = {
        "srun": "while [[ $1 == --* ]]; do shift; done\n"
        f"{''.join(tasks)}for pid in $pids; do wait $pid; "
        "code=$?; ((code > most)) && most=$code; done\nexit $((most))\n",
        "scontrol": f'echo "$@" >> {hosts.folder}/scontrol.txt\n',
        "transformer": f'exec {sys.executable} -m transformer "$@"\n',
    }
    for name, script in programs.items():
        path = hosts.folder / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/bash\n{script}")
        path.chmod(0o755)


def _environment(hosts: Hosts) -> dict[str, str]:
    """What SLURM tells the job of two nodes with a task each."""
    return {
        **os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1",
        "PATH": f"{hosts.folder}/bin:{os.environ['PATH']}", "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "transformer", "SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "1",
        "SLURM_NNODES": "2", "SLURM_NODELIST": hosts.names,
    }  # fmt: skip
