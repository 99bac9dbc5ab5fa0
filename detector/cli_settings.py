"""What commands of the detector share: options, and the settings they change."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from detector.errors import InputError

if TYPE_CHECKING:
    from detector.config import Settings
    from detector.model import Model

config_option = click.option(
    "--config", type=click.Path(path_type=Path), help="Settings; else ./detector.toml, else /etc/urbandetect/detector.toml."
)
model_option = click.option(
    "--model", "model_file", metavar="FILE", help="An .onnx model; else the one that comes with urbandetect."
)
provider_option = click.option(
    "--provider", type=click.Choice(["auto", "cuda", "cpu"]), help="Where the model runs.  [default: auto]"
)


def settings_of(
    config: Path | None,
    device: str | None,
    input_: str | None,
    mqtt: str | None,
    model_file: str | None,
    provider: str | None,
    web: str | None = None,
) -> tuple[Settings, str]:
    """Settings from the file with the command line's changes, and where they are from. Raises InputError and ConfigError."""
    from dataclasses import replace

    from detector.config import SourceSettings, check, load_settings

    settings, where = load_settings(config)
    if device is not None and input_ is not None:
        raise InputError("--device and --input", "exclude each other", "hear a microphone or a recording")
    if "" in (device, input_):
        raise InputError("--device or --input", "is empty", "give it a value, or leave it out")
    if input_ is not None:
        from detector.audio.url import refuse_password

        refuse_password(input_)
    if device is not None or input_ is not None:
        name = settings.source[0].name
        settings = replace(settings, source=(SourceSettings(name, device or "", input_ or ""),))
    if mqtt is not None:
        host, _, port = mqtt.rpartition(":") if ":" in mqtt else (mqtt, "", str(settings.mqtt.port))
        if not host or not port.isdigit():
            raise InputError("--mqtt", f"{mqtt!r} is not HOST or HOST:PORT", "for example broker:1883")
        settings = replace(settings, mqtt=replace(settings.mqtt, host=host.strip("[]"), port=int(port)))
    if model_file is not None:
        settings = replace(settings, model=replace(settings.model, path=model_file))
    if provider is not None:
        settings = replace(settings, model=replace(settings.model, provider=provider))
    if web is not None:
        settings = replace(settings, web=replace(settings.web, listen=web))
    check(settings, "the command line")
    return settings, where


def load_model(settings: Settings) -> Model:
    """The model that these settings name, else the one that comes with urbandetect."""
    from detector.model import Model, shipped

    return Model(Path(settings.model.path) if settings.model.path else shipped("urban.onnx"), settings.model.provider)
