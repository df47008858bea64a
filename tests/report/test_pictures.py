"""Pictures of a report: what is drawn, which images are chosen, and the note where data are missing."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from defeat.evaluation.bootstrap import Interval
from defeat.evaluation.detections import read_detections
from defeat.evaluation.operating_points import best_points
from defeat.inference import fonts
from defeat.inference.drawing import draw_detections, draw_target, paint_heat, paint_regions
from defeat.report import pictures
from defeat.report.figures import GainRow, forest_plot
from defeat.report.pictures import data_uri, differences_from_teacher, error_strips, image_changes, make_gallery
from defeat.report.runs import read_run
from defeat.report.sections import errors_section, gallery_section, loss_share, mistakes_section, operating_section
from defeat.report.verdict import verdicts
from defeat.types import Detections, Target
from tests.detector.tiny import tiny_detector
from tests.engine.tiny_runs import save_teacher, tiny_run
from tests.report.made_up_runs import write_run
from tests.report.test_variants import distilled, run_with_recall

GREY = torch.full((3, 20, 40), 100, dtype=torch.uint8)


def test_a_region_is_tinted_and_the_rest_is_unchanged():
    region = torch.zeros(2, 4)  # a cell is 10 x 10 pixels
    region[1, 2] = 1
    painted = paint_regions(GREY, [region], [(255, 0, 0)])
    changed = (painted != GREY).any(dim=0)
    assert changed[10:20, 20:30].all()
    assert changed.sum() == 100
    assert painted[0, 15, 25] > 100 > painted[1, 15, 25]


def test_zero_heat_leaves_a_grey_image_and_full_heat_is_yellow():
    assert torch.equal(paint_heat(GREY, torch.zeros(2, 4)), GREY)
    red, green, blue = paint_heat(GREY, torch.ones(2, 4))[:, 5, 5].tolist()
    assert red > 200
    assert green > 200
    assert blue < 30


def test_difficult_boxes_are_not_drawn():
    box = torch.tensor([[2.0, 2.0, 30.0, 18.0]])
    true, false = torch.tensor([True]), torch.tensor([False])
    label = torch.tensor([0])
    assert torch.equal(draw_target(GREY, Target(box, label, true, false, 0, (20, 40)), ["cat"]), GREY)
    assert not torch.equal(draw_target(GREY, Target(box, label, false, false, 0, (20, 40)), ["cat"]), GREY)


def test_a_data_uri_contains_the_picture():
    kind, _, content = data_uri(GREY).partition(",")
    assert kind == "data:image/jpeg;base64"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(content))))
    assert picture.shape == (20, 40, 3)
    assert abs(int(picture.mean()) - 100) <= 1


@pytest.mark.parametrize("family", ["retinanet", "faster_rcnn"])
def test_features_differ_from_those_of_another_detector_only(family):
    teacher, other = tiny_detector(family, seed=1), tiny_detector(family, seed=2)
    batch = teacher.prepare([torch.randint(256, (3, 60, 90), dtype=torch.uint8)], [Target.empty(0, (60, 90))])
    differences = differences_from_teacher({"teacher": teacher, "same": teacher, "other": other}, batch)
    assert differences["same"].max() == 0
    assert differences["other"].max() > 0
    assert differences["other"].shape[0] < differences["other"].shape[1]


def test_verdict_mistakes_and_pictures_read_the_detections_once(tmp_path, monkeypatch):
    runs = [run_with_recall(tmp_path / "a", 0.4, seed=0), distilled(tmp_path / "b", 0.8, 0)]
    read = []
    monkeypatch.setattr("defeat.report.runs.read_detections", lambda path: read.append(path) or read_detections(path))
    assert verdicts(runs)[0].over_images is not None
    assert "background" in mistakes_section(runs)
    assert image_changes(runs[1], runs[0]).max() == 100
    assert len(read) == 2


def test_the_change_of_an_image_is_the_difference_of_its_aps(tmp_path):
    # Each image has one object, so its AP is 100 or 0. The images detected at recall 0.8 include those at 0.4.
    baseline, better = run_with_recall(tmp_path / "a", 0.4, seed=0), distilled(tmp_path / "b", 0.8, 0)
    changes = image_changes(better, baseline)
    assert sorted(set(changes.round(9).tolist())) == [0.0, 100.0]
    assert (changes == 100).sum() == 16
    assert (image_changes(better, None) == 100).sum() == 32


def test_without_the_data_there_is_a_note_instead_of_pictures(tmp_path):
    gallery = make_gallery(distilled(tmp_path / "b", 0.8, 0, data=str(tmp_path / "gone")), None, None)
    assert "No pictures" in gallery.note
    assert str(tmp_path / "gone") in gallery_section(gallery)
    assert not gallery.helped


@pytest.mark.usefixtures("small_demo")
def test_without_a_baseline_no_gain_is_claimed_and_without_changes_the_regions_are_shown(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    run = read_run(tiny_run(tmp_path / "distilled", "faster_rcnn", teacher=teacher, epochs=2, lr=0.05).folder)
    teacher_run = write_run(tmp_path / "summary", 1.0)
    for name in ("model.json", "model.safetensors"):
        (teacher_run / name).write_bytes((teacher / name).read_bytes())
    assert make_gallery(run, None, None).inside == ()  # needs the teacher
    page = gallery_section(make_gallery(run, None, read_run(teacher_run)))
    assert "Highest AP" in page
    assert "Largest AP gains" not in page
    same = make_gallery(run, run, read_run(teacher_run))
    assert (same.helped, same.hurt) == ((), ())
    (inside,) = same.inside
    assert inside.panels[0].title.startswith("object region")


@pytest.mark.parametrize("size", [(240, 320), (2000, 3000)])
def test_text_grows_with_the_picture(size):
    box = torch.tensor([[0.1, 0.1, 0.9, 0.9]]) * torch.tensor([size[1], size[0], size[1], size[0]])
    found = Detections(box, torch.tensor([0.9]), torch.tensor([0]))
    drawn = draw_detections(torch.full((3, *size), 100, dtype=torch.uint8), found, ["a longer name"])
    changed = (drawn != 100).any(dim=0)
    height = int(changed[: size[0] // 2, round(0.2 * size[1])].sum())  # of the edge and the background of the text
    assert 0.03 < height / size[0] < 0.08


def test_a_font_with_the_letters_is_chosen():
    pytest.importorskip("PIL._imagingft")
    names = [name for name in fonts.NAMES if fonts._open(name) is not None]
    if not names:
        pytest.skip("no known system font")
    for texts in (["größe é"], ["кошка"]):
        chosen = fonts.font_for(texts)
        assert chosen in names
        font = ImageFont.truetype(chosen, 30)
        assert len({bytes(font.getmask(letter)) for letter in "ößk" + fonts.NO_LETTER}) == 4


def test_without_a_system_font_english_text_is_drawn(monkeypatch):
    monkeypatch.setattr(fonts, "NAMES", ())
    fonts._best.cache_clear()
    found = Detections(torch.tensor([[5.0, 5.0, 35.0, 18.0]]), torch.tensor([0.9]), torch.tensor([0]))
    assert not torch.equal(draw_detections(GREY, found, ["cat"]), draw_detections(GREY, found, ["dog"]))
    fonts._best.cache_clear()


@pytest.mark.slow
@pytest.mark.usefixtures("small_demo")
def test_the_gallery_of_a_distilled_run_shows_all_detectors_and_regions(tmp_path):
    teacher = save_teacher(tmp_path / "teacher", "faster_rcnn")
    options = {"epochs": 2, "lr": 0.05}
    baseline = tiny_run(tmp_path / "baseline", "faster_rcnn", **options).folder
    run = tiny_run(tmp_path / "distilled", "faster_rcnn", teacher=teacher, **options).folder
    teacher_run = write_run(tmp_path / "summary", 1.0)
    (teacher_run / "model.json").write_bytes((teacher / "model.json").read_bytes())
    (teacher_run / "model.safetensors").write_bytes((teacher / "model.safetensors").read_bytes())
    gallery = make_gallery(read_run(run), read_run(baseline), read_run(teacher_run))
    strips = gallery.helped + gallery.hurt
    assert strips
    for strip in strips:
        assert [panel.title for panel in strip.panels] == ["annotated", "teacher", "baseline", "distilled"]
    assert gallery.errors
    for strip in gallery.errors:
        assert [panel.title for panel in strip.panels] == ["annotated", "baseline", "distilled"]
    for strip in gallery.inside:
        assert strip.panels[0].title.startswith("object region")
        assert [panel.title for panel in strip.panels[1:]] == ["baseline vs. teacher", "distilled vs. teacher"]


class Images:
    """A hundred grey images in the reverse order of their ids."""

    classes = ("cat", "dog")
    samples = tuple(SimpleNamespace(name=f"{image}.jpg", image_id=image) for image in reversed(range(100)))

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        empty = torch.zeros(0, dtype=torch.bool)
        target = Target(
            torch.zeros(0, 4), torch.zeros(0).long(), empty, empty, self.samples[index].image_id, (100, 100)
        )
        return torch.full((3, 100, 100), 100, dtype=torch.uint8), target


def test_images_with_errors_show_every_combination_of_error_and_class(tmp_path, monkeypatch):
    # Cats are in images with even numbers, dogs in the others; of both, half are detected.
    run, baseline = run_with_recall(tmp_path / "run", 0.5), run_with_recall(tmp_path / "baseline", 0.1)
    monkeypatch.setattr(pictures, "ERRORS", 3)
    strips = error_strips({"baseline": baseline, "detected": run}, Images())
    assert len(strips) == 3
    assert {strip.errors for strip in strips} == {
        (("background", "cat", 1), ("missed", "cat", 1)),
        (("background", "dog", 1), ("missed", "dog", 1)),
    }
    for strip in strips:
        number = int(strip.caption.removesuffix(".jpg"))
        assert strip.errors[0][1] == ("cat", "dog")[number % 2]
        assert len(run.scenes[number].boxes) == 1
        assert [panel.title for panel in strip.panels] == ["annotated", "baseline", "detected"]
    assert error_strips({"detected": run_with_recall(tmp_path / "full", 1.0)}, Images()) == ()
    section = errors_section(strips, "<run>")
    assert "&lt;run&gt;" in section
    assert section.count("<option>cat</option>") == 1


def test_the_share_of_distillation_in_the_loss_by_hand(tmp_path):
    log = [
        {"step": 9, "epoch": 0, "train/loss": 4.0, "train/neck_object": 1.0, "train/box": 3.0},
        {"step": 10, "val/AP": 1},
    ]
    run = read_run(write_run(tmp_path / "run", 1.0, log=log))
    assert loss_share(run, ["neck_object"]) == [(9, 25.0)]


def test_a_run_without_detections_has_no_error_types(tmp_path):
    assert mistakes_section([read_run(write_run(tmp_path / "run", 1.0))]) == ""
    assert "localisation" in mistakes_section([run_with_recall(tmp_path / "full", 0.5)])


def test_a_forest_plot_places_gains_on_one_scale_and_escapes_names():
    rows = [
        GainRow("<b>", 2.0, (1.0, 3.0), Interval(-4.0, 8.0), Interval(1.0, 3.0)),
        GainRow("other", -1.0, (-1.0,), None, None),
    ]
    chart = forest_plot(rows)
    assert "<b>" not in chart
    assert "&lt;b&gt;" in chart
    assert chart.count('class="mean"') == 2
    assert chart.count('class="ring"') == 3
    assert chart.count('class="thin"') == chart.count('class="thick"') == chart.count('class="zero"') == 1
    assert forest_plot([]) == ""


def test_the_thresholds_of_a_run_have_curves_a_table_and_a_confusion_matrix(tmp_path):
    run = run_with_recall(tmp_path / "full", 0.5)
    section = operating_section([run, read_run(write_run(tmp_path / "without", 1.0))])
    assert section.count("<details") == 1
    points = best_points(run.matches)
    assert f"<td>{points[0].threshold:.2f}</td><td>{points[0].precision:.2f}</td>" in section
    rows = re.findall(r'<tr><th scope="row">(\w[\w ]*)</th>(.*?)</tr>', section.partition('class="heat"')[2])
    assert [name for name, _ in rows] == ["cat", "dog", "no object"]
    # Half of the twenty cats are detected as cats, and the others as nothing.
    assert re.findall(r">(\d*)</td>", rows[0][1]) == ["10", "", "10"]
    assert operating_section([read_run(tmp_path / "without")]) == ""
