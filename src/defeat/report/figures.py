"""Line charts, scatter plots and intervals as inline SVG."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from defeat.evaluation.bootstrap import Interval
from defeat.report.pages import SHADES

Point = tuple[float, float]

WIDTH, HEIGHT = 420, 230  # small, because the numbers shrink with the picture on a phone
LEFT, RIGHT, TOP, BOTTOM = 46, 20, 12, 36  # margins for the tick labels
MAX_POINTS = 200
STROKES = ("", "dashed", "dotted")  # the second and third set of curves reuse the colours
ROW, NAMES, LONGEST = 30, 156, 22  # height of a row of a forest plot, width of its names, characters of a name


@dataclass(frozen=True)
class Line:
    """A named curve; `shade` selects its colour, and its stroke where there are more curves than colours."""

    name: str
    points: list[Point]
    shade: int

    @property
    def color(self) -> str:
        """CSS that sets the colour."""
        return f"--line:var(--series-{self.shade % SHADES})"

    @property
    def stroke(self) -> str:
        """CSS class that sets the stroke."""
        return STROKES[min(self.shade // SHADES, len(STROKES) - 1)]


def line_chart(lines: Sequence[Line], x_title: str, y_title: str) -> Markup:
    """Draw curves as an SVG element with the colours of the page's style sheet (`--series-0` .. `--series-5`).

    Args:
        lines: the curves; those without points are left out.
        x_title: title of the horizontal axis.
        y_title: title of the vertical axis.

    Returns:
        The SVG, all text escaped; empty when there is nothing to draw.
    """
    drawn = [Line(line.name, thinned(line.points), line.shade) for line in lines if line.points]
    if not drawn:
        return Markup()
    points = [point for line in drawn for point in line.points]
    x_ticks, y_ticks = ticks([x for x, _ in points]), ticks([y for _, y in points])
    parts = _axes(x_ticks, y_ticks, x_title, y_title)
    parts += [_curve(line, x_ticks, y_ticks) for line in drawn]
    return _svg(parts)


@dataclass(frozen=True)
class Mark:
    """A named point of a scatter plot."""

    name: str
    x: float
    y: float


def front(marks: Sequence[Mark]) -> list[Mark]:
    """The Pareto front, from left to right: the marks for which no other has a lower or equal x and a higher y."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda mark: (mark.x, -mark.y)):
        if not best or mark.y > best[-1].y:
            best.append(mark)
    return best


def scatter_plot(marks: Sequence[Mark], x_title: str, y_title: str) -> Markup:
    """Draw points and their Pareto front (low x, high y), whose points are numbered; all have a tooltip.

    Returns:
        The SVG, all text escaped; empty for less than two points.
    """
    if len(marks) < 2:
        return Markup()
    x_ticks, y_ticks = ticks([mark.x for mark in marks]), ticks([mark.y for mark in marks])

    def at(mark: Mark) -> Point:
        x = _position(mark.x, x_ticks, LEFT, WIDTH - RIGHT)
        return x, _position(mark.y, y_ticks, HEIGHT - BOTTOM, TOP)

    best = front(marks)
    parts = _axes(x_ticks, y_ticks, x_title, y_title)
    corners = [at(mark) for mark in best]
    steps = "".join(f"H{x:.1f}V{y:.1f}" for x, y in corners[1:])
    parts.append(f'<path class="front" d="M{corners[0][0]:.1f} {corners[0][1]:.1f}{steps}"/>')
    for mark in marks:
        x, y = at(mark)
        title = f"<title>{escape(mark.name)}: {mark.y:+.1f} at {mark.x:.2f}</title>"
        kind = "best" if mark in best else "mark"
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{y:.1f}" r="4.5">{title}</circle>')
    for number, (x, y) in enumerate(corners, start=1):
        parts.append(f'<text class="name" x="{x:.1f}" y="{y - 8:.1f}" text-anchor="middle">{number}</text>')
    return _svg(parts)


def _svg(parts: Sequence[str]) -> Markup:
    """The elements of a chart, in which all text is escaped, as HTML."""
    return Markup("".join(parts) + "</svg>")  # noqa: S704


def _axes(x_ticks: list[float], y_ticks: list[float], x_title: str, y_title: str) -> list[str]:
    """The beginning of a chart: both axes with their ticks, and the title of the horizontal one."""
    label = escape(f"{y_title} by {x_title}")
    parts = [f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for tick in y_ticks:
        y = _position(tick, y_ticks, HEIGHT - BOTTOM, TOP)
        parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for tick in x_ticks:
        x = _position(tick, x_ticks, LEFT, WIDTH - RIGHT)
        parts.append(f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{tick:g}</text>')
    parts.append(f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 4}" text-anchor="end">{escape(x_title)}</text>')
    return parts


def ticks(values: Sequence[float]) -> list[float]:
    """Four to nine round numbers that span the values, in steps of 1, 2 or 5 times a power of ten."""
    low, high = min(values), max(values)
    if high - low <= 1e-9 * max(abs(low), abs(high), 1e-3):
        low, high = low - max(abs(low), 1e-3) / 2, high + max(abs(high), 1e-3) / 2
    rough = (high - low) / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def thinned(points: Sequence[Point], limit: int = MAX_POINTS) -> list[Point]:
    """At most `limit` points, each the mean of a group of neighbours, so that a noisy curve stays readable."""
    group = math.ceil(len(points) / limit)
    if group <= 1:
        return list(points)
    chunks = [points[start : start + group] for start in range(0, len(points), group)]
    return [(sum(x for x, _ in chunk) / len(chunk), sum(y for _, y in chunk) / len(chunk)) for chunk in chunks]


def _curve(line: Line, x_ticks: list[float], y_ticks: list[float]) -> str:
    pixels = [
        (_position(x, x_ticks, LEFT, WIDTH - RIGHT), _position(y, y_ticks, HEIGHT - BOTTOM, TOP))
        for x, y in line.points
    ]
    title = f"<title>{escape(line.name)}</title>"
    if len(pixels) == 1:
        x, y = pixels[0]
        return f'<circle class="point" style="{line.color}" cx="{x:.1f}" cy="{y:.1f}" r="4">{title}</circle>'
    path = "L".join(f"{x:.1f} {y:.1f}" for x, y in pixels)
    return f'<path class="{f"curve {line.stroke}".strip()}" style="{line.color}" d="M{path}">{title}</path>'


def _position(value: float, marks: list[float], start: float, end: float) -> float:
    return start + (value - marks[0]) / (marks[-1] - marks[0]) * (end - start)


@dataclass(frozen=True)
class GainRow:
    """A row of a forest plot, in AP points: mean, single values, a thin and a thick interval."""

    name: str
    mean: float
    values: tuple[float, ...]
    thin: Interval | None
    thick: Interval | None


def forest_plot(rows: Sequence[GainRow]) -> Markup:
    """Draw gains and their intervals, one row each, with a vertical line at zero.

    Returns:
        The SVG, all text escaped; empty when there is nothing to draw.
    """
    if not rows:
        return Markup()
    ends = [0.0, *(end for row in rows for end in (row.mean, *row.values))]
    intervals = [interval for row in rows for interval in (row.thin, row.thick) if interval is not None]
    ends += [end for interval in intervals for end in (interval.low, interval.high)]
    marks = ticks(ends)
    height = ROW * len(rows) + 34

    def at(value: float) -> float:
        return _position(value, marks, NAMES, WIDTH - RIGHT)

    parts = [f'<svg class="chart forest" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="gain per row">']
    for mark in marks:
        kind = "zero" if mark == 0 else "grid"
        parts.append(f'<path class="{kind}" d="M{at(mark):.1f} 6V{height - 28}"/>')
        parts.append(f'<text x="{at(mark):.1f}" y="{height - 12}" text-anchor="middle">{_signed(mark)}</text>')
    for number, row in enumerate(rows):
        y = ROW * number + ROW / 2 + 4
        name = row.name if len(row.name) <= LONGEST else row.name[: LONGEST - 1] + "…"
        parts.append(f'<text class="name" x="{NAMES - 10}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        title = f"<title>{escape(row.name)}: {row.mean:+.2f}</title>"
        if row.thin is not None:
            parts.append(f'<path class="thin" d="M{at(row.thin.low):.1f} {y:.1f}H{at(row.thin.high):.1f}"/>')
        if row.thick is not None:
            parts.append(f'<path class="thick" d="M{at(row.thick.low):.1f} {y:.1f}H{at(row.thick.high):.1f}"/>')
        parts += [f'<circle class="ring" cx="{at(value):.1f}" cy="{y:.1f}" r="3"/>' for value in row.values]
        parts.append(f'<circle class="mean" cx="{at(row.mean):.1f}" cy="{y:.1f}" r="5">{title}</circle>')
    return _svg(parts)


def _signed(value: float) -> str:
    return f"{value:+g}" if value else "0"
