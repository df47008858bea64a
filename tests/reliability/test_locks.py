"""Only one process at a time uses a run directory; the lock of a process that has ended is taken over."""

import json
import os
import re
import signal
import time

import pytest

from defeat.engine.lock import LockedError, RunLock, start_time
from defeat.errors import InputError
from tests.engine.tiny_runs import results, tiny_run, weights
from tests.reliability.children import forked

pytestmark = pytest.mark.usefixtures("small_demo")


def locked_by(folder, **owner):
    """Write the lock of another process, by default of the parent process."""
    folder.mkdir(parents=True, exist_ok=True)
    parent = os.getppid()
    content = {"pid": parent, "host": os.uname().nodename, "started": start_time(parent)} | owner
    (folder / ".lock").write_text(json.dumps(content))


def ended_process() -> int:
    """Process id of a process that has ended."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def taken(folder) -> list[str]:
    """The messages when the lock of a folder is taken."""
    messages: list[str] = []
    RunLock(folder).take(messages.append)
    return messages


def test_a_lock_is_held_until_it_is_released(tmp_path):
    lock = RunLock(tmp_path / "run")
    assert lock.take() is False
    with pytest.raises(LockedError, match=rf"{tmp_path}/run is used by process {os.getpid()} of this machine"):
        RunLock(tmp_path / "run").take()
    lock.release()
    assert not (tmp_path / "run").exists()  # nothing was written into it
    assert taken(tmp_path / "run") == []


def test_the_lock_of_a_running_process_is_respected(tmp_path):
    locked_by(tmp_path)
    with pytest.raises(LockedError, match=f"process {os.getppid()} of this machine: wait for it, or stop it"):
        RunLock(tmp_path).take()


def test_the_lock_of_an_ended_process_is_taken_over_with_a_message(tmp_path):
    pid = ended_process()
    locked_by(tmp_path, pid=pid)
    assert taken(tmp_path) == [f"The process {pid} that used {tmp_path} has ended: its lock is taken over."]
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()


def test_another_process_with_the_same_id_does_not_own_the_lock(tmp_path):
    locked_by(tmp_path, started=start_time(os.getppid()) - 1)
    assert len(taken(tmp_path)) == 1


def test_a_zombie_process_holds_no_lock(tmp_path):
    child = os.fork()
    if child == 0:
        signal.pause()
    locked_by(tmp_path, pid=child, started=start_time(child))
    os.kill(child, signal.SIGKILL)
    while start_time(child) is not None:
        time.sleep(0.01)
    assert len(taken(tmp_path)) == 1
    os.waitpid(child, 0)


def test_a_lock_of_another_host_is_left_to_the_user(tmp_path):
    locked_by(tmp_path, host="elsewhere", pid=1)
    with pytest.raises(LockedError, match=rf"process 1 on elsewhere; if it has ended, delete {tmp_path}/\.lock"):
        RunLock(tmp_path).take()


@pytest.mark.parametrize("pid", [10**30, 2**31 - 1])
def test_impossible_process_ids_hold_no_lock(pid, tmp_path):
    locked_by(tmp_path, pid=pid)
    assert len(taken(tmp_path)) == 1


@pytest.mark.parametrize("content", [b"", b'{"pid": 1', b"[]", b'{"pid": "x", "host": 1, "started": 2}', b"\xff", b"0"])
def test_an_incomplete_lock_is_stale(content, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    assert taken(tmp_path) == []


def test_only_one_of_many_processes_gets_a_stale_lock(tmp_path):
    locked_by(tmp_path, pid=ended_process())
    reading, writing = os.pipe()
    children = []
    for _ in range(12):
        child = os.fork()
        if child == 0:
            os.read(reading, 1)  # all start at once
            try:
                RunLock(tmp_path).take()
            except LockedError:
                os._exit(1)
            signal.pause()
        children.append(child)
    os.write(writing, b"x" * len(children))
    losers = [os.waitpid(-1, 0) for _ in range(len(children) - 1)]
    assert [os.waitstatus_to_exitcode(status) for _, status in losers] == [1] * (len(children) - 1)
    (winner,) = set(children) - {child for child, _ in losers}
    assert json.loads((tmp_path / ".lock").read_text())["pid"] == winner
    os.kill(winner, signal.SIGKILL)
    os.waitpid(winner, 0)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=re.escape(f"{tmp_path}/file/run can't be written")):
        RunLock(tmp_path / "file/run").take()


@pytest.mark.parametrize("resume", [False, True])
def test_a_second_run_into_a_folder_is_refused(resume, tmp_path):
    folder = tiny_run(tmp_path / "run", max_steps=1).folder
    before = weights(folder)
    locked_by(folder)
    with pytest.raises(LockedError, match="is used by process"):
        tiny_run(folder, max_steps=1, resume=resume)
    assert weights(folder) == before
    assert (folder / ".lock").exists()  # still that of the other one


def test_a_run_locks_its_folder_and_releases_it_at_the_end(tmp_path, monkeypatch):
    from defeat.engine.module import DetectionModule

    original, refused = DetectionModule.training_step, []

    def step(self, *arguments):
        with pytest.raises(LockedError) as caught:
            RunLock(tmp_path / "run").take()
        refused.append(str(caught.value))
        return original(self, *arguments)

    monkeypatch.setattr(DetectionModule, "training_step", step)
    tiny_run(tmp_path / "run", max_steps=1)
    assert len(refused) == 1
    assert not (tmp_path / "run/.lock").exists()


def test_a_refused_run_leaves_no_folder_behind(tmp_path):
    with pytest.raises(InputError):
        tiny_run(tmp_path / "run", data=str(tmp_path / "nowhere"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("torn", [False, True])
def test_resume_starts_a_run_that_was_killed_before_its_settings_were_written(torn, tmp_path):
    locked_by(tmp_path / "run", pid=ended_process())
    if torn:
        (tmp_path / "run/.lock").write_text("")
    assert tiny_run(tmp_path / "run", max_steps=1, resume=True).finished
    assert results(tmp_path / "run")["steps"] == 1


def test_incomplete_files_of_a_killed_run_are_removed(tmp_path):
    folder = tiny_run(tmp_path / "run", max_steps=1).folder
    left = [folder / ".model.safetensors.123", folder / "checkpoints/.last.ckpt.4567"]
    for path in left:
        path.write_bytes(b"half")
    (folder / ".mine").write_text("")
    tiny_run(folder, max_steps=1, resume=True)
    assert not any(path.exists() for path in left)
    assert (folder / ".mine").exists()


def test_forked_processes_do_not_keep_a_lock(tmp_path):
    """Workers that load images survive a killed process by seconds."""

    def killed():
        RunLock(tmp_path).take()
        if os.fork() == 0:
            time.sleep(3)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)

    assert forked(killed).killed
    assert len(taken(tmp_path)) == 1
