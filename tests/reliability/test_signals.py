"""A run stopped by Ctrl-C or SIGTERM is resumed bit for bit; a second Ctrl-C ends the process at once."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from defeat.assembly import run as run_module
from defeat.assembly.run import run
from defeat.cli import main, run_settings
from defeat.engine.module import DetectionModule
from tests.detector.tiny import BACKBONE
from tests.engine.tiny_runs import lines, results, weights

pytestmark = pytest.mark.usefixtures("small_demo")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
both_signals = pytest.mark.parametrize("number", CODES)


def command(out: Path, *more: str) -> list[str]:
    arguments = (
        f"train --data demo --detector retinanet --backbone {BACKBONE} --weights none --size 64 --max-size 96 "
        "--neck-channels 16 --epochs 2 --batch-size 2 --workers 0 --accelerator cpu --log-every 1"
    )
    return [*arguments.split(), "--out", str(out), *more]


def done(arguments: list[str]) -> None:
    """Run a command in this process, without its report."""
    assert run(run_settings(arguments[1:], "train"), Console(quiet=True)).finished


class Child:
    """A command in a process and process group of its own, which waits in a function until the file `go` exists.

    Args:
        folder: folder of the files by which the two processes communicate.
        words: arguments of the command.
        owner: class or module of the function.
        name: name of the function that waits.
        call: number of the call that waits.
    """

    def __init__(self, folder: Path, arguments: list[str], owner: object, name: str, call: int = 1) -> None:
        self.reached, self.go, self.output = folder / "reached", folder / "go", folder / "output"
        self.pid = os.fork()
        if self.pid != 0:
            return
        code = 99
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)  # shells disable it for background processes
            os.dup2(os.open(self.output, os.O_WRONLY | os.O_CREAT), 1)
            os.dup2(1, 2)
            sys.stdout = sys.stderr = os.fdopen(1, "w", buffering=1)
            self._hold(owner, name, call)
            code = main(arguments)
        finally:
            os._exit(code)

    def _hold(self, owner: object, name: str, call: int) -> None:
        original, calls = getattr(owner, name), []

        def held(*arguments, **keywords):
            calls.append(None)
            if len(calls) == call:
                self.reached.touch()
                while not self.go.exists():
                    time.sleep(0.01)
            return original(*arguments, **keywords)

        setattr(owner, name, held)

    @property
    def ended(self) -> bool:
        return os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def wait_until_held(self) -> None:
        while not self.reached.exists():
            assert not self.ended, self.output.read_text()
            time.sleep(0.01)

    def code(self) -> int:
        """Wait for the exit code, as a shell shows it."""
        _, status = os.waitpid(self.pid, 0)
        return os.waitstatus_to_exitcode(status)

    def signalled(self, number: int, group: bool = False) -> int:
        """Exit code after a signal."""
        self.wait_until_held()
        (os.killpg if group else os.kill)(self.pid, number)
        self.go.touch()
        return self.code()


@pytest.mark.slow
@both_signals
@pytest.mark.parametrize(
    ("where", "call"),
    [("training_step", 2), ("training_step", 8), ("validation_step", 1)],
    ids=lambda value: str(value),
)
def test_a_run_stopped_by_a_signal_is_resumed_bit_for_bit(number, where, call, tmp_path):
    """In the middle of an epoch, in its last step, and in an evaluation."""
    if number == signal.SIGINT and where == "training_step" and call == 2:
        pytest.skip("tests/test_cli.py does that")
    done(command(tmp_path / "whole"))
    out = tmp_path / "run"
    child = Child(tmp_path, command(out), DetectionModule, where, call)
    assert child.signalled(number) == CODES[number]
    printed = child.output.read_text()
    assert "Traceback" not in printed
    assert "--resume" in printed
    assert (out / "checkpoints/last.ckpt").exists()
    assert not (out / "results.json").exists()
    assert not (out / ".lock").exists()
    done(command(out, "--resume"))
    assert weights(out) == weights(tmp_path / "whole")
    assert results(out)["metrics"] == results(tmp_path / "whole")["metrics"]
    assert lines(out) == lines(tmp_path / "whole")


def test_a_signal_to_all_processes_of_a_run_does_not_kill_its_loaders(tmp_path):
    """As a batch system or a terminal sends it."""
    out = tmp_path / "run"
    child = Child(tmp_path, command(out, "--workers", "2"), DetectionModule, "training_step", 2)
    assert child.signalled(signal.SIGTERM, group=True) == 143, child.output.read_text()
    assert [line["step"] for line in lines(out)] == [0, 1]
    assert (out / "checkpoints/last.ckpt").exists()


def test_a_second_ctrl_c_ends_the_process_at_once(tmp_path):
    out = tmp_path / "run"
    child = Child(tmp_path, command(out), DetectionModule, "training_step", 2)
    child.wait_until_held()
    while not child.ended:  # two signals may come to a process as one
        os.kill(child.pid, signal.SIGINT)
        time.sleep(0.1)
    assert child.code() == 130
    done(command(out, "--resume"))  # from its beginning


@pytest.mark.slow
def test_a_second_sigterm_does_not_disturb_the_checkpoint(tmp_path):
    out = tmp_path / "run"
    child = Child(tmp_path, command(out), DetectionModule, "training_step", 2)
    child.wait_until_held()
    for _ in range(3):
        os.kill(child.pid, signal.SIGTERM)
        time.sleep(0.1)
    assert child.signalled(signal.SIGTERM) == 143, child.output.read_text()
    assert (out / "checkpoints/last.ckpt").exists()


@both_signals
def test_resume_starts_a_run_that_was_stopped_before_its_first_step(number, tmp_path):
    out = tmp_path / "run"
    child = Child(tmp_path, command(out), run_module, "assemble")
    assert child.signalled(number) == CODES[number]
    assert "Traceback" not in child.output.read_text()
    done(command(out, "--resume"))
