import errno
import logging
import os
import signal
import sys

import pytest

from laser_hf import cli
from laser_hf.errors import LaserError
from laser_hf.runs import RunFolder, seal_checkpoint


@pytest.mark.parametrize(
    ("raised", "status", "printed"),
    [
        (LaserError("--alpha must be a number, got 'x'"), "error: --alpha must be a number, got 'x'", ""),
        (FileNotFoundError(2, "No such file or directory", "a.wav"), "error: [Errno 2] No such file", ""),
        (KeyboardInterrupt(), 130, "run the same command again"),
    ],
)
def test_a_users_mistake_ends_in_one_line(raised, status, printed, capsys):
    def main(argv):
        raise raised

    with pytest.raises(SystemExit) as ended:
        cli.run(main, [])
    assert str(ended.value.code).startswith(str(status))
    assert printed in capsys.readouterr().err


def _wrapped() -> Exception:
    try:
        try:
            raise OSError(errno.ENOSPC, "No space left on device")
        except OSError as error:
            raise RuntimeError("cannot write the archive") from error
    except RuntimeError as error:
        return error


@pytest.mark.parametrize(
    ("raised", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "out/cache"), "the disk is full"),
        (_wrapped(), "the disk is full"),
        (RuntimeError("[enforce fail] . PytorchStreamWriter failed writing file data/0: file write failed"), "full"),
        (
            RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
            "a process that reads data was killed",
        ),
        (RuntimeError("One of the subprocesses has abruptly died during map operation"), "reads data was killed"),
    ],
)
def test_a_full_disk_and_a_killed_worker_end_in_one_line_that_says_how_to_go_on(raised, said, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "saved", None)
    folder = RunFolder(tmp_path, "record.json")

    def main(argv):
        folder.prepare({})
        raise raised

    def message(*argv):
        with pytest.raises(SystemExit) as ended:
            cli.run(main, argv)
        assert "\n" not in ended.value.code
        return ended.value.code

    assert said in message()
    assert "nothing is saved; run the same command again to start over" in message()
    for step in (9, 10, 11):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        seal_checkpoint(tmp_path / f"checkpoint-{step}")
    again = f"saved: {tmp_path}/checkpoint-10; run the same command again to continue"
    assert again in message()
    assert again.replace("same command again", "command again without --overwrite_output_dir") in message(
        "--overwrite_output_dir"
    )


@pytest.fixture(autouse=True)
def _handlers():
    """`run` ends its process, so it leaves handlers behind."""
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGCHLD), sys.excepthook
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGCHLD, before[1])
    sys.excepthook = before[2]


def test_an_interrupt_that_compiled_code_turns_into_another_error_is_one_all_the_same(capsys):
    def main(argv):
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except KeyboardInterrupt:
            raise ValueError("could not determine the shape") from None

    with pytest.raises(SystemExit) as ended:
        cli.run(main, [])
    assert ended.value.code == cli.INTERRUPTED
    assert capsys.readouterr().err.startswith("interrupted; ")


def test_a_stop_that_a_scheduler_asked_for_has_its_own_status(capsys):
    def main(argv):
        raise cli.Stopped("stopped after update 3 by SIGUSR1")

    with pytest.raises(SystemExit) as ended:
        cli.run(main, [])
    assert ended.value.code == cli.STOPPED == os.EX_TEMPFAIL
    assert capsys.readouterr().err.startswith("stopped after update 3 by SIGUSR1; ")


def test_an_empty_output_folder_is_refused():
    for argv in (["superb", "--output_dir", ""], ["--output_dir="]):
        with pytest.raises(SystemExit, match="error: --output_dir is empty"):
            cli.run(lambda _: pytest.fail("it ran"), argv)


@pytest.mark.parametrize("bug", [ValueError("x"), KeyError("x"), ConnectionError("reset")])
def test_a_bug_keeps_its_traceback(bug):
    def main(argv):
        raise bug

    with pytest.raises(type(bug)):
        cli.run(main, [])


def test_arguments_are_passed_on_and_success_is_status_0():
    seen = []
    with pytest.raises(SystemExit) as ended:
        cli.run(seen.append, ["--a", "1"])
    assert ended.value.code == 0
    assert seen == [["--a", "1"]]


def test_other_processes_log_warnings_only(monkeypatch):
    logger = logging.getLogger("laser_hf")
    level = logger.level
    try:
        cli.set_up_logging(main_process=False)
        assert not logger.isEnabledFor(logging.INFO)
        cli.set_up_logging()
        assert logger.isEnabledFor(logging.INFO)
    finally:
        logger.setLevel(level)


@pytest.mark.parametrize(
    ("companions", "alone"), [({}, True), ({"WORLD_SIZE": "2"}, False), ({"PMI_SIZE": "2"}, False)]
)
def test_a_process_that_should_have_companions_does_not_run_alone(monkeypatch, companions, alone):
    for name in ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    cli.refuse_lonely_launch("x")  # without accelerate nothing is refused
    for name, value in {"MASTER_ADDR": "localhost", "ACCELERATE_USE_CPU": "True", **companions}.items():
        monkeypatch.setenv(name, value)
    if not alone:
        return cli.refuse_lonely_launch("x")
    with pytest.raises(LaserError, match=r"--num_processes 2 train.py --use_cpu --ddp_backend gloo"):
        cli.refuse_lonely_launch("train.py --use_cpu")
