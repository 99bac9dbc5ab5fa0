"""The command line: parse, call, exit code. Rooms are imported by the command that needs them, so that --help is quick."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.cli_check import bench, calibrate, devices, doctor
from detector.cli_explain import explain
from detector.cli_scan import scan
from detector.cli_settings import config_option, load_model, model_option, naming, provider_option, settings_of
from detector.errors import ConfigError, InputError, UrbandetectError
from trainer.cli import evaluate, export, train
from trainer.cli_look import augment_preview, classify, data, plot
from trainer.cli_tune import tune

if TYPE_CHECKING:
    from detector.config import Settings
    from detector.model import Description
    from detector.observer import Observer
    from detector.profile import Profile
    from detector.web.server import Web
    from trainer.cfg import Cfg

USAGE, INTERNAL, TRY_AGAIN = 64, 70, 75
SPEEDS = {"1": 1.0, "max": 0.0}
PRIORITIES = {logging.DEBUG: 7, logging.INFO: 6, logging.WARNING: 4, logging.ERROR: 3, logging.CRITICAL: 2}


def main() -> None:
    """Run a command; every failure is one line on standard error and a documented exit code."""
    if sys.stdout:
        sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # file names need not be UTF-8
    logging.basicConfig(format="%(levelname)s %(message)s", level=logging.INFO, stream=sys.stderr)
    if _journal_reads():
        logging.getLogger().handlers[0].setFormatter(_ForJournal())
    logging.addLevelName(logging.WARNING, "warning")
    logging.addLevelName(logging.INFO, "info")
    try:
        cli.main(standalone_mode=False)
        code = 0
    except UrbandetectError as error:
        click.echo(f"urbandetect: {error}", err=True)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message(), err=True)
        code = USAGE
    except click.ClickException as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "urbandetect"
        click.echo(f"urbandetect: {error.format_message().rstrip('.')}; see `{command} --help`", err=True)
        code = USAGE
    except click.Abort:
        click.echo("urbandetect: stopped", err=True)
        code = 130
    except SystemExit:  # how click leaves when the reader of our output has gone
        code = 0
    except MemoryError:
        click.echo("urbandetect: memory: there is not enough; close other programs", err=True)
        code = 75
    except Exception as error:  # noqa: BLE001 - the last resort: one line instead of a traceback
        if isinstance(error, OSError) and error.errno == errno.ENOSPC:
            click.echo("urbandetect: the disk is full; make room and start again", err=True)
            os._exit(TRY_AGAIN)
        if logging.getLogger().isEnabledFor(logging.DEBUG):
            traceback.print_exc()
        click.echo(f"urbandetect: internal error: {type(error).__name__}: {error}; `urbandetect --debug ...` shows where", err=True)
        code = INTERNAL
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()
    os._exit(code)  # not through exit handlers: PortAudio's hangs with a card that hangs


class _ForJournal(logging.Formatter):
    """Lines with the priority that systemd's journal reads from them, and takes away (sd-daemon(3))."""

    def format(self, record: logging.LogRecord) -> str:
        return f"<{PRIORITIES.get(record.levelno, 3)}>{super().format(record)}"


def _journal_reads() -> bool:
    """Whether standard error is what systemd says its journal is."""
    try:
        facts = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{facts.st_dev}:{facts.st_ino}"


def _version(context: click.Context, _parameter: click.Parameter, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        from detector.health import own_version

        click.echo(f"urbandetect {own_version()}")
        context.exit()


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Exit codes: 0 ok, 64 wrong usage or input, 70 internal error, 75 try again later, 78 wrong configuration, 130 stopped.",
)
@click.option("--version", is_flag=True, callback=_version, expose_value=False, is_eager=True, help="Show the version and exit.")
@click.option("--debug", is_flag=True, help="Say more, and show where an internal error happened.")
def cli(debug: bool) -> None:
    """Hear a siren, a gun shot, a jackhammer on a street microphone and tell the world over MQTT."""
    if debug:
        logging.getLogger().setLevel(logging.DEBUG)


@cli.command()
@config_option
@click.option("--device", help="Microphone: hw:1, hw:CARD=name, usb:VID:PID, pulse:SOURCE, an index, a name, or default.")
@click.option("--input", "input_", metavar="FILE|URL|-", help="Hear a recording, a stream (rtsp, http), or WAV on standard input.")
@click.option(
    "--speed",
    type=click.Choice(list(SPEEDS)),
    default="1",
    show_default=True,
    help="Of a recording: real time, or as fast as it goes.",
)
@click.option("--mqtt", metavar="HOST[:PORT]", help="The broker. Without one, events go to standard output as JSON lines.")
@click.option(
    "--web", metavar="[HOST:PORT]", is_flag=False, flag_value="127.0.0.1:8080", help="Show a live page.  [127.0.0.1:8080]"
)
@model_option
@provider_option
def run(
    config: Path | None,
    device: str | None,
    input_: str | None,
    speed: str,
    mqtt: str | None,
    web: str | None,
    model_file: str | None,
    provider: str | None,
) -> None:
    """Listen, and publish what is heard until stopped."""
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))  # until the daemon takes it: nothing is lost
    from detector.audio.url import is_stream
    from detector.daemon import Daemon, Publisher
    from detector.daemon import run as run_daemon
    from detector.profile import profiles

    settings, where = settings_of(config, device, input_, mqtt, model_file, provider, web)
    live = next((source for source in settings.source if not source.input or is_stream(source.input)), None)
    if live and not SPEEDS[speed]:
        what = f"max is for recordings, and source {live.name!r} is heard live"
        raise InputError("--speed", what, "leave it out, or name a recording with --input")
    if not logging.getLogger().isEnabledFor(logging.DEBUG):
        logging.getLogger().setLevel(settings.log_level.upper())
    model = load_model(settings, where, model_file)
    hours = profiles(settings, model.description.thresholds, where)
    publisher: Publisher
    if settings.mqtt.host:
        from detector.config import announced_path, node_name, outbox_path
        from detector.publish.mqtt import Mqtt
        from detector.publish.outbox import Outbox

        outbox = Outbox(outbox_path(settings), round(settings.outbox.max_mb * 1e6), settings.outbox.max_days * 86_400)
        announcer = None
        if settings.home_assistant.discovery != "off" or announced_path(settings).exists():
            from detector.publish.announcer import Announcer
            from detector.publish.home_assistant import Place

            names = tuple(source.name for source in settings.source)
            calibrated = [source.name for source in settings.source if source.calibration_db is not None]
            place = Place(settings.mqtt.root, node_name(settings), names, model.description, calibrated)
            announcer = Announcer(settings.home_assistant, place, announced_path(settings))
        with naming(settings, where, web, input_):
            publisher = Mqtt(settings.mqtt, node_name(settings), outbox, announcer)
    else:
        from detector.publish.stdout import Stdout

        publisher = Stdout()

    @contextlib.contextmanager
    def reload() -> Iterator[tuple[Settings, list[Profile]]]:
        new, now_where = settings_of(config, device, input_, mqtt, model_file, provider, web)
        if now_where != where:
            raise ConfigError(where, "is not where settings come from any more", f"they would be {now_where}")
        with naming(new, where, web, input_):
            yield new, profiles(new, model.description.thresholds, where)

    observers: list[Observer] = []
    with naming(settings, where, web, input_):
        if settings.clips.folder:
            from detector.clips.keeper import Clips

            observers.append(Clips(settings, model.description))
        if settings.web.listen:
            observers.append(_web(settings, model.description))
    if settings.log_scores.folder:
        from detector.score_log import ScoreLog

        observers.append(ScoreLog(settings, model.description))
    with naming(settings, where, web, input_):
        daemon = Daemon(settings, model, hours, publisher, SPEEDS[speed], reload, observers)
    run_daemon(daemon)


@cli.command()
@model_option
@provider_option
def demo(model_file: str | None, provider: str | None) -> None:
    """Scan the bundled recording of a street and show what is heard beside what is there."""
    import csv

    from detector.config import ModelSettings, Settings
    from detector.scan import scan as scan_file

    folder = Path(__file__).parent / "demo"
    model = load_model(Settings(model=ModelSettings(model_file or "", provider or "auto")))
    d = model.description
    click.echo(f"street.ogg, {d.name} {d.version}, {len(d.labels)} labels, on {model.provider}\n")
    click.echo("heard")
    for found in sorted(scan_file(folder / "street.ogg", model), key=lambda found: found.onset_s):
        click.echo(f"  {found.label:<17} {found.onset_s:6.2f} s to {found.offset_s:6.2f} s   score {found.score:.2f}")
    click.echo("\nthere")
    with (folder / "street.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            click.echo(f"  {row['label']:<17} {float(row['onset_s']):6.2f} s to {float(row['offset_s']):6.2f} s")


@cli.group()
def model() -> None:
    """Look into a model."""


@model.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="For programs.")
def info(file: Path, as_json: bool) -> None:
    """Layers, parameters, hop, context and labels of an .onnx model or a .cfg architecture."""
    from trainer.cfg import load_cfg, parse_cfg, summary

    if file.suffix == ".onnx":
        from detector.model import Model

        d = Model(file, "cpu").description
        cfg = parse_cfg(str(d.properties["cfg"]), str(file))
        if as_json:
            facts = {key: value for key, value in d.properties.items() if key != "cfg"}
            click.echo(json.dumps(facts | {"sha256": d.sha256} | _facts(cfg), sort_keys=True))
            return
        click.echo(f"{d.name} {d.version}  sha256 {d.sha256}\n\n{summary(cfg)}\n")
        click.echo("label              on       off      min_on_s  min_off_s")
        for label in d.labels:
            t = d.thresholds[label]
            click.echo(f"{label:<17}  {t.on:<7.5g}  {t.off:<7.4g}  {t.min_on_s:8.2f}  {t.min_off_s:9.2f}")
        click.echo(f"\ntraining  {json.dumps(d.properties.get('training'))}\nmetrics   {json.dumps(d.properties.get('metrics'))}")
        return
    cfg = load_cfg(file)
    click.echo(json.dumps(_facts(cfg)) if as_json else summary(cfg))


def _facts(cfg: Cfg) -> dict[str, Any]:
    """What `model info --json` says of an architecture."""
    return {
        "parameters": cfg.parameters,
        "sample_rate": cfg.frontend.sample_rate,
        "hop": cfg.hop,
        "context": cfg.context,
        "stride_frames": cfg.stride_frames,
        "receptive_frames": cfg.receptive_frames,
        "streams": not cfg.obstacles,
        "obstacles": list(cfg.obstacles),
        "clip_pooling": cfg.clip_pooling,
        "layers": [{"name": layer.name, "shape": list(layer.shape_out), "parameters": layer.parameters} for layer in cfg.layers],
    }


for command in (scan, devices, calibrate, doctor, bench, explain, train, evaluate, tune, export, classify, data, augment_preview):
    cli.add_command(command)
model.add_command(plot)


def _web(settings: Settings, model: Description) -> Web:
    from detector.web import not_installed

    try:
        from detector.web.server import Web
    except ImportError as error:
        raise not_installed(error) from error
    return Web(settings, model)
