"""Methods compared with the baseline, on invented runs."""

import io
import json
import re
from pathlib import Path

import pytest
import torch
from rich.console import Console

from defeat.errors import InputError
from defeat.evaluation.detections import save_detections
from defeat.evaluation.evaluator import Evaluator
from defeat.report.gains import Bootstrap
from defeat.report.matrix_page import of_one_seed, write_matrix
from defeat.report.runs import read_run
from defeat.report.tables import by_seed, print_matrix
from defeat.report.variants import baseline_of, compare_variants
from defeat.report.verdict import verdicts
from defeat.types import Detections, Target
from tests.report.made_up_runs import write_run

IMAGES = 40
NAMES = ("cat", "dog")
BENCH_OF_0_1 = Path(__file__).parents[1] / "compatibility" / "version_0_1" / "bench" / "bench.json"


def run_with_recall(folder, recall: float, **changes):
    """A run that detects the one object of this share of the images, in a fixed order of the images."""
    evaluator = Evaluator(NAMES)
    box = torch.tensor([[10.0, 10.0, 60.0, 60.0]])
    for image in range(IMAGES):
        label = torch.tensor([image % 2])
        target = Target(box, label, torch.tensor([False]), torch.tensor([False]), image, (100, 100))
        hit = (image // 2 * 7 % (IMAGES // 2)) < recall * (IMAGES // 2)
        detections = Detections(box if hit else box + 40, torch.tensor([0.9]), label)
        evaluator.update([detections], [target])
    result = evaluator.compute()
    given = {"metrics": result.metrics, "per_class": result.per_class, "images": IMAGES} | changes
    write_run(folder, result.metrics["AP"], **given)
    save_detections(folder / "detections.safetensors", evaluator)
    return read_run(folder)


def distilled(folder, recall, seed, **changes):
    return run_with_recall(folder, recall, command="distill", method="defeat", seed=seed, **changes)


@pytest.fixture
def runs(tmp_path):
    recalls = {"none": [0.4, 0.5, 0.45], "defeat": [0.75, 0.85, 0.85]}
    baselines = [run_with_recall(tmp_path / f"n{seed}", part, seed=seed) for seed, part in enumerate(recalls["none"])]
    better = [distilled(tmp_path / f"d{seed}", part, seed) for seed, part in enumerate(recalls["defeat"])]
    return {"none": baselines, "defeat": better}


def test_a_large_gain_is_significant_in_words_and_figures(runs):
    result = compare_variants(runs, {"AP": 90.0}, samples=1000)
    (defeat,) = result.others
    before, ap = ([run.metrics["AP"] for run in runs[name]] for name in ("none", "defeat"))
    assert defeat.ap == tuple(ap)
    assert defeat.gain.by_seed == pytest.approx([new - old for old, new in zip(before, ap, strict=True)])
    assert defeat.gain.mean == pytest.approx((sum(ap) - sum(before)) / 3)
    assert defeat.gap_closed == pytest.approx(100 * defeat.gain.mean / (90 - sum(before) / 3))
    assert 0 < defeat.gain.over_images.low < defeat.gain.mean < defeat.gain.over_images.high
    assert defeat.gain.significant
    assert "a significant gain" in result.verdict()
    assert set(defeat.class_gains) == set(NAMES)
    assert result.images == IMAGES


def test_a_gain_within_the_noise_is_not_significant(runs, tmp_path):
    runs["defeat"] = [distilled(tmp_path / f"close{seed}", part, seed) for seed, part in enumerate([0.5, 0.45, 0.5])]
    (defeat,) = compare_variants(runs, {"AP": 90.0}, samples=1000).others
    assert defeat.gain.mean > 0
    assert not defeat.gain.significant
    assert defeat.sentence(IMAGES).endswith("not significant.")


def test_a_significant_loss_is_called_a_loss(runs):
    swapped = {"none": runs["defeat"], "defeat": runs["none"]}
    (defeat,) = compare_variants(swapped, {"AP": 90.0}, samples=1000).others
    assert defeat.sentence(IMAGES).endswith("a significant loss.")


def test_the_same_detections_gain_nothing_on_any_sample(runs):
    (defeat,) = compare_variants({"none": runs["none"], "defeat": runs["none"]}, {}, samples=1000).others
    assert (defeat.gain.over_images.low, defeat.gain.over_images.high) == (0, 0)
    assert defeat.gap_closed is None


def test_seeds_without_a_baseline_are_left_out(runs):
    (defeat,) = compare_variants({"none": runs["none"][:2], "defeat": runs["defeat"]}, {}, samples=1000).others
    assert defeat.seeds == (0, 1)


def test_one_seed_gives_no_significant_gain(runs):
    (defeat,) = compare_variants({name: seeds[:1] for name, seeds in runs.items()}, {}, samples=1000).others
    assert defeat.gain.over_seeds is None
    assert "one seed gives no interval" in defeat.sentence(IMAGES)


def test_without_detections_there_is_no_interval_over_images(runs):
    (runs["defeat"][1].folder / "detections.safetensors").unlink()
    (defeat,) = compare_variants(runs, {}, samples=1000).others
    assert defeat.gain.over_images is None
    assert not defeat.gain.significant


def test_the_verdict_on_one_pair_has_an_interval_over_images(runs, tmp_path):
    (verdict,) = verdicts([runs["none"][0], runs["defeat"][0]])
    assert not verdict.over_images.contains_zero
    assert "not significant" not in verdict.sentence
    close = distilled(tmp_path / "close", 0.45, 0)
    (verdict,) = verdicts([runs["none"][0], close])
    assert verdict.gain > 0
    assert verdict.over_images.contains_zero
    assert verdict.sentence.endswith(": not significant.")
    assert f"95 % interval over the {IMAGES} test images" in verdict.caution


def test_detections_of_another_split_are_refused(runs, tmp_path):
    run = distilled(tmp_path / "other", 0.9, 0, images=12)
    with pytest.raises(InputError, match=r"40 images, but the run was evaluated on 12: .* `defeat evaluate"):
        Bootstrap(run, 1000).gain([(runs["none"][0], run)])


def test_a_teacher_that_is_not_better_leaves_no_gap_to_close(runs):
    (defeat,) = compare_variants(runs, {"AP": 1.0}, samples=1000).others
    assert defeat.gap_closed is None


def test_runs_that_differ_in_more_than_the_method_are_refused(runs, tmp_path):
    runs["defeat"][0] = distilled(tmp_path / "longer", 0.9, 0, epochs=24)
    with pytest.raises(InputError, match="can't be compared: epochs"):
        compare_variants(runs, {}, samples=1000)


def test_without_a_baseline_there_is_nothing_to_compare(runs):
    with pytest.raises(InputError, match="nothing to compare"):
        compare_variants({"defeat": runs["defeat"]}, {}, samples=1000)


def test_a_missing_seed_is_marked_and_explained(runs):
    result = compare_variants({"none": runs["none"], "defeat": runs["defeat"][1:2]}, {}, samples=1000)
    (defeat,) = result.others
    assert by_seed(defeat, result) == f"- {defeat.ap[0]:.1f} -"
    assert "By seed: 0, 1, 2; - marks a missing run." in result.unequal_seeds()
    stream = io.StringIO()
    print_matrix(result, Console(file=stream, width=200))
    assert "- marks a missing run" in stream.getvalue()
    assert compare_variants(runs, {}, samples=1000).unequal_seeds() == ""
    assert result.schedules() == ""


def test_the_gain_per_class_is_printed_for_each_method(runs):
    result = compare_variants(runs | {"same": runs["none"]}, {}, samples=1000)
    stream = io.StringIO()
    print_matrix(result, Console(file=stream, width=200))
    table = stream.getvalue().partition("gain per class")[2]
    for name in NAMES:
        (line,) = [line for line in table.splitlines() if line.startswith(name)]
        assert line.split() == [name, f"{result.others[0].class_gains[name].mean:+.1f}", "+0.0"]


@pytest.mark.parametrize(
    ("width", "titles"),
    [
        (120, "method AP by seed gain 95 % seeds 95 % images gap closed over none+inherit"),
        (100, "method AP gain 95 % seeds 95 % images gap closed over none+inherit"),
        (80, "method AP gain gap closed over none+inherit"),
    ],
)
def test_a_table_omits_columns_that_do_not_fit(runs, width, titles):
    names = ("imitation+inherit", "defeat+inherit", "tadf+inherit", "fgfi+inherit")
    result = compare_variants(
        runs | {"none+inherit": runs["none"]} | dict.fromkeys(names, runs["defeat"]), {}, samples=1000
    )
    stream = io.StringIO()
    print_matrix(result, Console(file=stream, width=width))
    lines = stream.getvalue().splitlines()
    assert " ".join(lines[0].split()) == titles
    for name in names:
        assert any(line.startswith(f"{name} ") for line in lines)
    (classes,) = [line for line in lines if line.startswith("gain per class ")]
    assert set(classes.removeprefix("gain per class ").split()) <= {*names, "none+inherit", "defeat"}


def test_sections_of_a_page_use_runs_of_one_seed(runs):
    unequal = {"none": runs["none"], "defeat": runs["defeat"][1:2], "other": runs["defeat"][1:]}
    assert of_one_seed(unequal, "none") == [runs["none"][1], runs["defeat"][1], runs["defeat"][1]]
    assert of_one_seed({"defeat": runs["defeat"], "none": runs["none"]}, "none") == [runs["none"][0], runs["defeat"][0]]


def test_a_result_file_names_the_baseline_and_the_key_of_version_0_1_is_read_too(runs):
    content = compare_variants(runs, {}, samples=1000).to_dict()
    assert "alone" not in content
    assert baseline_of(content) == content["baseline"]
    old = json.loads(BENCH_OF_0_1.read_text())
    assert "baseline" not in old
    assert baseline_of(old) == old["alone"]


@pytest.fixture
def many(runs, tmp_path):
    """Twelve methods with one seed; the third is the best, the others are worse the later they come."""
    methods = {"none": runs["none"][:1]}
    for number in range(12):
        part = 0.9 if number == 2 else 0.85 - 0.05 * number
        changes = {"train_seconds": 3725.0 * (1 + 0.1 * number)}
        methods[f"method{number}"] = [distilled(tmp_path / f"m{number}", part, 0, **changes)]
    return methods


def test_methods_are_ordered_by_their_gain(many):
    result = compare_variants(many, {"AP": 90.0}, samples=1000)
    assert [other.name for other in result.others] == list(many)[1:]
    assert [other.name for other in result.ranked[:3]] == ["method2", "method0", "method1"]
    assert result.best is result.ranked[0]


def test_the_page_of_many_methods_shows_all_gains_and_the_curves_of_the_best(many, tmp_path):
    result = compare_variants(many, {"AP": 90.0}, samples=1000)
    html = write_matrix(result, many, None, tmp_path / "report.html", "defeat bench").read_text()
    assert html.index("<h2>Gain over the baseline") < html.index("<h2>Gain and cost") < html.index("<h2>Gain per class")
    heat = html.partition('<table class="heat">')[2].partition("</table>")[0]
    assert re.findall(r'scope="col">(\w+)', heat) == ["class", *[other.name for other in result.ranked]]
    gain = result.best.class_gains["cat"].mean
    assert re.search(rf'cat</th><td style="--side:var\(--good\);--part:\d+">{re.escape(f"{gain:+.1f}")}</td>', heat)
    losses = html.partition("<h2>Losses</h2>")[2]
    drawn = re.findall(r"<h3>(\w+)</h3>", losses.partition("<h2>")[0])
    assert drawn == ["n0", *[f"m{number}" for number in range(5)]]
    assert "the other 7 have a report of their own" in html


def test_a_single_method_has_no_heat_map_and_no_plot_of_costs(runs, tmp_path):
    result = compare_variants(runs, {"AP": 90.0}, samples=1000)
    html = write_matrix(result, runs, None, tmp_path / "report.html", "defeat bench").read_text()
    assert 'class="heat"' not in html
    assert "Gain and cost" not in html


def test_the_table_of_classes_has_the_columns_of_the_best_methods(many):
    stream = io.StringIO()
    result = compare_variants(many, {"AP": 90.0}, samples=1000)
    print_matrix(result, Console(file=stream, width=200))
    (head,) = [line for line in stream.getvalue().splitlines() if "gain per class" in line]
    assert head.split()[3:] == [other.name for other in result.ranked[:6]]
