"""Cells trained on a Ray cluster are equal to cells trained one after the other, also where a node is lost."""

import builtins
import threading
import time
from collections import Counter
from io import StringIO

import pytest
from rich.console import Console

from defeat.benchmark import bench
from defeat.benchmark.cluster import _remove_lock_of_lost_worker, _resources
from defeat.benchmark.matrix import BASELINE, NONE, Matrix
from defeat.engine.lock import RunLock
from defeat.errors import InputError
from tests.benchmark.benches import options, outcome
from tests.engine.tiny_runs import weights

ray = pytest.importorskip("ray")
CELLS = ("none-seed0", "none-seed1", "fgfi-seed0", "fgfi-seed1")
STEPS = {"epochs": 20, "max_steps": 60, "checkpoint_every": 2}


@pytest.fixture
def cluster(monkeypatch):
    """A head node that trains nothing, and two nodes with one core each."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    made = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    made.workers = [made.add_node(num_cpus=1) for _ in range(2)]
    ray.init(made.address, log_to_driver=False)
    yield made
    ray.shutdown()
    made.shutdown()


def lose_a_node_in_the_middle(cluster, folder, lost):
    """Remove a node as soon as two cells have checkpoints, neither of which is finished."""
    while len(begun := [cell for cell in CELLS if (folder / cell / "checkpoints" / "last.ckpt").exists()]) < 2:
        time.sleep(0.01)
    lost.append([cell for cell in begun if not (folder / cell / "results.json").exists()])
    cluster.remove_node(cluster.workers[1], allow_graceful=False)


@pytest.mark.slow
def test_a_cell_continues_on_another_node_when_its_node_is_lost(tmp_path, folder, teacher_of_folder, cluster):
    output, lost = StringIO(), []
    killer = threading.Thread(target=lose_a_node_in_the_middle, args=(cluster, tmp_path / "two", lost), daemon=True)
    killer.start()
    settings = options(tmp_path / "two", teacher_of_folder, data=str(folder), **STEPS)
    run = bench(methods="fgfi", seeds=2, ray="auto", console=Console(file=output, width=200), **settings)
    killer.join(60)
    assert len(lost[0]) == 2  # both cells were in training
    assert run.exit_code == 0, output.getvalue()
    assert output.getvalue().count("its worker was lost") == 1
    logs = [path.read_text() for path in (tmp_path / "two").glob("ray-*.log")]
    assert len(logs) >= 2
    begun = Counter(line for log in logs for line in log.splitlines() if "cell " in line)
    assert sorted(begun.values()) == [1, 1, 1, 2]  # the cell of the lost node was begun and resumed
    outcome(tmp_path / "one", teacher_of_folder, methods="fgfi", data=str(folder), **STEPS)
    assert [weights(tmp_path / "two" / cell) for cell in CELLS] == [weights(tmp_path / "one" / cell) for cell in CELLS]


@pytest.mark.slow
def test_a_cell_that_fails_on_a_node_is_named_and_the_others_are_trained(tmp_path, folder, teacher_of_folder, cluster):
    (tmp_path / "m" / "none-seed1" / "results.json").mkdir(parents=True)  # can't be written
    output = StringIO()
    settings = options(tmp_path / "m", teacher_of_folder, data=str(folder), max_steps=1)
    run = bench(methods="none", seeds=2, ray="auto", console=Console(file=output, width=400), **settings)
    assert (run.unfinished, run.exit_code) == (("none-seed1",), 2)
    assert "none-seed1 failed" in output.getvalue()
    assert _resources(4, "auto") == {"num_cpus": 1, "num_gpus": 0}  # no node has more than one core


@pytest.mark.slow
def test_a_cluster_is_started_for_one_command(tmp_path, folder, teacher_of_folder):
    run = outcome(
        tmp_path / "m", teacher_of_folder, methods="none", seeds=1, data=str(folder), max_steps=1, ray="local"
    )
    assert run.exit_code == 0
    assert not ray.is_initialized()


def matrix(tmp_path, teacher):
    settings = options(tmp_path / "m", teacher, data="demo")
    shared = {name: value for name, value in settings.items() if name != "out"}
    return Matrix(tmp_path / "m", shared, {NONE: BASELINE}, 1)


def test_only_the_lock_of_a_worker_of_this_comparison_is_removed(tmp_path, teacher):
    of = matrix(tmp_path, teacher)
    (cell,) = of.cells()
    lock = RunLock(of.directory(cell).folder)
    _remove_lock_of_lost_worker(of, cell)  # there is none
    lock.take()
    _remove_lock_of_lost_worker(of, cell)
    host, pid = lock.owner()
    (of.folder / f"ray-{host}-{pid}.log").touch()
    assert lock.path.exists()
    _remove_lock_of_lost_worker(of, cell)
    assert not lock.path.exists()
    assert lock.owner() is None


def test_contradicting_options_are_refused(tmp_path, teacher):
    settings = options(tmp_path / "m", teacher, data="demo")
    with pytest.raises(InputError, match="leave out --jobs"):
        bench(ray="local", jobs=2, **settings)
    with pytest.raises(InputError, match="needs the address"):
        bench(ray=" ", **settings)
    with pytest.raises(InputError, match="leave out --devices"):
        bench(ray="local", **settings | {"devices": 2})


def test_a_missing_package_or_cluster_is_one_sentence(tmp_path, folder, teacher_of_folder, monkeypatch):
    settings = options(tmp_path / "m", teacher_of_folder, data=str(folder), max_steps=1)
    for address in ("127.0.0.1:1", "no address"):
        with pytest.raises(InputError, match=rf"--ray {address}: there is no such cluster .*`ray start --head`"):
            bench(methods="none", seeds=1, ray=address, console=Console(quiet=True), **settings)

    def missing(name, *arguments, **keywords):
        if name.partition(".")[0] == "ray":
            raise ImportError(name)
        return imported(name, *arguments, **keywords)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(InputError, match=r'pip install "defeat-detection\[ray\]"'):
        bench(ray="local", **settings)
