"""Charts and pictures."""

import warnings
from importlib.resources import files
from xml.etree import ElementTree

import pytest
import torch

from defeat.inference.drawing import class_color, draw_detections
from defeat.report.figures import (
    STROKES,
    Line,
    Mark,
    front,
    line_chart,
    scatter_plot,
    thinned,
    ticks,
)
from defeat.report.pages import SHADES, parts
from defeat.types import Detections


def test_ticks_are_round_and_span_the_values() -> None:
    assert ticks([0.0, 33.0]) == [0, 10, 20, 30, 40]
    assert ticks([0.0, 1.0]) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks([-1.0, 12.0])[0] <= -1.0


@pytest.mark.parametrize("value", [0.0, 5.0, -3.0, 1e-9, 1e9])
def test_ticks_of_a_constant_have_an_extent(value: float) -> None:
    marks = ticks([value, value])
    assert marks[0] < marks[-1]
    assert marks[0] <= value <= marks[-1]
    assert len(marks) < 12


def test_thinning_keeps_the_mean_and_the_order() -> None:
    points = [(float(x), float(x % 2)) for x in range(1000)]
    few = thinned(points, 100)
    assert len(few) == 100
    assert all(y == 0.5 for _, y in few)
    assert few == sorted(few)
    assert thinned(points[:3]) == points[:3]


def test_a_chart_is_valid_xml_with_one_curve_per_line() -> None:
    lines = [Line("a <b> & c", [(0.0, 1.0), (1.0, 2.0)], 0), Line("one", [(1.0, 1.5)], 1), Line("none", [], 2)]
    svg = ElementTree.fromstring(line_chart(lines, "epoch", "A<P"))  # noqa: S314
    assert [title.text for title in svg.iter("title")] == ["a <b> & c", "one"]
    assert len(svg.findall(".//circle")) == 1
    assert len([path for path in svg.findall(".//path") if path.get("class") == "curve"]) == 1


def test_the_curve_spans_the_axes() -> None:
    # The ticks of 0..1 end at 0 and 1, so the curve begins at the left margin at the bottom and ends at the top right.
    svg = line_chart([Line("a", [(0.0, 0.0), (1.0, 1.0)], 0)], "x", "y")
    assert "M46.0 194.0L400.0 12.0" in svg


def test_no_points_give_no_chart() -> None:
    assert line_chart([Line("a", [], 0)], "x", "y") == ""


def test_colours_of_classes_differ() -> None:
    colors = [class_color(label) for label in range(20)]
    assert len(set(colors)) == 20
    assert all(0 <= value <= 255 for color in colors for value in color)


def test_a_box_is_drawn_in_the_colour_of_its_class() -> None:
    image = torch.zeros(3, 100, 120, dtype=torch.uint8)
    detections = Detections(
        torch.tensor([[10.0, 20.0, 60.0, 90.0], [70.0, 20.0, 90.0, 40.0]]),
        torch.tensor([0.9, 0.1]),
        torch.tensor([1, 0]),
    )
    drawn = draw_detections(image, detections, ["cat", "dog"], threshold=0.5)
    assert drawn.shape == image.shape
    assert drawn.dtype == torch.uint8
    assert not image.any()  # the input is unchanged
    assert tuple(drawn[:, 89, 59].tolist()) == class_color(1)  # the box's last pixel
    assert not drawn[:, 90].any()  # the end is exclusive
    assert not drawn[:, :, 62:].any()  # below the threshold


def test_an_image_without_detections_is_unchanged() -> None:
    image = torch.full((3, 20, 20), 7, dtype=torch.uint8)
    empty = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(draw_detections(image, empty, ["cat"]), image)


def test_boxes_beyond_the_image_and_without_extent_are_tolerated() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 500.0, 500.0], [3.0, 3.0, 3.0, 3.0], [5.0, 5.0, 2.0, 2.0]])
    detections = Detections(boxes, torch.full((3,), 0.9), torch.zeros(3, dtype=torch.int64))
    assert draw_detections(torch.zeros(3, 20, 20, dtype=torch.uint8), detections, ["cat"]).shape == (3, 20, 20)


def test_curves_beyond_the_colours_differ_in_their_stroke() -> None:
    lines = [Line(str(shade), [(0.0, 1.0), (1.0, 2.0)], shade) for shade in range(3 * SHADES)]
    looks = [(line.color, line.stroke) for line in lines]
    assert len(set(looks)) == len(lines)
    svg = ElementTree.fromstring(line_chart(lines, "x", "y"))  # noqa: S314
    drawn = [
        (path.get("style"), path.get("class")) for path in svg.findall(".//path") if "curve" in path.get("class", "")
    ]
    assert len(set(drawn)) == len(lines)
    style = files("defeat.report").joinpath("templates", "style.css").read_text()
    for stroke in STROKES[1:]:
        assert f".chart .{stroke} {{" in style
        assert f".legend .{stroke} {{" in style
        assert parts.legend(lines).count(f'class="{stroke}"') == SHADES


def test_the_front_has_the_points_that_none_beats_in_both():
    marks = [Mark("dear", 3.0, 5.0), Mark("cheap", 1.0, 2.0), Mark("worse", 2.0, 1.0), Mark("same", 1.0, 1.5)]
    assert [mark.name for mark in front(marks)] == ["cheap", "dear"]
    assert front([]) == []


def test_a_scatter_plot_names_the_front_and_escapes():
    chart = scatter_plot([Mark("<a>", 1.0, 2.0), Mark("b", 2.0, 1.0), Mark("c", 3.0, 4.0)], "time", "gain")
    assert chart.count('class="best"') == 2
    assert chart.count('class="mark"') == 1
    assert chart.count('class="name"') == 2
    assert "&lt;a&gt;" in chart
    assert "<a>" not in chart
    assert scatter_plot([Mark("alone", 1.0, 2.0)], "time", "gain") == ""
