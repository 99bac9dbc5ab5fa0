"""The command that says why something was told, or was not. Nothing heavy is imported before it runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.cli_settings import config_option
from detector.errors import InputError

if TYPE_CHECKING:
    from detector.explain import Event, Window


FIRST_YEAR, LAST_YEAR = 1970, 9990
"""Between them a time is one in every zone."""


@click.command()
@click.argument("event_id", required=False)
@click.option("--at", metavar="TIME", help="Instead of an event: what was heard then, as 2026-11-25T06:15:03Z.")
@click.option("--label", help="With --at: why this label was told or not.  [default: the one that came nearest]")
@click.option("--source", help="With --at: the microphone, where there are several.")
@click.option(
    "--logs",
    "paths",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Score logs, or a folder of them.  [default: the settings']",
)
@config_option
@click.option("--plot", metavar="FILE.svg", type=click.Path(path_type=Path), help="Draw it, too.")
@click.option("--json", "as_json", is_flag=True, help="For programs, with every row.")
def explain(
    event_id: str | None,
    at: str | None,
    label: str | None,
    source: str | None,
    paths: tuple[Path, ...],
    config: Path | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Show the scores around an event, or around a time at which one is missing, and the thresholds of then.

    From the score logs that `urbandetect run` writes with [log_scores].
    """
    import json

    from detector.explain import AROUND_S, LONGEST_S, OTHERS, find, sources, why, window
    from detector.score_file import logs

    if event_id is None and at is None:
        raise InputError("explain", "needs an event's id or --at TIME", "give one of them")
    if event_id is not None and at is not None:
        raise InputError("--at", "stands instead of an event's id", "give only one of them")
    if event_id and (label or source):
        raise InputError("--label and --source", "go with --at", "an event's id says both")
    if plot and plot.suffix != ".svg":
        raise InputError(str(plot), "is no name for a picture", "name it .svg")
    files = logs(paths or [_folder(config)])
    if not files:
        where = ", ".join(map(str, paths)) or str(_folder(config))
        raise InputError(
            where, "holds no score log", "set log_scores.folder in detector.toml and let it hear, or name a folder by --logs"
        )
    event, session = None, ""
    if event_id:
        event, source = find(files, event_id)
        session = event.id.partition("-")[0]
        label, begin_s = event.label, event.begins_s
        end_s = min(event.ends_s or event.told_s, begin_s + LONGEST_S)
    else:
        begin_s = end_s = _time(str(at))
        known = sources(files)
        source = source or (known[0] if len(known) == 1 else "")
        if source not in known:
            raise InputError(
                "--source", f"{source!r} has no log" if source else "is needed", f"there are logs of {', '.join(known)}"
            )
    seen = window(files, source, begin_s - AROUND_S, end_s + AROUND_S, session)
    if label and label not in seen.about.labels:
        raise InputError("--label", f"the model has no label {label}", f"it has {', '.join(seen.about.labels)}")
    label = label or seen.closest()[0]
    shown = [label, *seen.closest([label])[:OTHERS]]
    if plot:
        from detector.score_plot import svg

        _write(plot, svg(seen, shown, event))
    reason = {} if event else {"why": why(seen, label, begin_s)}
    if as_json:
        click.echo(json.dumps(_facts(seen, shown, event) | reason))
        return
    import shutil

    from detector.score_plot import text

    head = f"{label}, {source} on {seen.about.node}, around {at}"
    click.echo(_said(seen, label, event) if event else f"{head}\n  {reason['why']}")
    click.echo(f"\n{text(seen, shown, shutil.get_terminal_size((100, 24)).columns)}")


def _folder(config: Path | None) -> Path:
    from detector.config import load_settings, scores_folder

    return scores_folder(load_settings(config)[0])


def _time(text: str) -> float:
    """In seconds since 1970. Raises InputError without a zone: a street's log is read in another country, and in another summer."""
    from datetime import datetime

    try:
        moment = datetime.fromisoformat(text)
        if not FIRST_YEAR <= moment.year <= LAST_YEAR:
            raise ValueError
    except ValueError:
        raise InputError("--at", f"{text!r} is no time", "give one like 2026-11-25T06:15:03Z") from None
    if moment.tzinfo is None:
        raise InputError("--at", f"{text} has no time zone", "end it in Z for UTC, or in +01:00")
    return moment.timestamp()


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise InputError(str(path), f"cannot be written ({error.strerror})", "name another file") from error


def _said(seen: Window, label: str, event: Event) -> str:
    """The event in a few lines."""
    import numpy as np

    from detector.explain import local, utc

    during = (seen.begins_s >= event.begins_s - seen.about.row_s / 2) & (seen.begins_s < (event.ends_s or seen.begins_s[-1] + 1))
    scores, first = seen.column(label), int(np.argmax(during))
    peak = int(np.argmax(np.where(during, scores, -1)))
    threshold = seen.thresholds[first][label]
    later = [each[label] for each, inside in zip(seen.thresholds, during, strict=True) if inside]
    told_after_s = event.told_s - event.begins_s
    lines = [
        f"{label}, {seen.about.source} on {seen.about.node}, {seen.about.model}",
        f"  onset   {utc(event.begins_s)}  ({local(event.begins_s)})",
        f"  offset  {utc(event.ends_s)}  after {event.ends_s - event.begins_s:.2f} s"
        if event.ends_s
        else "  offset  not in the log",
        f"  opened  {threshold.on:.5g} (on) reached for {threshold.min_on_s:g} s (min_on_s), told {told_after_s:.2f} s after onset",
        f"  closed  less than {later[-1].off:.5g} (off) for {later[-1].min_off_s:g} s (min_off_s), or by the end of the sound",
        f"  peak    {event.score:.4f} after {seen.begins_s[peak] - event.begins_s:.2f} s, at {seen.dbfs[peak]:.1f} dBFS",
    ]
    if any(each != threshold for each in later):
        lines.append("  the thresholds changed while it lasted")
    return "\n".join(lines)


def _facts(seen: Window, shown: list[str], event: Event | None) -> dict[str, Any]:
    """What --json says; times in UTC."""
    from dataclasses import asdict

    from detector.explain import utc

    told = None
    if event:
        ends = utc(event.ends_s) if event.ends_s else None
        told = {"id": event.id, "onset": utc(event.begins_s), "told": utc(event.told_s), "offset": ends, "score": event.score}
    return {
        "source": asdict(seen.about),
        "event": told,
        "label": shown[0],
        "nearest": shown[1:],
        "times": [utc(at_s) for at_s in seen.begins_s.tolist()],
        "dbfs": [round(level, 1) for level in seen.dbfs.tolist()],
        "scores": {label: [round(score, 5) for score in seen.column(label).tolist()] for label in seen.about.labels},
        "on": {label: seen.level(label).tolist() for label in seen.about.labels},
        "off": {label: [each[label].off for each in seen.thresholds] for label in seen.about.labels},
    }
