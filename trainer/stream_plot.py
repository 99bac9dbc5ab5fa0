"""A picture of a model on streams: what it finds for how many false events, and one soundscape as it hears it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, NullLocator, PercentFormatter

from detector.model import Description
from trainer.levels import Level
from trainer.plots import BLUE, FAINT, INK, MUTED, PAPER, WRONG, plain, titled
from trainer.stream_evaluation import Example
from trainer.stream_metrics import first_overlapping

CURVES = {"recorded_recall": ("on recordings", BLUE), "scenes_recall": ("on soundscapes", "#c9822b")}
TRUE, RIGHT = "#f1e2b6", "#2f8f6b"
TICKS_PER_HOUR = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)
LANE, BAR = 0.78, 0.12
"""Of a label's place one above the other: the height of its scores 0..1, and of a told event under them."""


def streams(levels: Sequence[Level], example: Example | None, description: Description, title: str) -> Figure:
    """Left the operating curve, if there are levels; right the example, if there is one; at least one of the two."""
    widths = [*([5.0] if levels else []), *([8.0] if example else [])]
    lanes = _labels(example, description.labels) if example else []
    figure = Figure(figsize=(sum(widths), max(4.8, 1.9 + 0.5 * len(lanes))), layout="constrained", facecolor=PAPER)
    places = list(figure.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if levels:
        _operating_curve(places[0], levels)
    if example:
        _example(places[-1], example, description, lanes)
    titled(figure, title)
    return figure


def _operating_curve(axes: Axes, levels: Sequence[Level]) -> None:
    """Recall over false events an hour, as far as more of them are told the lower the level; none is drawn at half an event."""
    rates = [level.per_hour for level in levels]
    drawn = levels[int(np.argmax(rates)) :]
    hours = next((level.events / level.per_hour for level in levels if level.events), None)
    nothing = 0.5 / (hours or 1)
    x = [max(level.per_hour, nothing) for level in drawn]
    own = next((level for level in levels if level.shift == 0), None)
    keys = []
    for name, (said, colour) in CURVES.items():
        if getattr(levels[0], name) is None:
            continue
        keys += axes.plot(x, [getattr(level, name) for level in drawn], color=colour, lw=2, zorder=3, label=said)
        if own:
            at = (max(own.per_hour, nothing), getattr(own, name))
            axes.plot(*at, "o", color=colour, ms=8, mec=PAPER, mew=1.5, zorder=4)
            axes.annotate(f"{at[1]:.0%}", at, (9, -11), textcoords="offset points", color=colour, fontsize=10)
    if own:
        axes.axvline(max(own.per_hour, nothing), color=MUTED, lw=0.8, ls=(0, (2, 2)), zorder=1)
    axes.set_xscale("log")
    axes.set_xlim(nothing / 1.1, max(x) * 1.1)
    ticks = [tick for tick in TICKS_PER_HOUR if 1.5 * nothing < tick <= max(x) * 1.1]
    axes.set_xticks([nothing, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set(
        ylim=(0, 1),
        xlabel="false events an hour" + (f", counted in {hours:.1f} h of quiet sound" if hours else ""),
        ylabel="events found",
    )
    axes.yaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.xaxis.label.set_color(MUTED)
    axes.yaxis.label.set_color(MUTED)
    axes.grid(color=FAINT, lw=0.8)
    axes.set_axisbelow(True)
    plain(axes)
    keys += [Line2D([], [], color=MUTED, marker="o", ms=8, mec=PAPER, mew=1.5, lw=0, label="at its own thresholds")] if own else []
    axes.legend(handles=keys, loc="upper left", frameon=False, fontsize=9.5, labelcolor=INK)
    axes.set_title("All thresholds moved together", fontsize=10.5, color=INK, loc="left")


def _labels(example: Example, labels: Sequence[str]) -> list[str]:
    """Those that sound or are told, in the model's order."""
    here = {event.label for event in example.truth} | {event.label for event in example.heard.told}
    return [label for label in labels if label in here]


def _example(axes: Axes, example: Example, description: Description, lanes: Sequence[str]) -> None:
    """A lane for each of these labels: where it sounds, its score and the threshold, and under them the events told of it."""
    d, heard = description, example.heard
    row_s = d.hop / d.sample_rate
    edges = np.minimum(np.arange(len(heard.scores) + 1) * row_s, heard.duration_s)
    for place, label in enumerate(lanes):
        bottom = len(lanes) - 1 - place + (1 - LANE) / 2
        known = [event for event in example.truth if event.label == label]
        for event in known:
            axes.broken_barh([(event.onset_s, event.offset_s - event.onset_s)], (bottom, LANE), color=TRUE, lw=0, zorder=1)
        base = bottom + BAR
        height = LANE - BAR
        curve = base + height * heard.scores[:, d.labels.index(label)]
        axes.stairs(curve, edges, baseline=base, fill=True, color=BLUE, alpha=0.14, lw=0, zorder=2)
        axes.stairs(curve, edges, baseline=None, color=BLUE, lw=1.3, zorder=3)
        on = base + height * d.thresholds[label].on
        axes.plot([0, heard.duration_s], [on, on], color=MUTED, lw=0.8, ls=(0, (3, 2)), zorder=2)
        axes.plot([0, heard.duration_s], [base, base], color=FAINT, lw=0.8, zorder=1.5)
        for said in heard.told:
            if said.label == label:
                right = any(event.onset_s < said.offset_s and event.offset_s > said.onset_s for event in known)
                span = (said.onset_s, min(said.offset_s, heard.duration_s) - said.onset_s)
                axes.broken_barh([span], (bottom, BAR), color=RIGHT if right else WRONG, lw=0, zorder=4)
    axes.set_yticks([len(lanes) - 0.5 - place for place in range(len(lanes))], lanes, parse_math=False)
    axes.set(xlim=(0, heard.duration_s), ylim=(0, max(1, len(lanes))), xlabel="time, s")
    axes.xaxis.label.set_color(MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(9))
    plain(axes)
    axes.tick_params(axis="y", labelcolor=INK, labelsize=10)
    found = sum(first_overlapping(event, heard.told) is not None for event in example.truth)
    axes.set_title(
        f"Soundscape {example.number}: {found} of {len(example.truth)} events found", fontsize=10.5, color=INK, loc="left"
    )
    keys = [
        Patch(color=TRUE, lw=0, label="sounds"),
        Line2D([], [], color=BLUE, lw=1.3, label="score, 0 to 1"),
        Line2D([], [], color=MUTED, lw=0.8, ls=(0, (3, 2)), label="threshold"),
        Patch(color=RIGHT, lw=0, label="told"),
        Patch(color=WRONG, lw=0, label="told falsely"),
    ]
    axes.legend(
        handles=keys,
        loc="upper center",
        bbox_to_anchor=(0.5, -0.075),
        ncols=5,
        frameon=False,
        fontsize=9.5,
        labelcolor=INK,
        handlelength=1.6,
    )
