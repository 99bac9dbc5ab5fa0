"""What commands of the detector share: options, and the settings they change."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from detector.errors import ConfigError, InputError, ModelError, SettingError

if TYPE_CHECKING:
    from detector.config import Settings
    from detector.model import Model

config_option = click.option(
    "--config",
    type=click.Path(path_type=Path, readable=False),  # who reads it says what is wrong
    help="Settings; else ./detector.toml, else /etc/urbandetect/detector.toml.",
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

    def take(option: str, **changes: Any) -> None:
        nonlocal settings
        settings = replace(settings, **changes)
        with of_an_option():  # what the file has is checked
            check(settings, option)

    if device is not None and input_ is not None:
        raise InputError("--device and --input", "exclude each other", "hear a microphone or a recording")
    if "" in (device, input_):
        raise InputError("--device or --input", "is empty", "give it a value, or leave it out")
    if input_ is not None:
        from detector.audio.url import refuse_password

        refuse_password(input_)
    if device is not None or input_ is not None:
        name = settings.source[0].name
        option = "--device" if input_ is None else "--input"
        take(option, source=(SourceSettings(name, device or "", input_ or ""),))
    if mqtt is not None:
        host, _, port = mqtt.rpartition(":") if ":" in mqtt else (mqtt, "", str(settings.mqtt.port))
        if not host or not re.fullmatch("[0-9]{1,9}", port):
            raise InputError("--mqtt", f"{mqtt!r} is not HOST or HOST:PORT", "for example broker:1883")
        take("--mqtt", mqtt=replace(settings.mqtt, host=host.strip("[]"), port=int(port)))
    if model_file is not None:
        take("--model", model=replace(settings.model, path=model_file))
    if provider is not None:
        take("--provider", model=replace(settings.model, provider=provider))
    if web is not None:
        take("--web", web=replace(settings.web, listen=web))
    return settings, where


@contextmanager
def of_an_option() -> Iterator[None]:
    """What is wrong here was given on the command line: ConfigError becomes InputError."""
    try:
        yield
    except ConfigError as error:
        raise InputError(error.where, error.what, error.fix) from error


@contextmanager
def naming(settings: Settings, where: str, web: str | None, input_: str | None) -> Iterator[None]:
    """Who set what turns out to be of no use is said: the option, as InputError, or the settings file, as ConfigError.

    settings, where: as of `settings_of`; web, input_: what --web and --input gave.
    """
    from detector.config import file_of

    try:
        yield
    except SettingError as error:
        for key, option, given in (("web.listen", "--web", web), ("input", "--input", input_)):
            if error.where == key and given is not None:
                raise InputError(option, error.what, error.fix) from error
        whose = f"{file_of(error.source, settings, where)}: source {error.source!r}" if error.source else where
        raise ConfigError(f"{whose}: {error.where}", error.what, error.fix) from error


def load_model(settings: Settings, where: str = "", model_file: str | None = None) -> Model:
    """The model that these settings name, else the one that comes with urbandetect. where: as of `settings_of`; model_file: what
    --model gave."""
    from detector.model import Model, shipped

    try:
        return Model(Path(settings.model.path) if settings.model.path else shipped("urban.onnx"), settings.model.provider)
    except ModelError as error:
        if not settings.model.path or model_file is not None or not where:
            raise
        raise ModelError(f"{where}: model.path: {error.where}", error.what, error.fix) from error
