"""Charts of the report: small SVG documents without script, coloured by the page's own style."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

Point = tuple[float, float | None]
DIGIT_PX = 6.4


@dataclass(frozen=True)
class Series:
    """One line of a chart.

    Attributes:
        name: for the legend and for screen readers.
        points: (x, y); where y is None the line is broken.
        style: CSS class with the colour, such as `c1`.
        joined: False draws its points alone, as dots.
    """

    name: str
    points: Sequence[Point]
    style: str
    joined: bool = True


@dataclass(frozen=True)
class Axes:
    """What a chart of lines spans.

    Attributes:
        x_label: under the axis.
        x_range: lowest and highest x; by default those of the points and the mark.
        y_range: lowest and highest y; by default 0 to the largest value.
        size: width and height in pixels.
    """

    x_label: str = ""
    x_range: tuple[float, float] | None = None
    y_range: tuple[float, float] | None = None
    size: tuple[int, int] = (540, 250)


@dataclass(frozen=True)
class Mark:
    """A vertical line at an x, the best round for instance, and what is written at it."""

    x: float
    label: str = ""


@dataclass(frozen=True)
class Frame:
    """The plotting area in pixels and what it spans."""

    width: int
    height: int
    left: float
    top: float
    right: float
    bottom: float
    x: tuple[float, float]
    y: tuple[float, float]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixel (x, y) of a value."""
        across = (x - self.x[0]) / (self.x[1] - self.x[0])
        up = (y - self.y[0]) / (self.y[1] - self.y[0])
        high = self.height - self.top - self.bottom
        wide = self.width - self.left - self.right
        return self.left + across * wide, self.top + (1 - up) * high


def line_chart(
    series: Sequence[Series], title: str, axes: Axes, mark: Mark | None = None
) -> Markup:
    """Lines over rounds.

    Args:
        series: drawn in this order, the last on top.
        title: what it shows, for screen readers; not drawn.
        axes: what it spans.
        mark: a vertical line.

    Returns:
        An `<svg>` element; empty text where no line has a point.
    """
    known = [(x, y) for line in series for x, y in line.points if y is not None]
    if not known:
        return Markup("")
    low_x, high_x = min(x for x, _ in known), max(x for x, _ in known)
    if mark is not None:
        low_x, high_x = min(low_x, mark.x), max(high_x, mark.x)
    span = axes.x_range or ((low_x, high_x) if high_x > low_x else (low_x - 0.5, high_x + 0.5))
    values = axes.y_range or (min(0.0, min(y for _, y in known)), max(y for _, y in known) or 1.0)
    steps = ticks(*values, 5 if axes.size[1] > 180 else 3)
    if axes.y_range is None:
        values = (values[0], max(values[1], steps[-1]))
    room = 10 + DIGIT_PX * max(len(label(step)) for step in steps)
    bottom = 38.0 if axes.x_label else 22.0
    top = 16.0 if mark is not None and mark.label else 8.0
    frame = Frame(*axes.size, room, top, 12.0, bottom, span, values)
    parts = [_grid(frame, steps), _rounds(frame, axes.x_label)]
    if mark is not None:
        parts.append(_mark(frame, mark))
    parts += [_line(frame, line) for line in series]
    return svg(axes.size, title, parts)


def stacked_bar(parts: Sequence[tuple[str, float, str]], *, title: str) -> Markup:
    """Shares of a whole as one bar: (name, amount, CSS class)."""
    total = sum(max(amount, 0.0) for _, amount, _ in parts)
    if total <= 0:
        return Markup("")
    x, pieces = 0.0, []
    for name, amount, style in parts:
        width = 540 * max(amount, 0.0) / total
        pieces.append(
            Markup('<rect class="{}" x="{:.1f}" y="0" width="{:.1f}" height="12">'
                   "<title>{}: {:.0%}</title></rect>")
            .format(style, x, width, name, max(amount, 0.0) / total)
        )  # fmt: skip
        x += width
    return svg((540, 12), title, pieces)


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, about `most` of them."""
    raw = max((high - low) / max(most - 1, 1), 1e-12)  # ticks have no more places
    scale = 10.0 ** math.floor(math.log10(raw))
    step = next(m * scale for m in (1, 2, 2.5, 5, 10) if m * scale >= raw * 0.999)
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [round(i * step, 12) for i in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's number, as short as it can be."""
    return f"{value:.10g}" if abs(value) < 1e5 else f"{value:.3g}"


def svg(size: tuple[int, int], title: str, parts: Sequence[Markup]) -> Markup:
    """A picture of these parts, with a title for screen readers."""
    opening = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>')
    return opening.format(*size, title, title) + Markup("").join(parts) + Markup("</svg>")


def text_at(x: float, y: float, text: str, anchor: str, style: str = "") -> Markup:
    """Words at a place; `anchor` says which end stands there."""
    shape = Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>')
    return shape.format(x, y, anchor, style, escape(text))


def grid_line(x: float, bottom: float) -> Markup:
    """A vertical line from the top of a chart."""
    line = '<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="6" y2="{1:.1f}"/>'
    return Markup(line).format(x, bottom)


def dot(style: str, x: float, y: float, radius: float, title: str = "") -> Markup:
    """A dot with a title."""
    shape = '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{:g}"><title>{}</title></circle>'
    return Markup(shape).format(style, x, y, radius, title)


def _grid(frame: Frame, steps: Sequence[float]) -> Markup:
    """Horizontal lines with their values."""
    parts = []
    for step in steps:
        if frame.y[0] - 1e-9 <= step <= frame.y[1] + 1e-9:
            _, y = frame.at(frame.x[0], step)
            line = '<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
            parts.append(Markup(line).format(frame.left, frame.width - frame.right, y, y))
            parts.append(text_at(frame.left - 6, y + 4, label(step), "end"))
    return Markup("").join(parts)


def _rounds(frame: Frame, x_label: str) -> Markup:
    """Whole rounds under the chart."""
    low, high = math.ceil(frame.x[0]), math.floor(frame.x[1])
    step = max(1, round((high - low) / (10 if frame.width > 400 else 4)))
    nice = next(m * 10**e for e in itertools.count() for m in (1, 2, 5) if m * 10**e >= step)
    first = -(-low // nice) * nice  # the first multiple: rounds may be many, or far away
    shown = {low, *(i for i in range(first, high + 1, nice) if i - low > nice / 2)}
    base = frame.height - frame.bottom + 16
    parts = [text_at(frame.at(i, frame.y[0])[0], base, str(i), "middle") for i in sorted(shown)]
    if x_label:
        middle = (frame.left + frame.width - frame.right) / 2
        parts.append(text_at(middle, frame.height - 4, x_label, "middle"))
    return Markup("").join(parts)


def _mark(frame: Frame, mark: Mark) -> Markup:
    """A dashed vertical line."""
    x, _ = frame.at(mark.x, frame.y[0])
    line = '<line class="mark" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>'
    drawn = Markup(line).format(x, x, frame.top, frame.height - frame.bottom)
    if not mark.label:
        return drawn
    half = 3.2 * len(mark.label)
    middle = min(max(x, frame.left + half), frame.width - frame.right - half)
    return drawn + text_at(middle, frame.top - 5, mark.label, "middle", "ink")


def _line(frame: Frame, line: Series) -> Markup:
    """The pieces of a line; a point alone becomes a dot, few points get dots as well."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in line.points:
        if y is None:
            pieces.append([])
        else:
            pieces[-1].append(frame.at(x, min(max(y, frame.y[0]), frame.y[1])))
    if not line.joined:
        pieces = [[at] for piece in pieces for at in piece]
    path = " ".join(
        "M" + " L".join(f"{x:.1f},{y:.1f}" for x, y in piece) for piece in pieces if len(piece) > 1
    )
    drawn = [Markup('<path class="line {}" d="{}"/>').format(line.style, path)] if path else []
    few = sum(map(len, pieces)) <= 12
    radius = 2.6 if line.joined else 3.6
    for piece in pieces:
        if few or len(piece) == 1:
            for x, y in piece:
                dot = '<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>'
                drawn.append(Markup(dot).format(line.style, x, y, radius))
    return Markup("<g><title>{}</title>{}</g>").format(line.name, Markup("").join(drawn))


def interval_chart(
    rows: Sequence[tuple[str, Sequence[tuple[str, float, float | None, float | None]]]],
    styles: Mapping[str, str],
    *,
    title: str,
    x_label: str = "",
    size_x: int = 760,
) -> Markup:
    """Values with intervals about a line at zero: one row an organ, one lane a variant.

    Args:
        rows: (name, [(variant, value, low, high)]); a value without an interval is a dot alone.
        styles: variant -> CSS class.
        title: what it shows, for screen readers.
        x_label: under the axis.
        size_x: width in pixels.
    """
    known = [v for _, lanes in rows for lane in lanes for v in lane[1:] if v is not None]
    if not known:
        return Markup("")
    steps = ticks(min(0.0, *known), max(0.0, *known) or 0.01, 7)
    lane_px, gap, foot = 13, 10, 42.0
    room = 14 + 7.2 * max(len(name) for name, _ in rows)
    height = round(6 + foot + sum(lane_px * len(lanes) + gap for _, lanes in rows))
    span = (steps[0], steps[-1])
    frame = Frame(size_x, height, room, 6.0, 14.0, foot, span, (0.0, 1.0))
    parts = []
    for step in steps:
        x, _ = frame.at(step, 0)
        style = "mark" if step == 0 else "grid"
        line = '<line class="{0}" x1="{1:.1f}" x2="{1:.1f}" y1="6" y2="{2}"/>'
        parts.append(Markup(line).format(style, x, height - foot))
        parts.append(text_at(x, height - foot + 16, label(step), "middle"))
    parts.append(text_at((room + size_x - 14) / 2, height - 6, x_label, "middle"))
    top = 6.0 + gap / 2
    for name, lanes in rows:
        parts.append(text_at(room - 10, top + lane_px * len(lanes) / 2 + 4, name, "end", "ink"))
        for variant, value, low, high in lanes:
            parts.append(_interval(frame, top + lane_px / 2, styles[variant], value, low, high))
            top += lane_px
        top += gap
    return svg((size_x, height), title, parts)


def _interval(
    frame: Frame, y: float, style: str, value: float, low: float | None, high: float | None
) -> Markup:
    x, _ = frame.at(value, 0)
    dot = Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="3.6"/>').format(style, x, y)
    if low is None or high is None:
        return dot
    path = f"M{frame.at(low, 0)[0]:.1f},{y:.1f} L{frame.at(high, 0)[0]:.1f},{y:.1f}"
    return Markup('<path class="line {}" d="{}"/>').format(style, path) + dot
