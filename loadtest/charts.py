"""SVG line charts with logarithmic axes, as needed for growth curves.

A plotting library would add ten dependencies, each larger than this module.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

_WIDTH, _HEIGHT = 560, 380
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 40, 50
_COLOURS = ("#1b6ca8", "#d1495b", "#2e8b57", "#8a5a00", "#6a4c93")


@dataclass(frozen=True)
class Chart:
    """A chart of values that depend on one quantity."""

    title: str
    x_label: str
    """The label of the horizontal axis."""
    y_label: str
    """The label of the vertical axis, with its unit."""
    lines: Mapping[str, Sequence[tuple[float, float]]]
    """The points by line name, all greater than 0."""


def svg(charts: Sequence[Chart]) -> str:
    """Draws charts one below the other."""
    parts = [
        f'<g transform="translate(0,{number * _HEIGHT})">{"".join(_draw(chart))}</g>'
        for number, chart in enumerate(charts)
    ]
    height = len(charts) * _HEIGHT
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(parts)}</svg>\n'
    )


def _draw(chart: Chart) -> Iterator[str]:
    points = [point for line in chart.lines.values() for point in line]
    # Whole decades, so that equal slopes look the same in every chart.
    left, right = _decades([x for x, _ in points])
    bottom, top = _decades([y for _, y in points])

    def place(x: float, y: float) -> tuple[float, float]:
        x_share = (math.log10(x) - left) / (right - left)
        y_share = (math.log10(y) - bottom) / (top - bottom)
        return (
            _LEFT + x_share * (_WIDTH - _LEFT - _RIGHT),
            _HEIGHT - _BOTTOM - y_share * (_HEIGHT - _TOP - _BOTTOM),
        )

    yield _text(_WIDTH / 2, 20, chart.title, weight="bold")
    yield _text(_WIDTH / 2, _HEIGHT - 10, chart.x_label)
    yield _text(16, _HEIGHT / 2, chart.y_label, turn=-90)
    for decade in range(left, right + 1):
        (x, y), (_, end) = place(10.0**decade, 10.0**bottom), place(10.0**decade, 10.0**top)
        yield _grid(x, y, x, end)
        yield _text(x, y + 18, _number(decade))
    for decade in range(bottom, top + 1):
        (x, y), (end, _) = place(10.0**left, 10.0**decade), place(10.0**right, 10.0**decade)
        yield _grid(x, y, end, y)
        yield _text(x - 8, y + 4, _number(decade), anchor="end")
    for number, (name, line) in enumerate(chart.lines.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [place(x, y) for x, y in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for x, y in places:
            yield f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>'
        yield _text(_LEFT + 10, _TOP + 14 + 16 * number, name, anchor="start", colour=colour)


def _decades(values: Sequence[float]) -> tuple[int, int]:
    least, most = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    return least, max(most, least + 1)


def _number(decade: int) -> str:
    return f"{10**decade:,}" if decade >= 0 else f"{10.0**decade:.{-decade}f}"


def _grid(x: float, y: float, x_end: float, y_end: float) -> str:
    return f'<line x1="{x:.1f}" y1="{y:.1f}" x2="{x_end:.1f}" y2="{y_end:.1f}" stroke="#d0d0d0"/>'


def _text(
    x: float,
    y: float,
    words: str,
    *,
    anchor: str = "middle",
    weight: str = "normal",
    colour: str = "#222222",
    turn: int = 0,
) -> str:
    turned = f' transform="rotate({turn} {x:.1f} {y:.1f})"' if turn else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-weight="{weight}" '
        f'fill="{colour}"{turned}>{escape(words)}</text>'
    )
