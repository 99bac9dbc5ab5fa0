"""The command that chooses a model's thresholds anew. Nothing heavy is imported before it runs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.errors import ConfigError, InputError

if TYPE_CHECKING:
    from detector.model import Threshold
    from trainer.thresholds import Chosen, Heard

HOURS = {"h": 1, "day": 24, "week": 168}
FAR = 30.0
"""A rate that is told from the tail of so many times less sound is a guess."""


@click.command()
@click.argument("file", metavar="MODEL.onnx", type=click.Path(path_type=Path))
@click.option("--target", required=True, metavar="N/h|day|week", help="So many false events over all labels, as 0.5/day.")
@click.option(
    "--quiet",
    type=click.Path(path_type=Path),
    multiple=True,
    required=True,
    help="A recording, or a folder of them, in which no label is to be heard; repeatable.",
)
@click.option("--data", type=click.Path(path_type=Path), help="The UrbanSound8K folder, to choose min_on_s and the rest too.")
@click.option("--fold", "folds", type=click.IntRange(1, 10), multiple=True, help="Whose clips; one not trained on; repeatable.")
@click.option("--out", metavar="OUT.onnx", type=click.Path(path_type=Path), help="Write the model with them; it may be MODEL.onnx.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def tune(
    file: Path,
    target: str,
    quiet: tuple[Path, ...],
    data: Path | None,
    folds: tuple[int, ...],
    out: Path | None,
    as_json: bool,
) -> None:
    """Choose thresholds that tell so many false events and no more, best from hours of your own street at rest.

    Without --data the levels move and the times stay; with it every label gets the times that hear its events best. Of a folder
    that the model was trained with only the part counts that training leaves out. Without --out nothing is written: the lines for
    detector.toml are printed.
    """
    import json

    per_hour = rate_per_hour(target)
    if bool(data) != bool(folds):
        raise InputError("--data and --fold", "go together", "give both or neither")
    if out and out.suffix != ".onnx":
        raise InputError(str(out), "is no name for a model", "name it .onnx")
    _need_onnx(out)
    from detector.model import Model
    from trainer.data import load_dataset, must_have
    from trainer.thresholds import Setting, choose, hears
    from trainer.tuning import quiet_files, scores_of_file, streams_of, write_thresholds

    model = Model(file, "cpu")
    d = model.description
    training = d.properties["training"]
    clips = load_dataset(data) if data else None
    if clips and clips.labels != d.labels:
        raise InputError(str(file), f"knows {', '.join(d.labels)}", f"the data set has {', '.join(clips.labels)}")
    if clips:
        must_have(clips, folds)
        _warn_of_trained(file, folds, training)
    files, partly = quiet_files(quiet, training)
    for folder in partly:
        click.echo(f"{folder}: the model was trained with such a folder, the part of it left for this counts", err=True)
    silent = [scores_of_file(model, each) for each in _progress(files)]
    streams = streams_of(model, clips, folds, files) if clips else []
    settings = None if clips else {label: [Setting.of(threshold)] for label, threshold in d.thresholds.items()}
    chosen = choose(d.labels, d.hop, d.sample_rate, silent, streams, per_hour, settings)
    if chosen.reach > FAR:
        click.echo(
            f"warning: {target} is told from {chosen.hours:.2g} h of quiet sound by a line {chosen.reach:.0f} times longer: "
            f"a guess; record {chosen.hours * chosen.reach / FAR:.0f} h or more",
            err=True,
        )
    before = hears(d.labels, d.hop, d.sample_rate, streams, d.thresholds)
    if out:
        write_thresholds(file, out, chosen.thresholds, per_hour)
    if as_json:
        click.echo(json.dumps(_facts(chosen, before, str(out) if out else None)))
        return
    click.echo(_table(chosen, d.thresholds, before))
    click.echo(f"wrote {out}" if out else f"\n{_toml(chosen.thresholds)}")


def rate_per_hour(text: str) -> float:
    """`0.5/day` in events an hour; units h, day, week. Raises InputError."""
    said = re.fullmatch(r"(\d+\.?\d*|\.\d+)/(h|day|week)", text.replace(" ", ""))
    if not said or not float(said[1]):
        raise InputError("--target", f"{text!r} is no rate above 0", "give one like 0.5/day, 2/h or 1/week")
    return float(said[1]) / HOURS[said[2]]


def _need_onnx(out: Path | None) -> None:
    from importlib.util import find_spec

    if out and find_spec("onnx") is None:
        raise ConfigError(f"--out {out}", "needs onnx", "install the extra: pip install -e '.[train]', or leave --out away")


def _warn_of_trained(file: Path, folds: tuple[int, ...], training: Mapping[str, Any]) -> None:
    known = training.get("folds", {}).get("train") or []
    if seen := sorted({*folds} & {*known}):
        told = ", ".join(map(str, seen))
        click.echo(f"warning: {file} was trained on fold {told}: it hears those clips better than others", err=True)


def _progress(files: list[Path]) -> Any:
    """The files, with a bar on a terminal."""
    import sys

    if not sys.stderr.isatty():
        yield from files
        return
    with click.progressbar(files, label="quiet sound", file=sys.stderr) as bar:
        yield from bar


def _table(chosen: Chosen, old: Mapping[str, Threshold], before: Mapping[str, Heard | None]) -> str:
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
    lines.append(
        f"{24 * sum(one.extrapolated for one in each):.3g} false events a day expected over all labels, "
        f"{24 * chosen.target:.3g} wanted; {counted} counted in {chosen.hours:.2f} h of quiet sound"
    )
    return "\n".join(lines)


def _facts(chosen: Chosen, before: Mapping[str, Heard | None], out: str | None) -> dict[str, Any]:
    """What --json says; rates in events an hour."""
    from dataclasses import asdict

    return {
        "false_events_per_hour": chosen.target,
        "quiet_hours": chosen.hours,
        "times_extrapolated": chosen.reach,
        "thresholds": {label: threshold.of_model() for label, threshold in chosen.thresholds.items()},
        "expected": {label: asdict(one) for label, one in chosen.expected.items()},
        "heard_before": {label: asdict(one) if one else None for label, one in before.items()},
        "out": out,
    }


def _toml(thresholds: Mapping[str, Threshold]) -> str:
    """The thresholds as detector.toml takes them."""

    lines = []
    for label, threshold in thresholds.items():
        lines.append(f"[thresholds.{label}]" if re.fullmatch(r"[A-Za-z0-9_-]+", label) else f'[thresholds."{label}"]')
        lines += [f"{key} = {value!r}" for key, value in threshold.of_model().items()]
    return "\n".join(lines)
