"""The figures of a model on streams, for people and for programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

from detector.errors import install
from detector.model import Description
from trainer.data import folds_in_words
from trainer.levels import Level, lowest_within
from trainer.stream_evaluation import Quiet, Recorded, Report, Robust, Scenes
from trainer.stream_metrics import Detection
from trainer.stream_sounds import SOUNDSCAPE_S

MOST_AN_HOUR = (1, 2, 5, 10, 20, 50)


def as_json(report: Report, description: Description) -> dict[str, Any]:
    """Everything, rounded: the model, folds and seed, and what `Report` holds."""
    model = {"name": description.name, "version": description.version, "sha256": description.sha256}
    figures: dict[str, Any] = _rounded({"model": model} | asdict(replace(report, example=None)))
    del figures["example"]  # a picture's
    for part in ("recorded", "scenes"):
        if figures[part] is not None:
            figures[part]["overall"]["recall"] = round(getattr(report, part).overall.recall, 4)
    return figures


def text(report: Report, description: Description) -> str:
    """The figures as tables, a blank line between them."""
    d = description
    parts = [f"{d.name} {d.version}, sha256 {d.sha256[:12]}, {folds_in_words(report.folds)}, seed {report.seed}"]
    if report.recorded:
        parts.append(_recorded(report.recorded))
    if report.scenes:
        parts.append(_scenes(report.scenes))
    parts.append(_quiet(report.quiet))
    if report.levels:
        parts.append(_levels(report.levels))
    if report.robust:
        parts.append(_robust(report.robust))
    return "\n\n".join(parts)


def _recorded(one: Recorded) -> str:
    head = (f"{one.recordings} recordings", "events", "found", "recall", *WHEN)
    rows = [
        (name, str(of.events), str(of.found), f"{of.recall:.1%}", *_when(of))
        for name, of in (*one.per_label.items(), ("all", one.overall))
    ]
    return f"{_table(head, rows)}\nat least one event found in {one.with_event} of {one.recordings} recordings"


def _scenes(one: Scenes) -> str:
    head = (
        f"{one.soundscapes} soundscapes of {SOUNDSCAPE_S:.0f} s",
        "segment F1",
        "onset F1",
        "inters. F1",
        "events",
        "found",
        *WHEN,
    )
    names = ("segment_f1", "collar_f1", "intersection_f1")
    rows = [
        (
            label,
            *(f"{getattr(of, name):.3f}" for name in names),
            str(of.detection.events),
            str(of.detection.found),
            *_when(of.detection),
        )
        for label, of in one.per_label.items()
    ]
    rows.append(("macro", *(f"{one.macro[name]:.3f}" for name in names)))
    rows.append(
        ("all", *(f"{one.micro[name]:.3f}" for name in names), str(one.overall.events), str(one.overall.found), *_when(one.overall))
    )
    scores = "" if one.psds is None else f"PSDS {one.psds['psds_1']:.3f} (scenario 1), {one.psds['psds_2']:.3f} (2); "
    return f"{_table(head, rows)}\n{scores}ECE of the scores {one.ece:.3f}" + (
        "" if one.psds else f"\nPSDS needs sed_scores_eval; {install('eval')}"
    )


def _quiet(quiet: Sequence[Quiet]) -> str:
    head = ("false events on", "hours", "events", "an hour", "at most", "")
    rows = [
        (
            one.name,
            f"{one.hours:.2f}",
            str(one.events),
            f"{one.per_hour:.1f}",
            f"{one.at_most_per_hour:.1f}",
            ", ".join(f"{label} {count}" for label, count in sorted(one.per_label.items(), key=lambda item: -item[1])),
        )
        for one in quiet
    ]
    return f"{_table(head, rows)}\nat most: the upper 95 % bound of what so many events in so many hours tell (Poisson, exact)"


def _levels(levels: Sequence[Level]) -> str:
    head = (
        "the same model at other levels",
        "false an hour",
        "at most",
        "recall, recordings",
        "soundscapes",
        "inters. F1",
        "shift",
    )
    named = [("its own", next(level for level in levels if level.shift == 0))]
    named += [(f"within {most} false an hour", level) for most in MOST_AN_HOUR if (level := lowest_within(levels, most))]
    rows = [
        (
            name,
            f"{level.per_hour:.1f}",
            f"{level.at_most_per_hour:.1f}",
            _or_dash(level.recorded_recall, "{:.1%}"),
            _or_dash(level.scenes_recall, "{:.1%}"),
            _or_dash(level.scenes_f1, "{:.3f}"),
            f"{level.shift:+.2f}" if level.shift else "0",
        )
        for name, level in named
    ]
    return f"{_table(head, rows)}\nshift: of the logits of all thresholds; the lowest with so few false events in all quiet folders"


def _robust(table: Sequence[Robust]) -> str:
    head = ("heard as", "accuracy", "recall", "false an hour")
    rows = [
        (one.condition, _or_dash(one.accuracy, "{:.1%}"), _or_dash(one.recall, "{:.1%}"), _or_dash(one.false_per_hour, "{:.1f}"))
        for one in table
    ]
    return _table(head, rows)


WHEN = ("timed", "onset error", "(absolute)", "latency", "95 %")


def _when(of: Detection) -> tuple[str, ...]:
    return (
        str(of.timed),
        _or_dash(of.onset_error_s, "{:+.2f} s"),
        _or_dash(of.onset_distance_s, "{:.2f} s"),
        _or_dash(of.latency_s, "{:.2f} s"),
        _or_dash(of.latency_p95_s, "{:.2f} s"),
    )


def _or_dash(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Names to the left, numbers to the right; the column without a head is text."""
    lines = [head, *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    aligned = [
        "  ".join(
            f"{cell:<{width}}" if column == 0 or not head[column] else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
    return "\n".join(aligned)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, dict):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value
