"""Methods held against the student alone, on invented runs."""

import io

import pytest
import torch
from rich.console import Console

from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import Evaluator
from defeat.report.gains import Bootstrap
from defeat.report.matrix_page import of_one_seed
from defeat.report.runs import read_run
from defeat.report.tables import by_seed, print_matrix
from defeat.report.variants import compare_variants
from defeat.report.verdict import verdicts
from defeat.types import Detections, Target
from tests.report.made_up_runs import write_run

IMAGES = 40
NAMES = ("cat", "dog")


def found_part(folder, part: float, **changes):
    """A run that found this part of the one object in each image, in a fixed order of the images."""
    evaluator = Evaluator(NAMES)
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    for image in range(IMAGES):
        label = torch.tensor([image % 2])
        target = Target(box, label, torch.tensor([False]), torch.tensor([False]), image, (100, 100))
        hit = (image // 2 * 7 % (IMAGES // 2)) < part * (IMAGES // 2)
        detections = Detections(box if hit else box + 40, torch.tensor([0.9]), label)
        evaluator.update([detections], [target])
    figures = evaluator.compute()
    given = {"metrics": figures.metrics, "per_class": figures.per_class, "images": IMAGES} | changes
    write_run(folder, figures.metrics["AP"], **given)
    save_detections(folder / "detections.safetensors", evaluator)
    return read_run(folder)


def distilled(folder, part, seed, **changes):
    return found_part(folder, part, command="distill", method="defeat", seed=seed, **changes)


@pytest.fixture
def runs(tmp_path):
    alone = [found_part(tmp_path / f"none{seed}", part, seed=seed) for seed, part in enumerate([0.4, 0.5, 0.45])]
    better = [distilled(tmp_path / f"d{seed}", part, seed) for seed, part in enumerate([0.75, 0.85, 0.85])]
    return {"none": alone, "defeat": better}


def test_a_large_gain_is_shown_in_words_and_figures(runs):
    result = compare_variants(runs, {"AP": 90.0}, samples=1000)
    (defeat,) = result.others
    alone_ap, ap = [run.metrics["AP"] for run in runs["none"]], [run.metrics["AP"] for run in runs["defeat"]]
    assert defeat.ap == tuple(ap)
    assert defeat.gain.by_seed == pytest.approx([after - before for before, after in zip(alone_ap, ap, strict=True)])
    assert defeat.gain.mean == pytest.approx((sum(ap) - sum(alone_ap)) / 3)
    assert defeat.gap_closed == pytest.approx(100 * defeat.gain.mean / (90 - sum(alone_ap) / 3))
    assert 0 < defeat.gain.over_images.low < defeat.gain.mean < defeat.gain.over_images.high
    assert defeat.gain.shown
    assert "a gain, shown" in result.verdict()
    assert set(defeat.class_gains) == set(NAMES)
    assert result.images == IMAGES


def test_a_gain_that_chance_can_explain_is_not_shown(runs, tmp_path):
    runs["defeat"] = [distilled(tmp_path / f"n{seed}", part, seed) for seed, part in enumerate([0.5, 0.45, 0.5])]
    (defeat,) = compare_variants(runs, {"AP": 90.0}, samples=1000).others
    assert defeat.gain.mean > 0
    assert not defeat.gain.shown
    assert defeat.sentence(IMAGES).endswith("not shown.")


def test_a_loss_that_is_shown_is_called_a_loss(runs):
    turned = {"none": [], "defeat": runs["none"]}
    turned["none"] = runs["defeat"]
    (defeat,) = compare_variants(turned, {"AP": 90.0}, samples=1000).others
    assert defeat.sentence(IMAGES).endswith("a loss, shown.")


def test_the_same_detections_gain_nothing_on_any_sample(runs):
    (defeat,) = compare_variants({"none": runs["none"], "defeat": runs["none"]}, {}, samples=1000).others
    assert (defeat.gain.over_images.low, defeat.gain.over_images.high) == (0, 0)
    assert defeat.gap_closed is None


def test_seeds_that_the_student_alone_lacks_are_left_out(runs):
    (defeat,) = compare_variants({"none": runs["none"][:2], "defeat": runs["defeat"]}, {}, samples=1000).others
    assert defeat.seeds == (0, 1)


def test_one_seed_cannot_show_anything(runs):
    (defeat,) = compare_variants({name: some[:1] for name, some in runs.items()}, {}, samples=1000).others
    assert defeat.gain.over_seeds is None
    assert "one seed cannot tell" in defeat.sentence(IMAGES)


def test_without_detections_there_is_no_interval_over_images(runs):
    (runs["defeat"][1].folder / "detections.safetensors").unlink()
    (defeat,) = compare_variants(runs, {}, samples=1000).others
    assert defeat.gain.over_images is None
    assert not defeat.gain.shown


def test_the_verdict_on_one_pair_says_what_other_images_could_show(runs, tmp_path):
    (verdict,) = verdicts([runs["none"][0], runs["defeat"][0]])
    assert not verdict.over_images.holds_zero
    assert "not shown" not in verdict.sentence
    close = distilled(tmp_path / "close", 0.45, 0)
    (verdict,) = verdicts([runs["none"][0], close])
    assert verdict.gain > 0
    assert verdict.over_images.holds_zero
    assert verdict.sentence.endswith(": not shown.")
    assert f"95 % interval over the {IMAGES} test images" in verdict.caution


def test_detections_of_another_split_are_refused(runs, tmp_path):
    run = distilled(tmp_path / "other", 0.9, 0, images=12)
    with pytest.raises(InputError, match=r"holds 40 images, but the run was tested on 12: `defeat evaluate"):
        Bootstrap(run, 1000).gain([(runs["none"][0], run)])


def test_a_teacher_without_a_lead_leaves_no_gap_to_close(runs):
    (defeat,) = compare_variants(runs, {"AP": 1.0}, samples=1000).others
    assert defeat.gap_closed is None


def test_runs_that_differ_in_more_than_the_method_are_refused(runs, tmp_path):
    runs["defeat"][0] = distilled(tmp_path / "longer", 0.9, 0, epochs=24)
    with pytest.raises(InputError, match="can't be compared: epochs"):
        compare_variants(runs, {}, samples=1000)


def test_without_the_student_alone_there_is_nothing_to_compare(runs):
    with pytest.raises(InputError, match="nothing to compare"):
        compare_variants({"defeat": runs["defeat"]}, {}, samples=1000)


def test_rows_of_other_seeds_say_so_and_have_a_gap_for_each_missing_run(runs):
    result = compare_variants({"none": runs["none"], "defeat": runs["defeat"][1:2]}, {}, samples=1000)
    (defeat,) = result.others
    assert by_seed(defeat, result) == f"- {defeat.ap[0]:.1f} -"
    assert "By seed: 0, 1, 2; - stands for a run that is not there." in result.unequal_seeds()
    stream = io.StringIO()
    print_matrix(result, Console(file=stream, width=200))
    assert "- stands for a run" in stream.getvalue()
    assert compare_variants(runs, {}, samples=1000).unequal_seeds() == ""


def test_the_gain_of_each_class_is_printed_for_each_method(runs):
    result = compare_variants(runs | {"same": runs["none"]}, {}, samples=1000)
    stream = io.StringIO()
    print_matrix(result, Console(file=stream, width=200))
    table = stream.getvalue().partition("gain of class")[2]
    for name in NAMES:
        (line,) = [line for line in table.splitlines() if line.startswith(name)]
        assert line.split() == [name, f"{result.others[0].class_gains[name].mean:+.1f}", "+0.0"]


def test_sections_of_a_page_show_runs_of_one_seed(runs):
    some = {"none": runs["none"], "defeat": runs["defeat"][1:2], "other": runs["defeat"][1:]}
    assert of_one_seed(some, "none") == [runs["none"][1], runs["defeat"][1], runs["defeat"][1]]
    assert of_one_seed({"defeat": runs["defeat"], "none": runs["none"]}, "none") == [runs["none"][0], runs["defeat"][0]]
