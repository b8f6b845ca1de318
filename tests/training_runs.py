"""Whole runs of a tiny encoder, for the tests."""

from __future__ import annotations

import functools
import json
import multiprocessing
import os
import socket
import traceback

import torch
from accelerate.commands import launch
from accelerate.state import AcceleratorState
from conftest import REPOSITORY
from safetensors.torch import load_file

from laser_hf.errors import LaserError
from laser_hf.training import LaserTrainer, parse_options, run_training

NO_DROPOUT = ("--hidden_dropout", "0", "--attention_dropout", "0", "--feat_proj_dropout", "0")


def arguments(encoder, speech, output, *extra):
    return [
        "--preset", "demo", "--model", str(encoder), "--data", str(speech), "--eval_data", "",
        "--output_dir", str(output), "--max_steps", "4", "--warmup_steps", "1", "--learning_rate", "1e-3",
        "--logging_steps", "1", "--save_steps", "2", "--eval_on_start", "false", "--report_to", "none", "--use_cpu",
        "--dataloader_num_workers", "0", "--plots", "false", "--projection_dim", "8", *extra,
    ]  # fmt: skip


def start(encoder, speech, output, *extra):
    """Run in this process; returns the record, the losses by step and the weights."""
    record = run_training(parse_options(arguments(encoder, speech, output, *extra)))
    return record, losses(output), load_file(output / "model.safetensors")


def history(output):
    return json.loads((output / "training_log.json").read_text())["log"]


def losses(output):
    return {entry["step"]: entry["loss"] for entry in history(output) if "loss" in entry}


def assert_same_weights(found, expected, **tolerance):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def kill_in_step_4(monkeypatch):
    """Make the run that comes next end like an interrupted one."""
    original = LaserTrainer.training_step

    def killed(self, *args, **kwargs):
        if self.state.global_step == 3:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(LaserTrainer, "training_step", killed)


def train(argv):
    run_training(parse_options(argv))


def in_a_fork(test):
    """Run a test in a fork of this process, so that what it changes in torch and transformers ends with it."""

    @functools.wraps(test)
    def forked(**fixtures):
        context = multiprocessing.get_context("fork")
        said = context.SimpleQueue()

        def child():
            try:
                test(**fixtures)
                said.put("")
            except BaseException:
                said.put(traceback.format_exc()[-20_000:])

        process = context.Process(target=child)
        process.start()
        process.join()
        assert process.exitcode == 0, process.exitcode
        trouble = said.get()
        assert not trouble, trouble

    return forked


def fork_two(argv, main=train, second=None):
    """Run `main(argv)` in two forked processes with gloo; returns their errors.

    The second may have other arguments. No interpreter has to import everything again.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context("fork")
    errors = context.Queue()
    processes = [
        context.Process(target=_one_of_two, args=(main, one, rank, port, errors))
        for rank, one in enumerate((argv, second or argv))
    ]
    for process in processes:
        process.start()
    found = dict(errors.get(timeout=240) for _ in processes)
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    return [found[0], found[1]]


def _one_of_two(main, argv, rank, port, errors):
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    # The parent has been one process only.
    AcceleratorState._reset_state(reset_partial_state=True)
    error = ""
    try:
        main([*argv, "--ddp_backend", "gloo"])
    except LaserError as raised:
        error = str(raised)
    errors.put((rank, error))


def launch_two(argv, folder):
    """Run train.py in two processes with gloo, through `accelerate launch`, which a fork of this process runs."""
    # With --cpu, accelerate starts a second process only through MPI; --multi_gpu only means "several processes".
    words = [
        "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend",
        "no", "--main_process_port", "0", str(REPOSITORY / "train.py"), *argv, "--ddp_backend", "gloo",
    ]  # fmt: skip
    launcher = multiprocessing.get_context("fork").Process(target=_launch, args=(words, folder))
    launcher.start()
    launcher.join(300)
    assert launcher.exitcode == 0, (folder / "launch.log").read_text()[-3000:]


def _launch(words, folder):
    os.chdir(folder)
    log = os.open("launch.log", os.O_WRONLY | os.O_CREAT)
    os.dup2(log, 1)
    os.dup2(log, 2)
    launch.launch_command(launch.launch_command_parser().parse_args(words))
