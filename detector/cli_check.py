"""The commands that look at a computer's microphones, broker and model. Nothing heavy is imported before they run."""

from __future__ import annotations

import json
from pathlib import Path

import click

from detector.cli_settings import config_option, model_option, of_an_option, provider_option, settings_of
from detector.errors import InputError, TryAgainError


@click.command()
@click.option("--json", "as_json", is_flag=True, help="For programs.")
@click.option("--meter", is_flag=True, help="Show the level of each of them, live: which one hears you clap?")
@click.option("--seconds", type=click.FloatRange(0.1), help="Of --meter: for so long.  [default: until Ctrl-C]")
def devices(as_json: bool, meter: bool, seconds: float | None) -> None:
    """List the microphones that --device may name; `pactl list short sources` lists those of a sound server, as pulse:SOURCE."""
    from dataclasses import asdict

    from detector.audio.devices import list_devices

    if seconds is not None and not meter:
        raise InputError("--seconds", "is for --meter", "give both or neither")
    found = list_devices()
    if meter and (found or as_json):
        from detector.meter import show

        show(seconds, as_json)
        return
    if as_json:
        click.echo(json.dumps([asdict(device) for device in found]))
    if not found:
        fix = "plug a microphone in, and check that this user may use it (group audio)"
        raise TryAgainError("devices", "this computer has no input device that can be opened", fix)
    for device in () if as_json else found:
        default = "  (default)" if device.is_default else ""
        click.echo(f"{device.index:3d}  {device.name}  {device.channels} channels  {device.rate} Hz{default}")


@click.command()
@click.option("--device", default="", help="The microphone that has the calibrator on it, as in `run`.  [default: the system's]")
@click.option("--level", "level_db", type=float, required=True, help="The calibrator's, in dB: 94 or 114.")
@click.option("--seconds", type=float, default=10, show_default=True, help="How long to listen.")
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def calibrate(device: str, level_db: float, seconds: float, as_json: bool) -> None:
    """Listen to a calibrator's tone of 1 kHz and print the line of detector.toml that makes levels dB(A)."""
    from dataclasses import asdict

    from detector.audio.devices import check_name
    from detector.calibrate import calibrate as measure
    from detector.calibrate import listen

    if not 60 <= level_db <= 140:
        raise InputError("--level", f"{level_db:g} dB is no calibrator's", "it is printed on it: 94 or 114")
    if not 1 <= seconds <= 600:
        raise InputError("--seconds", f"{seconds:g} is not 1 to 600")
    with of_an_option():
        check_name(device, f"--device: {device!r}")
    samples, rate, where = listen(device, seconds)
    found = measure(samples, rate, level_db, where)
    if as_json:
        click.echo(json.dumps(asdict(found)))
        return
    heard = f"{level_db:g} dB at {found.tone_hz:g} Hz were {found.tone_dbfs:.2f} dBFS, steady within {found.spread_db:.2f} dB"
    click.echo(f"calibration_db = {found.calibration_db:.2f}  # {heard}")


@click.command()
@config_option
@click.option("--device", help="As of `run`.")
@click.option("--mqtt", metavar="HOST[:PORT]", help="As of `run`.")
@model_option
@provider_option
@click.option(
    "--seconds", type=click.FloatRange(0.5, 600), default=5.0, show_default=True, help="How long each microphone is heard."
)
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def doctor(
    config: Path | None,
    device: str | None,
    mqtt: str | None,
    model_file: str | None,
    provider: str | None,
    seconds: float,
    as_json: bool,
) -> None:
    """Say what is right, what is wrong and what to do, from the microphone to the broker; exit code 78 if something is wrong."""
    from detector.doctor.examine import tell

    tell(lambda: settings_of(config, device, None, mqtt, model_file, provider), seconds, device is None, as_json)


@click.command()
@model_option
@provider_option
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def bench(model_file: str | None, provider: str | None, as_json: bool) -> None:
    """Measure how fast this computer is: the network, a live stream, a scan, a start.

    It takes half a minute or more, best with nothing else running.
    """
    from dataclasses import asdict

    from detector.cli_settings import load_model
    from detector.config import ModelSettings, Settings
    from detector.speed import figures, machine

    model = load_model(Settings(model=ModelSettings(model_file or "", provider or "auto")))
    where = machine(model)
    if as_json:
        click.echo(json.dumps(where | {"figures": [asdict(figure) for figure in figures(model, model_file or "")]}))
        return
    for key, value in where.items():
        click.echo(f"{key:<10} {value}")
    click.echo(f"\n{'':<53} {'median':>9}  {'10 %':>9}  {'90 %':>9}")
    for figure in figures(model, model_file or ""):
        numbers = f"{figure.value:9.4g}  {figure.low:9.4g}  {figure.high:9.4g}"
        click.echo(f"{figure.what:<53} {numbers}  {figure.unit:<7}  {figure.note}".rstrip())
