"""Rehearse training on two hosts: network namespaces on this machine, two gloo processes each, folders of their own.

Runs the same command three times and compares weights, record and log:

1. undisturbed;
2. one process is killed (SIGKILL) in the middle, all others end with it, and the command is given again;
3. one process on the second host gets SIGUSR1: all four save a checkpoint and exit with 75, and the command is given
   again; then the same with SIGTERM to all.

The processes add their gradients in the order of their ranks. PyTorch's DDP adds in an order that depends on how it
lays out its buckets, which it does anew after the first update of a start: with more than two processes a resumed run
then differs in the last digits. `--ddp_sums` leaves that as it is, and the record tells the size of the difference.

Hosts share nothing but the encoder and the speech, which are read alone. `--save_on_each_node` keeps checkpoints on
both. Each process is started as SLURM's `srun` starts a task: with RANK, LOCAL_RANK and WORLD_SIZE, without a launcher.
It needs Linux, root and `ip` (iproute2). `--one_host` does without namespaces, and the record says so.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch.nn.parallel import DistributedDataParallel

from laser_hf import cli
from laser_hf.__main__ import main as laser_hf_main
from laser_hf.cli import STOPPED
from laser_hf.records import provenance, write_json

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "docs" / "records" / "two_hosts.json"
HOSTS = {"laser-a": "10.77.0.1", "laser-b": "10.77.0.2"}
RANKS_PER_HOST = 2
UPDATES, SAVE_STEPS = 12, 5
PATIENCE = 600.0


def add_in_order(state, bucket):  # DDP takes no annotations as text
    """Hook of DDP: the mean of the gradients of all processes, added from the first rank to the last."""
    world, flat = torch.distributed.get_world_size(), bucket.buffer()
    parts = [torch.empty_like(flat) for _ in range(world)]
    torch.distributed.all_gather(parts, flat)
    total = parts[0]
    for part in parts[1:]:
        total += part
    done: torch.futures.Future[torch.Tensor] = torch.futures.Future()
    done.set_result(total / world)
    return done


def one_process(argv: list[str], ddp_sums: bool) -> None:
    """What each process of the rehearsal runs: the command `laser-hf`, with those sums."""
    original = DistributedDataParallel.__init__

    def init(self, *given, **named):
        original(self, *given, **named)
        self.register_comm_hook(None, add_in_order)

    if not ddp_sums:
        DistributedDataParallel.__init__ = init
    sys.argv = ["laser-hf", *argv]
    cli.run(laser_hf_main, argv)


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)


@contextlib.contextmanager
def namespaces() -> Iterator[None]:
    """Two network namespaces, connected by a pair of virtual network cards and by nothing else."""
    names, links = list(HOSTS), [f"{name}-eth" for name in HOSTS]
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, link in zip(names, links, strict=True):
            ip("link", "set", link, "netns", name)
            ip("-n", name, "addr", "add", f"{HOSTS[name]}/24", "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield
    finally:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True)


def start(folder: Path, isolated: bool, port: int, ddp_sums: bool) -> list[subprocess.Popen]:
    """The four processes of a run, each in the folder of its host."""
    processes = []
    for number, name in enumerate(HOSTS):
        for local in range(RANKS_PER_HOST):
            rank = number * RANKS_PER_HOST + local
            variables = {
                "RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": len(HOSTS) * RANKS_PER_HOST,
                "LOCAL_WORLD_SIZE": RANKS_PER_HOST, "MASTER_PORT": port, "OMP_NUM_THREADS": 1,
                "MASTER_ADDR": HOSTS["laser-a"] if isolated else "127.0.0.1", "PYTHONPATH": ROOT,
                "HF_HOME": folder / name / "huggingface", "HF_HUB_OFFLINE": 1,
            }  # fmt: skip
            if isolated:
                variables["GLOO_SOCKET_IFNAME"] = f"{name}-eth"
            command = [
                sys.executable, str(Path(__file__).resolve()), "process", *(["--ddp_sums"] if ddp_sums else []),
                "train", "--preset", "demo", "--output_dir", "out", "--use_cpu",
                "--ddp_backend", "gloo", "--save_on_each_node", "true", "--max_steps", str(UPDATES), "--warmup_steps",
                "2", "--save_steps", str(SAVE_STEPS), "--logging_steps", "4", "--eval_steps", "6", "--max_eval_samples",
                "4", "--plots", "false", "--report_to", "none", "--dataloader_num_workers", "1",
                "--disable_tqdm", "true",
            ]  # fmt: skip
            place = folder / name
            place.mkdir(parents=True, exist_ok=True)
            log = (place / f"rank-{rank}.log").open("a")
            processes.append(
                subprocess.Popen(
                    [*(["ip", "netns", "exec", name] if isolated else []), *command],
                    cwd=place,
                    env=os.environ | {key: str(value) for key, value in variables.items()},
                    stdout=log,
                    stderr=log,
                )
            )
    return processes


def wait(processes: list[subprocess.Popen]) -> list[int]:
    """Exit statuses; a process that does not end is killed, which its status says."""
    until = time.monotonic() + PATIENCE
    for process in processes:
        try:
            process.wait(max(until - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    return [process.returncode for process in processes]


def after_checkpoint(folder: Path, processes: list[subprocess.Popen]) -> None:
    """Return a moment after the first checkpoint is there."""
    until = time.monotonic() + PATIENCE
    while not all((folder / name / "out" / f"checkpoint-{SAVE_STEPS}" / "files.json").exists() for name in HOSTS):
        if time.monotonic() > until or all(process.poll() is not None for process in processes):
            raise SystemExit(f"no checkpoint: see the logs in {folder}")
        time.sleep(0.05)


def result(folder: Path) -> dict[str, object]:
    """What must come out alike: weights, log without speeds and times, and the record's counts."""
    out = folder / "laser-a" / "out"
    record = json.loads((out / "laser_config.json").read_text())
    log = json.loads((out / "training_log.json").read_text())["log"]
    timed = ("runtime", "per_second", "total_flos", "train_loss")
    return {
        "weights": hashlib.sha256((out / "model.safetensors").read_bytes()).hexdigest(),
        "log": [{key: value for key, value in line.items() if not any(one in key for one in timed)} for line in log],
        **{name: record[name] for name in ("updates", "processed_hours", "data", "recipe", "weights_sha256")},
    }


def difference(one: Path, other: Path) -> float:
    """The largest difference of a weight."""
    ours, theirs = (load_file(place / "laser-a" / "out" / "model.safetensors") for place in (one, other))
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


def rehearse(folder: Path, isolated: bool, port: int, ddp_sums: bool) -> dict[str, object]:
    """All three runs; returns what the record holds."""
    began = time.monotonic()
    whole = wait(start(folder / "whole", isolated, port, ddp_sums))
    if whole != [0] * 4:
        raise SystemExit(f"the undisturbed run ended with {whole}: see the logs in {folder / 'whole'}")
    expected = result(folder / "whole")
    print(f"undisturbed: {time.monotonic() - began:.0f} s, weights {expected['weights'][:12]}", flush=True)
    disturbances = {
        "one process killed": (signal.SIGKILL, [3]),
        "SIGUSR1 to one process": (signal.SIGUSR1, [2]),
        "SIGTERM to all": (signal.SIGTERM, [0, 1, 2, 3]),
    }
    found = {}
    for number, (name, (kind, ranks)) in enumerate(disturbances.items(), start=1):
        place = folder / f"run-{number}"
        processes = start(place, isolated, port + number, ddp_sums)
        after_checkpoint(place, processes)
        for rank in ranks:
            processes[rank].send_signal(kind)
        ended = wait(processes)
        kept = {host: sorted(path.name for path in (place / host / "out").glob("checkpoint-*")) for host in HOSTS}
        again = wait(start(place, isolated, port + 10 + number, ddp_sums))
        finished = again == [0] * 4
        same = [key for key, value in result(place).items() if value == expected[key]] if finished else []
        found[name] = {
            "largest_difference_of_a_weight": difference(folder / "whole", place) if finished else None,
            "statuses": ended,
            "checkpoints": kept,
            "statuses_of_the_second_start": again,
            "differs": sorted(expected.keys() - set(same)),
        }
        print(f"{name}: {found[name]}", flush=True)
        if kind != signal.SIGKILL and ended != [STOPPED] * 4:
            found[name]["differs"].append("exit status")
    return {"hosts": len(HOSTS), "processes": 4, "updates": UPDATES, "weights": expected["weights"], "runs": found}


def main() -> None:
    if sys.argv[1:2] == ["process"]:
        words = sys.argv[2:]
        one_process([word for word in words if word != "--ddp_sums"], "--ddp_sums" in words)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--one_host", action="store_true", help="without namespaces: only separate folders")
    parser.add_argument("--ddp_sums", action="store_true", help="leave the order of sums to DDP, and compare roughly")
    parser.add_argument("--folder", type=Path, help="keep the runs here; default: a temporary folder")
    parser.add_argument("--port", type=int, default=29_600)
    parser.add_argument("--output", type=Path, default=RECORD, help="record (default: %(default)s)")
    options = parser.parse_args()
    isolated = not options.one_host
    if isolated and (shutil.which("ip") is None or os.geteuid() != 0):
        raise SystemExit("network namespaces need root and `ip` (apt-get install iproute2); or give --one_host")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="two-hosts-"))
    try:
        with namespaces() if isolated else contextlib.nullcontext():
            content = rehearse(folder, isolated, options.port, options.ddp_sums)
    except subprocess.CalledProcessError as error:
        raise SystemExit(f"network namespaces are not allowed here ({error}); give --one_host") from error
    write_json(
        options.output,
        {"rehearsal": "two hosts", "namespaces": isolated, "ddp_sums": options.ddp_sums, **content, **provenance()},
    )
    wrong = {name: run["differs"] for name, run in content["runs"].items() if run["differs"]}
    if wrong and not options.ddp_sums:
        raise SystemExit(f"not as the undisturbed run: {wrong}; logs in {folder}")
    if options.folder is None:
        shutil.rmtree(folder)
    print("all runs ended as the undisturbed one" if not wrong else f"differs: {wrong}")


if __name__ == "__main__":
    main()
