"""Curves of scores around an event, as text and as SVG. Drawn by their logits: 0.999 is as far from 0.99 as that is from 0.9."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from detector.explain import Event, Window, local, logit, utc

LEAST = 0.01
"""The lowest score that is drawn."""
HEIGHT = 8
"""Lines of the text's first curve."""
BLOCKS = " ▁▂▃▄▅▆▇█"
MARKS = (0.01, 0.1, 0.5, 0.9, 0.99, 0.999, 0.9999)
COLOURS = ("#0b5cad", "#b3561e", "#1a6b3c", "#6b4fa0")
WIDTH_PX, HEIGHT_PX, LEFT_PX, TOP_PX, BOTTOM_PX = 960, 360, 60, 34, 40


def text(seen: Window, labels: Sequence[str], width: int) -> str:
    """The first of the labels high, with a line at the score that opens its events, the others flat, in so many columns."""
    columns = max(20, width - 20)
    begin_s, end_s = _ends(seen)
    edges_s = np.linspace(begin_s, end_s, columns + 1)
    first = np.searchsorted(seen.begins_s + seen.about.row_s, edges_s[:-1], side="right")
    last = np.searchsorted(seen.begins_s, edges_s[1:], side="left")
    heard = list(zip(first.tolist(), last.tolist(), strict=True))

    def shares(values: NDArray[Any]) -> list[float]:
        """Of the height, the highest in each column; -1 where nothing was heard."""
        return [float(values[a:b].max()) if a < b else -1.0 for a, b in heard]

    top = _top(seen, labels)
    share = shares(_share(seen.column(labels[0]), top))
    line = shares(_share(seen.level(labels[0]), top))
    lines = []
    for row in reversed(range(HEIGHT)):
        shown = ""
        for high, at in zip(share, line, strict=True):
            block = BLOCKS[max(0, min(8, round((high * HEIGHT - row) * 8)))]
            shown += "─" if block == " " and high >= 0 and row == min(HEIGHT - 1, int(at * HEIGHT)) else block
        lines.append(f"{_score_at((row + 1) / HEIGHT, top):>8}  {shown}")
    lines.append(f"{'':8}  {''.join('▔' if high >= 0 else ' ' for high in share)}")
    lines.append(f"{'':8}  {local(begin_s)}{local(end_s):>{columns - len(local(begin_s))}}")
    for label in labels[1:]:
        curve = "".join(BLOCKS[max(0, min(8, round(high * 8)))] for high in shares(_share(seen.column(label), top)))
        lines += [
            f"{'':8}  {curve}",
            f"{'':8}  {label}: at most {seen.column(label).max():.5g}, {seen.level(label)[-1]:.5g} opens an event",
        ]
    return "\n".join(line.rstrip() for line in lines)


def svg(seen: Window, labels: Sequence[str], event: Event | None) -> str:
    """The same as a picture: the first label's threshold dashed, the event shaded."""
    begin_s, end_s = _ends(seen)
    top, wide, high = _top(seen, labels), WIDTH_PX - LEFT_PX - 10, HEIGHT_PX - TOP_PX - BOTTOM_PX

    def x(at_s: float) -> float:
        return round(LEFT_PX + (min(max(at_s, begin_s), end_s) - begin_s) / (end_s - begin_s) * wide, 1)

    def y(share: float) -> float:
        return round(TOP_PX + (1 - share) * high, 1)

    def curve(values: NDArray[Any], style: str) -> list[str]:
        """One line for each stretch without a gap; a row's score is known at its end."""
        ends_s, shares = seen.begins_s + seen.about.row_s, _share(values, top)
        breaks = np.flatnonzero(np.diff(seen.begins_s) > 1.5 * seen.about.row_s) + 1
        found = []
        for part in np.split(np.arange(len(ends_s)), breaks):
            points = " ".join(f"{x(float(ends_s[i]))},{y(float(shares[i]))}" for i in part)
            found.append(f'<polyline points="{points}" fill="none" {style}/>')
        return found

    shapes = []
    if event:
        from_x, to_x = x(event.begins_s), x(event.ends_s or end_s)
        area = f'x="{from_x}" y="{TOP_PX}" width="{round(max(1, to_x - from_x), 1)}" height="{high}"'
        shapes.append(f'<rect {area} fill="#b3261e" opacity="0.12"/>')
    for mark in MARKS:
        share = float(_share(np.array([mark]), top)[0])
        if logit(np.array([mark]))[0] <= top:
            shapes.append(f'<line x1="{LEFT_PX}" x2="{LEFT_PX + wide}" y1="{y(share)}" y2="{y(share)}" stroke="#d5d8dc"/>')
            shapes.append(f'<text x="{LEFT_PX - 6}" y="{y(share) + 4}" text-anchor="end">{mark:g}</text>')
    for at_s, anchor in ((begin_s, "start"), (end_s, "end")):
        said = f"{utc(at_s)} ({local(at_s)})"
        shapes.append(f'<text x="{x(at_s)}" y="{HEIGHT_PX - 14}" text-anchor="{anchor}">{escape(said)}</text>')
    shapes += curve(seen.level(labels[0]), 'stroke="#b3261e" stroke-dasharray="6 4"')
    for number, (label, colour) in reversed(list(enumerate(zip(labels, COLOURS, strict=False)))):
        shapes += curve(seen.column(label), f'stroke="{colour}" stroke-width="{1 if number else 2.5}"')
        shapes.append(f'<text x="{LEFT_PX + 180 * number}" y="20" fill="{colour}">{escape(label)}</text>')
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH_PX} {HEIGHT_PX}" font-family="sans-serif" font-size="13">'
    return "\n".join([head, f'<rect width="{WIDTH_PX}" height="{HEIGHT_PX}" fill="#fff"/>', *shapes, "</svg>\n"])


def _ends(seen: Window) -> tuple[float, float]:
    return float(seen.begins_s[0]), float(seen.begins_s[-1]) + seen.about.row_s


def _top(seen: Window, labels: Sequence[str]) -> float:
    """The logit at the upper edge: a little above all that is drawn."""
    highest = [*(seen.column(label).max() for label in labels), seen.level(labels[0]).max()]
    return min(9.5, float(logit(np.array(highest)).max()) + 0.5)


def _share(scores: NDArray[Any], top: float) -> NDArray[np.float64]:
    """Of the height, 0 for LEAST and less."""
    bottom = math.log(LEAST / (1 - LEAST))
    return np.clip((logit(scores) - bottom) / (top - bottom), 0, 1)


def _score_at(share: float, top: float) -> str:
    bottom = math.log(LEAST / (1 - LEAST))
    return f"{1 / (1 + math.exp(-(bottom + share * (top - bottom)))):.4f}"
