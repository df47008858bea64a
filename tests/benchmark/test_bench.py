"""The matched comparison: cells that differ only in the method, and that can be stopped, shared and merged."""

import json
import shlex
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from defeat.assembly.run import run
from defeat.assembly.settings import DistillSettings
from defeat.benchmark import BenchRun, bench
from defeat.benchmark.matrix import NONE, Cell, Matrix, chosen_cells, variants_of
from defeat.cli import main
from defeat.detector import save_model
from defeat.distillation import METHODS, DeFeat, method_defaults
from defeat.engine.logs import Checkpoint
from defeat.errors import InputError
from tests.benchmark.benches import figures, options, outcome, run_bench
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import CLASSES, weights
from tests.reliability.test_locks import locked_by

pytestmark = pytest.mark.usefixtures("small_demo")
ZERO_WEIGHTS = {"defeat": {"object_weight": 0.0, "background_weight": 0.0}}


@pytest.fixture
def trained(monkeypatch):
    """Names of the cells that are started, in order."""
    names = []

    def recorded(settings, console):
        names.append(Path(settings.out).name)
        return run(settings, console)

    monkeypatch.setattr("defeat.benchmark.run.run", recorded)
    return names


@pytest.mark.slow
def test_all_cells_of_a_seed_share_weights_and_order_of_the_data(tmp_path, teacher):
    # Zero weights must give the baseline bit for bit, per seed; different seeds must give different weights.
    result = run_bench(tmp_path / "m", teacher, method_options=ZERO_WEIGHTS)
    models = {
        cell: weights(tmp_path / "m" / cell) for cell in ("none-seed0", "none-seed1", "defeat-seed0", "defeat-seed1")
    }
    assert models["defeat-seed0"] == models["none-seed0"]
    assert models["defeat-seed1"] == models["none-seed1"]
    assert models["none-seed0"] != models["none-seed1"]
    (defeat,) = result.others
    assert defeat.gain.by_seed == (0.0, 0.0)
    assert (defeat.gain.over_images.low, defeat.gain.over_images.high) == (0.0, 0.0)
    assert not defeat.gain.significant


def test_cells_and_teacher_are_evaluated_on_the_test_split(tmp_path, teacher):
    result = run_bench(tmp_path / "m", teacher, seeds=1)
    assert result.images == 4
    assert json.loads((tmp_path / "m" / "teacher.json").read_text())["split"] == "test"
    assert json.loads((tmp_path / "m" / "none-seed0" / "results.json").read_text())["split"] == "test"


@pytest.mark.slow
def test_each_cell_gets_the_schedule_that_suits_it(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr("defeat.engine.optimisation.MANY_STEPS", 4)
    folder = tmp_path / "m"
    for _ in range(2):  # repeated, it keeps them
        result = run_bench(folder, teacher, methods="none,none+inherit,defeat", seeds=1)
        assert result.missing == ()
        expected = "Learning rate schedules: flat_cosine for none; cosine for none+inherit, defeat."
        assert result.schedules().startswith(expected)
        assert expected in (folder / "report.html").read_text()
        cells = ("none", "none-inherit", "defeat")
        configs = [yaml.safe_load((folder / f"{cell}-seed0" / "config.yaml").read_text()) for cell in cells]
        assert [config["schedule"] for config in configs] == ["flat_cosine", "cosine", "cosine"]
        assert yaml.safe_load((folder / "bench.yaml").read_text())["settings"]["schedule"] == "auto"


@pytest.mark.slow
def test_a_resumed_comparison_equals_an_uninterrupted_one(tmp_path, teacher, monkeypatch):
    run_bench(tmp_path / "whole", teacher, epochs=2)
    original, seen = Checkpoint.on_train_batch_end, []

    def stopping(self, trainer, *arguments):
        seen.append(trainer.global_step)
        self.stop = len(seen) == 14  # in the second cell: each has eight steps
        return original(self, trainer, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "on_train_batch_end", stopping)
        given = options(tmp_path / "stopped", teacher, epochs=2)
        assert bench(methods="defeat", seeds=2, console=Console(quiet=True), **given) == BenchRun(stopped=True)
    assert (tmp_path / "stopped" / "none-seed0" / "results.json").exists()
    assert not (tmp_path / "stopped" / "defeat-seed0" / "results.json").exists()
    run_bench(tmp_path / "stopped", teacher, epochs=2)
    assert figures(tmp_path / "stopped") == figures(tmp_path / "whole")
    assert weights(tmp_path / "stopped" / "defeat-seed0") == weights(tmp_path / "whole" / "defeat-seed0")


@pytest.mark.slow
def test_a_cell_that_was_killed_before_its_first_checkpoint_starts_again(tmp_path, teacher):
    cell = tmp_path / "m" / "none-seed0"
    cell.mkdir(parents=True)
    (cell / "config.yaml").write_text("command: train\nschedule: flat_cosine\n")
    assert run_bench(tmp_path / "m", teacher, seeds=1) is not None


@pytest.mark.slow
def test_a_cell_that_another_process_trains_is_skipped(tmp_path, teacher):
    locked_by(tmp_path / "m" / "defeat-seed0")
    first = outcome(tmp_path / "m", teacher)
    assert first.result.missing == first.unfinished == ("defeat-seed0",)
    assert first.exit_code == 2  # so that a scheduler tries again
    assert not (tmp_path / "m" / "defeat-seed0" / "config.yaml").exists()
    (tmp_path / "m" / "defeat-seed0" / ".lock").unlink()
    assert run_bench(tmp_path / "m", teacher).missing == ()


@pytest.mark.slow
def test_a_comparison_can_be_extended(tmp_path, teacher, trained):
    run_bench(tmp_path / "m", teacher, seeds=1)
    before = (tmp_path / "m" / "none-seed0" / "results.json").stat().st_mtime_ns
    grown = outcome(tmp_path / "m", teacher, methods="fgfi", seeds=2)
    assert trained == ["none-seed0", "defeat-seed0", "fgfi-seed0", "none-seed1", "fgfi-seed1"]
    assert [other.name for other in grown.result.others] == ["defeat", "fgfi"]
    assert grown.result.baseline.seeds == (0, 1)
    assert (grown.result.missing, grown.unfinished, grown.exit_code) == (
        ("defeat-seed1",),
        (),
        0,
    )  # it was not requested
    assert (tmp_path / "m" / "none-seed0" / "results.json").stat().st_mtime_ns == before


@pytest.mark.slow
def test_cells_of_an_extended_comparison_have_the_numbers_of_its_plan(tmp_path, teacher, trained, capsys):
    run_bench(tmp_path / "m", teacher, seeds=1, max_steps=1, cells="1")
    run_bench(tmp_path / "m", teacher, methods="none,fgfi,defeat", seeds=1, max_steps=1, plan=True)
    table = [line.split() for line in capsys.readouterr().out.splitlines()]
    (number,) = [line[0] for line in table if line[1:3] == ["fgfi", "0"]]
    run_bench(tmp_path / "m", teacher, methods="none,fgfi,defeat", seeds=1, max_steps=1, cells=number)
    assert trained == ["none-seed0", "fgfi-seed0"]


@pytest.mark.slow
def test_a_cell_that_fails_is_named_and_the_others_are_trained(tmp_path, teacher, monkeypatch, capsys):
    def failing(settings, console):
        if getattr(settings, "method", NONE) == "fgfi":
            raise InputError("The loss is not finite.")
        return run(settings, console)

    with monkeypatch.context() as patch:
        patch.setattr("defeat.benchmark.run.run", failing)
        given = options(tmp_path / "m", teacher, max_steps=1)
        done = bench(methods="fgfi,defeat", seeds=1, console=Console(), **given)
    assert "fgfi-seed0 failed: The loss is not finite." in capsys.readouterr().out
    assert (done.unfinished, done.exit_code) == (("fgfi-seed0",), 2)
    assert [other.name for other in done.result.others] == ["defeat"]
    assert done.result.missing == ("fgfi-seed0",)
    again = outcome(tmp_path / "m", teacher, methods="fgfi,defeat", seeds=1, max_steps=1)
    assert (again.unfinished, again.exit_code, again.result.missing) == ((), 0, ())


def test_a_teacher_that_has_changed_is_refused(tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1, max_steps=1)
    save_model(tiny_detector("retinanet", seed=5, classes=CLASSES, neck_channels=24), teacher)
    with pytest.raises(InputError, match=r"was started with another teacher: the weights of .* have changed"):
        run_bench(tmp_path / "m", teacher, seeds=2, max_steps=1)


def test_options_of_an_ablation_apply_to_all_variants_and_are_part_of_its_command():
    given = {"defeat": method_defaults("defeat") | {"adaptation_kernel": 3}, "imitation": method_defaults("imitation")}
    variants = variants_of("", "regions", given)
    assert {variant.options["adaptation_kernel"] for name, variant in variants.items() if name != NONE} == {3}
    template = DistillSettings(data="demo", teacher="demo", out="m")
    arguments = shlex.split(Matrix(Path("m"), Matrix.of(template, variants, 2).settings, variants, 2).command())
    assert "--ablate=regions" in arguments
    assert {"--defeat.adaptation-kernel=3", "--imitation.adaptation-kernel=3"} <= {*arguments}
    assert not [argument for argument in arguments if "weight" in argument and "decay" not in argument]
    # An option that a method was given itself is kept.
    both = given | {"imitation": method_defaults("imitation") | {"scale": "none"}}
    both["defeat"] = both["defeat"] | {"scale": "teacher"}
    assert variants_of("", "regions", both)["both, one weight"].options["scale"] == "none"


def test_a_comparison_of_methods_and_an_ablation_has_two_commands():
    template = DistillSettings(data="demo", teacher="demo", out="m")
    both = variants_of("fgfi", None, {"fgfi": {"phi": 0.3}}) | variants_of("", "regions", {})
    methods, ablation = Matrix(Path("m"), Matrix.of(template, both, 1).settings, both, 1).command().splitlines()
    assert "--methods=none,fgfi --fgfi.phi=0.3" in methods
    assert ablation.endswith("--ablate=regions")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.02}, "lr was 0.01 and is 0.02"),
        ({"method_options": {"defeat": {"object_weight": 9.0}}}, "defeat was .* and is .*9.0"),
    ],
)
def test_different_settings_are_refused_by_name(changes, message, tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1)
    with pytest.raises(InputError, match=message):
        run_bench(tmp_path / "m", teacher, seeds=1, **changes)


def test_a_plan_trains_and_writes_nothing(tmp_path, teacher, capsys):
    assert run_bench(tmp_path / "m", teacher, plan=True) is None
    assert "4 of 4 cells left: about" in capsys.readouterr().out
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_the_ablation_of_regions_removes_regions(tmp_path, teacher):
    result = run_bench(tmp_path / "m", teacher, seeds=1, ablate="regions", inherit="none")
    names = [other.name for other in result.others]
    assert names == ["object only", "background only", "both, one weight", "both, own weights"]
    logs = {
        name: (tmp_path / "m" / name / "metrics.jsonl").read_text()
        for name in ("object-only-seed0", "background-only-seed0")
    }
    assert "neck_object" in logs["object-only-seed0"]
    assert "neck_background" not in logs["object-only-seed0"]
    assert "neck_object" not in logs["background-only-seed0"]


def test_invalid_settings_of_later_cells_are_refused_at_once(tmp_path, teacher):
    with pytest.raises(InputError, match="name their folder with --unlabelled"):
        run_bench(tmp_path / "m", teacher, seeds=1, ablate="unlabelled")
    assert not (tmp_path / "m").exists()


@pytest.mark.slow
def test_fixed_and_balanced_weights_are_compared(tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1, ablate="balance", inherit="none", cells="1,3-5", max_steps=1)
    (tmp_path / "m" / "balance-0-5-seed0" / "results.json").unlink()  # as if it had been stopped
    run_bench(tmp_path / "m", teacher, seeds=1, ablate="balance", inherit="none", max_steps=1)
    weight = {}
    for name in ("published-weights", "default-weights", "balance-0-25", "balance-0-5", "balance-1"):
        config = yaml.safe_load((tmp_path / "m" / f"{name}-seed0" / "config.yaml").read_text())
        weight[name] = config["method_options"]
        assert config["balance"] is None
    assert weight["published-weights"]["background_weight"] == 12
    assert weight["default-weights"]["background_weight"] == method_defaults("defeat")["background_weight"]
    # Measured on the same batches, the weights are proportional to the ratios.
    for part in ("object_weight", "background_weight"):
        quarter, half, whole = (weight[f"balance-{ratio}"][part] for ratio in ("0-25", "0-5", "1"))
        assert (half / quarter, whole / half) == (pytest.approx(2, rel=0.01), pytest.approx(2, rel=0.01))
    matrix = Matrix.read(tmp_path / "m")
    assert matrix.variants["balance 0.25"].settings == {"balance": 0.25}


@pytest.mark.slow
def test_an_option_that_is_newer_than_the_folder_has_its_default(tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1, cells="1", max_steps=1)
    path = tmp_path / "m" / "bench.yaml"
    content = yaml.safe_load(path.read_text())
    content["variants"]["defeat"]["options"].pop("warmup", None)
    path.write_text(yaml.safe_dump(content))
    run_bench(tmp_path / "m", teacher, seeds=1, cells="1", max_steps=1, method_options={"defeat": {"warmup": 0.05}})
    other = {"defeat": {"warmup": 0.5}}
    with pytest.raises(InputError, match=r"defeat was \{'warmup': 0.05\} and is \{'warmup': 0.5\}\."):
        run_bench(tmp_path / "m", teacher, seeds=1, cells="1", max_steps=1, method_options=other)


@pytest.mark.parametrize(
    ("text", "numbers"), [(None, [1, 2, 3, 4]), ("2-3", [2, 3]), ("4,1", [1, 4]), ("1,1-2", [1, 2])]
)
def test_cells_are_chosen_by_number(text, numbers):
    assert chosen_cells(text, 4) == numbers


@pytest.mark.parametrize("text", ["0", "5", "3-5", "a", "", "1-", "3-2"])
def test_numbers_of_missing_cells_are_refused(text):
    with pytest.raises(InputError, match="--cells"):
        chosen_cells(text, 4)


@pytest.mark.slow
def test_cells_of_other_seeds_than_the_first_are_reported(tmp_path, teacher):
    # Machines that share the cells may finish another seed first.
    result = run_bench(tmp_path / "m", teacher, cells="1,3,4")
    assert [other.seeds for other in result.others] == [(1,)]
    assert "defeat" in (tmp_path / "m" / "report.html").read_text()


def test_cells_without_a_baseline_are_trained_but_not_reported(tmp_path, teacher, capsys):
    given = options(tmp_path / "m", teacher)
    run = bench(methods="defeat", seeds=1, cells="2", console=Console(), **given)
    assert (run.result, run.stopped) == (None, False)
    assert "no gains to report" in capsys.readouterr().out


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "bench.yaml").write_text("variants: 3\n")
    with pytest.raises(InputError, match="is damaged"):
        Matrix.read(tmp_path)


def test_the_baseline_has_no_settings_of_distillation(tmp_path, teacher):
    run_bench(tmp_path / "m", teacher, seeds=1, cells="1")
    matrix = Matrix.read(tmp_path / "m")
    assert not hasattr(matrix.cell_settings(Cell(1, NONE, 0)), "teacher")


@pytest.mark.slow
def test_options_of_each_method_are_set_on_the_command_line(tmp_path, teacher, capsys):
    recipe = tmp_path / "recipe.yaml"
    given = options(tmp_path / "m", teacher)
    for name in ("out", "data", "teacher", "teacher_weights", "classes", "max_steps"):
        del given[name]
    recipe.write_text(yaml.safe_dump(given | {"method": "tadf", "method_options": {"warmup": 0.2}, "seed": 4}))
    arguments = [
        "bench",
        "--config",
        str(recipe),
        "--data",
        "demo",
        "--teacher",
        str(teacher),
        "--out",
        str(tmp_path / "m"),
    ]
    arguments += ["--methods", "fgfi", "--seeds", "1", "--fgfi.phi", "0.3", "--max-steps", "2"]
    assert main(arguments) == 0
    assert "fgfi" in capsys.readouterr().out
    written = yaml.safe_load((tmp_path / "m" / "bench.yaml").read_text())
    assert list(written["variants"]) == ["none", "fgfi"]
    assert written["variants"]["fgfi"]["options"]["phi"] == 0.3
    assert main(["bench", "--merge", str(tmp_path / "m"), "--out", str(tmp_path / "joined")]) == 0
    assert (tmp_path / "joined" / "bench.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "fgfl"], "fgfi"),
        (["--ablate", "region"], "regions"),
        (["--seeds", "0"], "--seeds must be 1 or more"),
        (["--fgfi.phy", "1"], "--fgfi.phi"),
    ],
)
def test_a_wrong_argument_gives_a_one_line_message(arguments, message, tmp_path, teacher, capsys):
    base = ["bench", "--data", "demo", "--teacher", str(teacher), "--out", str(tmp_path / "m"), "--backbone", "x"]
    assert main([*base, *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


NETWORK = """
import torch

class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = torch.nn.Conv2d(3, 4, 3, 8, 1)
        self.deep = torch.nn.Conv2d(4, 6, 3, 2, 1)

    def forward(self, images):
        if isinstance(images, list):
            box = torch.tensor([[5.0, 5.0, 40.0, 40.0]])
            return [{"boxes": box, "labels": torch.tensor([1]), "scores": torch.tensor([0.9])} for _ in images]
        return self.deep(self.stem(images))

def make():
    torch.manual_seed(0)
    return Network()
"""


@pytest.mark.slow
@pytest.mark.parametrize("predicts", [False, True])
def test_a_network_of_the_users_code_is_the_teacher_of_a_comparison(predicts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("network.py").write_text(NETWORK)
    taps = {"neck": {8: "stem", 16: "deep"}, "takes": "tensor"}
    Path("taps.yaml").write_text(yaml.safe_dump(taps | ({"predict": True, "classes": [*CLASSES]} if predicts else {})))
    result = run_bench(tmp_path / "m", "network.py:make", seeds=1, max_steps=1, teacher_taps="taps.yaml")
    assert [other.name for other in result.others] == ["defeat"]
    teacher = json.loads(Path("m/teacher.json").read_text())
    assert teacher["split"] == "test"
    assert teacher["fingerprint"]
    assert (result.teacher.get("AP") is not None) == predicts
    assert Path("m/teacher.safetensors").exists() == predicts
    assert "network.py:make" in Path("m/report.html").read_text()
    again = run_bench(tmp_path / "m", "network.py:make", seeds=1, max_steps=1, teacher_taps="taps.yaml")
    assert again.baseline == result.baseline


def test_a_method_of_the_user_is_compared_under_a_name(tmp_path, teacher, monkeypatch):
    class Mine(DeFeat):
        """The class of a user."""

    monkeypatch.setitem(METHODS, "mine", Mine)
    given = {"method_options": {"mine": {"object_weight": 0.5}}, "max_steps": 1}
    result = run_bench(tmp_path / "m", teacher, methods="mine", seeds=1, **given)
    assert [other.name for other in result.others] == ["mine"]
    assert (tmp_path / "m" / "report.html").is_file()
