"""The command that chooses a model's thresholds anew. Nothing heavy is imported before it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.errors import ConfigError, InputError, install

if TYPE_CHECKING:
    from detector.audio.source import Floats
    from detector.model import Threshold
    from trainer.heard import Heard, Sound, Source
    from trainer.thresholds import Chosen, Stream
    from trainer.thresholds import Heard as Recall

HOURS = {"h": 1, "day": 24, "week": 168}
FAR = 10.0
"""So many times longer than the sound may be what a rate is told of: the tail was tried down to a tenth of an event (TAIL)."""


@click.command()
@click.argument("heard", nargs=-1, metavar="[MODEL.onnx] [HEARD]...", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="N/h|day|week", help="So many events over all labels, as 0.5/day.")
@click.option(
    "--quiet",
    "quiet_given",
    metavar="PATH or FROM/TO",
    multiple=True,
    help="Sound in which no label is to be heard: recordings, score logs, a folder of them, or a time in HEARD's logs, as "
    "2026-11-25T22:00Z/2026-11-26T05:00Z; repeatable.",
)
@click.option("--label", "only", multiple=True, help="Change this label's thresholds alone, the target is for it; repeatable.")
@click.option("--model", "model_file", metavar="FILE", type=click.Path(path_type=Path), help="As MODEL.onnx.")
@click.option("--data", type=click.Path(path_type=Path), help="The UrbanSound8K folder, to choose min_on_s and the rest too.")
@click.option("--fold", "folds", type=click.IntRange(1, 10), multiple=True, help="Whose clips; one not trained on; repeatable.")
@click.option("--out", metavar="OUT.onnx", type=click.Path(path_type=Path), help="Write the model with them; it may be MODEL.onnx.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def tune(
    heard: tuple[Path, ...],
    target: str,
    quiet_given: tuple[str, ...],
    only: tuple[str, ...],
    model_file: Path | None,
    data: Path | None,
    folds: tuple[int, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Choose thresholds that tell so many events and no more, from what your microphone heard.

    HEARD are score logs ([log_scores] in detector.toml), recordings, or folders of either. Of them no more events are told than
    --target says, right or wrong: nobody has said which were true. Labels told too often are raised, no label is lowered. With
    --quiet no label is to be heard in that sound, and the target is of false events; HEARD then only shows what would be told.

    Without --data the levels move and the times stay; with it every label gets the times that hear its events best. Of a folder
    that the model was trained with only the part counts that training leaves out. Without --out nothing is written: the lines for
    detector.toml are printed.
    """
    import json

    per_hour = rate_per_hour(target)
    if bool(data) != bool(folds):
        raise InputError("--data and --fold", "go together", "give both or neither")
    if data and only:
        raise InputError("--data and --label", "exclude each other", "give one of them")
    if out and out.suffix != ".onnx":
        raise InputError(str(out), "is no name for a model", "name it .onnx")
    _need_onnx(out)
    spans = [when for text in quiet_given if (when := span_of(text))]
    still = [Path(text) for text in quiet_given if not span_of(text)]
    if heard and heard[0].suffix == ".onnx":
        model_file, heard = model_file or heard[0], heard[1:]
    if not heard and not still:
        raise InputError("tune", "has nothing that was heard", "give score logs, recordings, a folder of them, or --quiet")
    from trainer.heard import Sound

    sound = Sound(model_file, [*heard, *still], needs_model=bool(out or data or model_file))
    lives, quiets = sound.of(heard, spans), sound.of(still, [])
    source, silent = sound.source(), [*lives.quiet, *quiets.tables]
    if spans and not lives.quiet:
        raise InputError("--quiet", "none of the score logs was written at that time", "times are FROM/TO, each with Z or +01:00")
    for label in only:
        if label not in source.labels:
            raise InputError("--label", f"the model has no label {label}", f"it has {', '.join(source.labels)}")
    labels = only or source.labels
    if silent:
        streams = _streams(sound, data, folds, quiets.audio) if data else []
        chosen, new, facts, text = _for_false(source, labels, silent, streams, lives, per_hour, bool(data), out)
    elif data:
        raise InputError("--data", "goes with --quiet", "give sound in which no label is to be heard")
    else:
        chosen, new, facts, text = _for_told(source, labels, lives, per_hour, out)
    if out:
        from trainer.tuning import write_thresholds

        assert sound.model  # in force may be a profile that mutes: what was not chosen stays as the model has it
        own, found = sound.model.description.thresholds, chosen.thresholds if chosen else {}
        write_thresholds(
            sound.file, out, {label: new[label] if label in found else own[label] for label in own}, per_hour, bool(silent)
        )
    if as_json:
        click.echo(json.dumps(facts | {"out": str(out) if out else None}))
        return
    click.echo(text)
    if out:
        click.echo(f"wrote {out}")
    elif chosen and chosen.thresholds:
        click.echo(f"\n{_toml({label: new[label] for label in chosen.thresholds})}")


def _must_be_long_enough(hours: float, share: float) -> None:
    """Raise InputError for sound that supports no threshold for so many events of a label an hour."""
    least = 1 / (FAR * share)
    if hours < least:
        fix = f"it takes {_long(least)} of it, and better days; or give a higher --target"
        raise InputError("tune", f"{_long(hours)} of sound supports no threshold for so few events", fix)


def _supported(chosen: Chosen, whole: bool) -> Chosen:
    """Without the labels that no threshold keeps to their share, which are said; whole: they are an InputError, for a file would
    promise what it does not keep."""
    from dataclasses import replace

    kept = chosen.kept
    others = [label for label in chosen.thresholds if label not in kept]
    what, fix = "no threshold keeps it to its share of the target", "more sound, a higher --target, or `muted` in a profile"
    if others and whole:
        raise InputError(", ".join(others), what, fix)
    for label in others:
        click.echo(f"warning: {label}: {what}; it stays as it is; {fix}", err=True)
    return replace(chosen, thresholds=kept, expected={label: chosen.expected[label] for label in kept})


def _long(hours: float) -> str:
    return f"{hours:.3g} h" if hours >= 1 else f"{60 * hours:.2g} min"


def _counted(count: int, hours: float, where: str, expected: float) -> str:
    """And what that shows alone, where it is more than the rate that is expected, in events an hour."""
    from trainer.stream_metrics import poisson_bound

    bound = poisson_bound(count) / hours
    alone = f", which alone shows at most {_short(24 * bound)} a day (95 %)" if bound >= expected else ""
    return f"{count} counted{where}{alone}"


_Answer = tuple["Chosen | None", "dict[str, Threshold]", "dict[str, Any]", str]
"""What was chosen, all thresholds, what --json says and what else is printed."""


def _streams(sound: Sound, data: Path, folds: tuple[int, ...], beds: list[Path]) -> list[Stream]:
    """Soundscapes to choose times on."""
    from trainer.data import load_dataset, must_have
    from trainer.tuning import streams_of

    assert sound.model
    clips, d = load_dataset(data), sound.model.description
    if clips.labels != d.labels:
        raise InputError(str(sound.file), f"knows {', '.join(d.labels)}", f"the data set has {', '.join(clips.labels)}")
    must_have(clips, folds)
    _warn_of_trained(sound.file, folds, d.properties["training"])
    return streams_of(sound.model, clips, folds, beds)


def _for_false(
    source: Source,
    labels: Sequence[str],
    silent: list[Floats],
    streams: list[Stream],
    lives: Heard,
    per_hour: float,
    times: bool,
    out: Path | None,
) -> _Answer:
    """So many false events in sound in which there is nothing to hear; times: choose those too."""
    from dataclasses import replace

    from trainer.heard import columns, keep_cooldown
    from trainer.thresholds import Setting, choose, hears

    settings = None if times else {label: [Setting.of(source.thresholds[label])] for label in labels}
    _must_be_long_enough(sum(map(len, silent)) * source.hop / source.rate / 3600, per_hour / len(labels))
    found = choose(labels, source.hop, source.rate, columns(source, silent, labels), streams, per_hour, settings)
    chosen = _supported(found, whole=bool(out) or not found.kept)
    before = hears(labels, source.hop, source.rate, streams, source.thresholds)
    now = source.told(lives.tables, source.thresholds)
    then = source.told(lives.tables, keep_cooldown(chosen.thresholds, source.thresholds))
    new = source.proposed(chosen.thresholds)
    chosen = replace(chosen, thresholds={label: new[label] for label in chosen.thresholds})
    facts, text = _facts(chosen, before), _table(chosen, source.thresholds, before)
    if lives.tables:
        hours = lives.hours(source)
        facts |= {"heard": {"hours": hours, "what": lives.said, "told": {label: [now[label], then[label]] for label in labels}}}
        text += f"\n{_told(source, hours, lives.said, sum(now[label] for label in labels), sum(then[label] for label in labels))}"
    return chosen, new, facts, text


def _for_told(source: Source, labels: Sequence[str], lives: Heard, per_hour: float, out: Path | None) -> _Answer:
    """No more than so many events of those that were heard, true or false: labels told too often are raised."""
    from dataclasses import asdict

    from trainer.heard import columns, keep_cooldown, too_many
    from trainer.thresholds import Setting, choose

    hours, now = lives.hours(source), source.told(lives.tables, source.thresholds)
    raised, left = too_many({label: now[label] / hours for label in labels}, per_hour)
    _must_be_long_enough(hours, left / len(raised) if raised else per_hour)
    chosen = None
    if raised:
        settings = {label: [Setting.of(source.thresholds[label])] for label in raised}
        scores = columns(source, lives.tables, raised)
        chosen = _supported(choose(raised, source.hop, source.rate, scores, [], left, settings), whole=bool(out))
    found = chosen.thresholds if chosen else {}
    then = source.told(lives.tables, keep_cooldown(found, source.thresholds))
    new = source.proposed(found)
    lines = [f"{'label':<17} {'on':>18}  {'off':>7}  min_on_s  min_off_s  {'told a day':>18}"]
    for label in labels:
        old, threshold = source.thresholds[label], new[label]
        on = f"{old.on:>7.5g} -> {threshold.on:>7.5g}" if label in found else f"{old.on:>7.5g} stays    "
        told = f"{_short(24 * now[label] / hours):>7} -> {_short(24 * then[label] / hours):>7}"
        lines.append(f"{label:<17} {on}  {threshold.off:>7.5g}  {threshold.min_on_s:8.2f}  {threshold.min_off_s:9.2f}  {told}")
    told_then = sum(then[label] for label in labels)
    lines.append(_told(source, hours, lives.said, sum(now[label] for label in labels), told_then))
    expected = 0.0
    if chosen:
        expected = sum(one.extrapolated for one in chosen.expected.values())
        expected += sum(now[label] for label in labels if label not in found) / hours
        lines.append(f"{_short(24 * expected)} a day expected over all labels in the long run, {_short(24 * per_hour)} wanted")
    else:
        lines.append(f"nothing to change: {_short(24 * per_hour)} a day are wanted")
    lines[-1] += f"; {_counted(told_then, hours, '', expected)}"
    facts = {
        "told_events_per_hour": per_hour,
        "hours": hours,
        "what": lives.said,
        "times_extrapolated": chosen.reach if chosen else 0.0,
        "thresholds": {label: new[label].of_model() for label in found},
        "expected": {label: asdict(one) for label, one in chosen.expected.items()} if chosen else {},
        "told": {label: [now[label], then[label]] for label in labels},
    }
    return chosen, new, facts, "\n".join(lines)


def _told(source: Source, hours: float, what: str, now: int, then: int) -> str:
    look = "`urbandetect explain EVENT_ID` shows one" if source.rounded else "`urbandetect scan` says when they are"
    return (
        f"of {_long(hours)} heard ({what}): {now} events told at the thresholds now in force, {then} at the new ones;\n"
        f"which of them were true is known to who was there: {look}"
    )


def _short(number: float) -> str:
    return f"{number:.3g}" if number < 1000 else f"{number:.0f}"


def span_of(text: str) -> tuple[float, float] | None:
    """`2026-11-25T22:00Z/2026-11-26T05:00Z` in seconds since 1970; None for no such thing. Raises InputError without zones."""
    from datetime import datetime

    try:
        begin, end = map(datetime.fromisoformat, text.split("/"))
    except ValueError:
        return None
    if begin.tzinfo is None or end.tzinfo is None:
        raise InputError("--quiet", f"{text} has no time zone", "end both times in Z for UTC, or in +01:00")
    if not begin < end:
        raise InputError("--quiet", f"{text} ends before it begins", "give FROM/TO")
    return begin.timestamp(), end.timestamp()


def rate_per_hour(text: str) -> float:
    """`0.5/day` in events an hour; units h, day, week. Raises InputError."""
    said = re.fullmatch(r"(\d+\.?\d*|\.\d+)/(h|day|week)", text.replace(" ", ""))
    if not said or not float(said[1]):
        raise InputError("--target", f"{text!r} is no rate above 0", "give one like 0.5/day, 2/h or 1/week")
    return float(said[1]) / HOURS[said[2]]


def _need_onnx(out: Path | None) -> None:
    from importlib.util import find_spec

    if out and find_spec("onnx") is None:
        raise ConfigError(f"--out {out}", "needs onnx", f"{install('train')}, or leave --out away")


def _warn_of_trained(file: Path, folds: tuple[int, ...], training: Mapping[str, Any]) -> None:
    known = training.get("folds", {}).get("train") or []
    if seen := sorted({*folds} & {*known}):
        told = ", ".join(map(str, seen))
        click.echo(f"warning: {file} was trained on fold {told}: it hears those clips better than others", err=True)


def _table(chosen: Chosen, old: Mapping[str, Threshold], before: Mapping[str, Recall | None]) -> str:
    """One line a label, and the sum."""
    known = any(before.values())
    head = f"{'label':<17} {'on':>18}  {'off':>7}  min_on_s  min_off_s  false a day" + "  recall" * known
    lines = [head]
    for label, threshold in chosen.thresholds.items():
        expected, heard = chosen.expected[label], before[label]
        line = (
            f"{label:<17} {old[label].on:>7.5g} -> {threshold.on:>7.5g}  {threshold.off:>7.5g}  {threshold.min_on_s:8.2f}  "
            f"{threshold.min_off_s:9.2f}  {24 * expected.extrapolated:11.3g}"
        )
        if heard and expected.heard:
            line += f"  {heard.recall:.0%} -> {expected.heard.recall:.0%}"
        lines.append(line)
    each = chosen.expected.values()
    counted = round(sum(one.counted for one in each) * chosen.hours)
    rate = sum(one.extrapolated for one in each)
    where = f" in {_long(chosen.hours)} of quiet sound"
    lines.append(
        f"{24 * rate:.3g} false events a day expected over these labels, {24 * chosen.target:.3g} wanted; "
        f"{_counted(counted, chosen.hours, where, rate)}"
    )
    return "\n".join(lines)


def _facts(chosen: Chosen, before: Mapping[str, Recall | None]) -> dict[str, Any]:
    """What --json says; rates in events an hour."""
    from dataclasses import asdict

    return {
        "false_events_per_hour": chosen.target,
        "quiet_hours": chosen.hours,
        "times_extrapolated": chosen.reach,
        "thresholds": {label: threshold.of_model() for label, threshold in chosen.thresholds.items()},
        "expected": {label: asdict(one) for label, one in chosen.expected.items()},
        "heard_before": {label: asdict(one) if one else None for label, one in before.items()},
    }


def _toml(thresholds: Mapping[str, Threshold]) -> str:
    """The thresholds as detector.toml takes them."""

    lines = []
    for label, threshold in thresholds.items():
        lines.append(f"[thresholds.{label}]" if re.fullmatch(r"[A-Za-z0-9_-]+", label) else f'[thresholds."{label}"]')
        lines += [f"{key} = {value!r}" for key, value in threshold.of_model().items()]
        lines += [f"cooldown_s = {threshold.cooldown_s!r}"] * bool(threshold.cooldown_s)
    return "\n".join(lines)
