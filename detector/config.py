"""detector.toml -> typed, frozen settings. Every key is a field below; an unknown one is an error that names it."""

from __future__ import annotations

import dataclasses
import os
import re
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detector.audio.devices import check_name
from detector.audio.url import check_url, is_stream
from detector.errors import ConfigError
from detector.model import LONGEST_S, PROVIDERS, Threshold
from detector.tables import build, read_toml

LONGEST_LOGGED = 200
"""Bytes of a source's name that leave room for a time in a file's name."""
PLACES = (Path("detector.toml"), Path("/etc/urbandetect/detector.toml"))
"""Where settings are looked for when no --config is given, the first one found wins."""
CALIBRATION_DB = (50.0, 200.0)
"""No microphone is further from the usual 90 to 160: a number out of this is a sensitivity, or a sign that was lost."""
SHORTEST_LEVEL_S = 0.1
"""Of sound levels: a time constant of the meter. A message for every few samples would leave no time to hear."""
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
DISCOVERIES = ("off", "device", "component")
LONGEST_CLIP_S = 600.0
"""A clip is in memory until it ends."""
LOG_LEVELS = ("debug", "info", "warning", "error")


@dataclass(frozen=True)
class SourceSettings:
    """One [[source]]: a microphone (`device`), or a recording, a pipe or a stream (`input`).

    calibration_db: the sound pressure level of a full-scale sine (AES17) in dB re 20 uPa, None while nobody has measured it.
    """

    name: str = "mic1"
    device: str = ""
    input: str = field(default="", repr=False)  # a stream's password may stand in it
    calibration_db: float | None = None


@dataclass(frozen=True)
class ModelSettings:
    """[model]: path, empty for the shipped one; provider `auto`, `cuda` or `cpu`."""

    path: str = ""
    provider: str = "auto"


@dataclass(frozen=True)
class MqttSettings:
    """[mqtt]: without a host, events go to standard output. port: 0 is 1883, or 8883 with tls."""

    host: str = ""
    port: int = 0
    username: str = ""
    password_file: str = ""
    client_id: str = ""
    root: str = "urbandetect"
    tls: bool = False
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""

    @property
    def address(self) -> tuple[str, int]:
        return self.host, self.port or (8883 if self.tls else 1883)


@dataclass(frozen=True)
class HomeAssistantSettings:
    """[home_assistant]: discovery, one of DISCOVERIES: one message per device, or one per entity for versions before 2024.12;
    prefix: the first levels of its discovery topics."""

    discovery: str = "off"
    prefix: str = "homeassistant"


@dataclass(frozen=True)
class OutboxSettings:
    """[outbox]: where events wait for the broker, in systemd's or this user's state folder when path is empty, and how many may."""

    path: str = ""
    max_mb: float = 64.0
    max_days: float = 7.0


@dataclass(frozen=True)
class EventSettings:
    """[events]: update_s, how often a lasting event is told again, 0 never; level_s, how often the level is."""

    update_s: float = 0.0
    level_s: float = 10.0


@dataclass(frozen=True)
class ScoreLogSettings:
    """[log_scores]: the scores of every row as files in this folder, empty for none; how much of them may be kept, and how long."""

    folder: str = ""
    max_mb: float = 200.0
    max_days: float = 30.0


@dataclass(frozen=True)
class WebSettings:
    """[web]: HOST:PORT to listen on, empty for none; token_file: what to show to it; hosts: its names, besides this computer's."""

    listen: str = ""
    token_file: str = ""
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True)
class ClipSettings:
    """[clips]: the sound of events as files in this folder, empty for none; each from before_s before the onset to after_s after
    the offset, at most max_s; how many are kept; of which labels, empty for all; the age public key they are encrypted to."""

    folder: str = ""
    before_s: float = 2.0
    after_s: float = 2.0
    max_s: float = 30.0
    max_mb: float = 1000.0
    max_days: float = 7.0
    labels: tuple[str, ...] = ()
    recipient: str = ""


@dataclass(frozen=True)
class ThresholdSettings:
    """[thresholds.LABEL]: what of the model's own thresholds to change; None keeps the model's.

    min_on_s: shorter events are not told; cooldown_s: nor is one that begins so soon after the last.
    """

    on: float | None = None
    off: float | None = None
    min_on_s: float | None = None
    min_off_s: float | None = None
    cooldown_s: float | None = None


@dataclass(frozen=True)
class ProfileSettings:
    """One [[profile]]: other thresholds, and labels not told, from `begins` to `ends` by local time, on these of DAYS or on all."""

    name: str
    begins: str
    ends: str
    days: tuple[str, ...] = ()
    muted: tuple[str, ...] = ()
    thresholds: Mapping[str, ThresholdSettings] = field(default_factory=dict)


@dataclass(frozen=True)
class Settings:
    """detector.toml. node: this computer in the topics, its host name when empty; log_level: what is said, one of LOG_LEVELS;
    source_folder: more sources, a file each."""

    node: str = ""
    log_level: str = "info"
    source_folder: str = ""
    source: tuple[SourceSettings, ...] = (SourceSettings(),)
    model: ModelSettings = ModelSettings()
    mqtt: MqttSettings = MqttSettings()
    home_assistant: HomeAssistantSettings = HomeAssistantSettings()
    outbox: OutboxSettings = OutboxSettings()
    events: EventSettings = EventSettings()
    log_scores: ScoreLogSettings = ScoreLogSettings()
    web: WebSettings = WebSettings()
    clips: ClipSettings = ClipSettings()
    thresholds: Mapping[str, ThresholdSettings] = field(default_factory=dict)
    profile: tuple[ProfileSettings, ...] = ()


def load_settings(path: Path | None) -> tuple[Settings, str]:
    """Settings and where they are from: this file, the first of PLACES, or the defaults. Raises ConfigError naming file and key."""
    if path is None:
        path = next((place for place in PLACES if place.is_file()), None)
        if path is None:
            return Settings(), "the defaults"
    tables = read_toml(path)
    settings = build(Settings, tables, str(path))
    own = settings.source if "source" in tables or not settings.source_folder else ()
    others = _sources(settings, str(path))
    settings = dataclasses.replace(settings, source=(*own, *others.values()))
    for table, key in (("outbox", "path"), ("log_scores", "folder"), ("clips", "folder")):
        place = _placed(getattr(getattr(settings, table), key), path, f"{table}.{key}")
        settings = dataclasses.replace(settings, **{table: dataclasses.replace(getattr(settings, table), **{key: place})})
    check(settings, str(path), [str(path)] * len(own) + list(others))
    return settings, str(path)


def _placed(name: str, file: Path, key: str) -> str:
    """Where a setting of `file` says that something is written: a name stays, ~ is a home, any other path begins at the file."""
    if not name.startswith("~") and "/" not in name:
        return name
    place = os.path.expanduser(name)  # noqa: PTH111 - a Path's raises for a user who is not there
    if place.startswith("~"):
        raise ConfigError(str(file), f"{key} = {name!r}: nobody knows the home of {name.split('/')[0]}", "write the whole path")
    return str((file.parent / place).absolute())


def file_of(source: str, settings: Settings, where: str) -> str:
    """The file that names this source: the settings' own, which is `where`, or one of their source_folder."""
    return next((file for file, one in _sources(settings, where).items() if one.name == source), where)


def _sources(settings: Settings, where: str) -> dict[str, SourceSettings]:
    """One of each .toml in source_folder, by file: the keys of a [[source]]; `name` is the file's name where it is not given."""
    if not settings.source_folder:
        return {}
    folder = Path(where).parent / os.path.expanduser(settings.source_folder)  # noqa: PTH111 - as above
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix == ".toml" and not file.name.startswith("."))
    except OSError as error:
        what = f"source_folder: {folder} cannot be read ({error.strerror})"
        raise ConfigError(where, what, "make it, or leave source_folder out") from error
    return {str(file): build(SourceSettings, {"name": file.stem} | read_toml(file), str(file)) for file in files}


def check(settings: Settings, where: str, files: Sequence[str] = ()) -> None:
    """Raise ConfigError for values that cannot work together. files: that of each source, where they are several."""
    if not settings.source:
        raise ConfigError(where, "has no [[source]], nor a file in source_folder", "give one with a device")
    named: dict[str, str] = {}
    for source, file in zip(settings.source, files or [where] * len(settings.source), strict=True):
        _check_source(source, settings, file)
        if source.name in named:
            other = "" if file == named[source.name] else f", the other in {named[source.name]}"
            raise ConfigError(file, f"two [[source]] are named {source.name!r}{other}", "give each its own name")
        named[source.name] = file
    if settings.node:
        topic_level(settings.node, where, "node")
    for level in settings.mqtt.root.split("/"):
        topic_level(level, where, "mqtt.root")
    _check_mqtt(settings.mqtt, where)
    if not 1 <= settings.log_scores.max_mb <= 10_000_000 or not 0 < settings.log_scores.max_days <= 10_000:
        raise ConfigError(where, "log_scores.max_mb must be 1 to 10000000, log_scores.max_days above 0 and at most 10000")
    if settings.home_assistant.discovery not in DISCOVERIES:
        what = f"home_assistant.discovery = {settings.home_assistant.discovery!r}"
        raise ConfigError(where, what, f"one of {', '.join(DISCOVERIES)}")
    for level in settings.home_assistant.prefix.split("/"):
        topic_level(level, where, "home_assistant.prefix")
    if not 0 < settings.outbox.max_mb <= 100_000 or not 0 < settings.outbox.max_days <= 10_000:
        raise ConfigError(where, "outbox.max_mb must be above 0 and at most 100000, outbox.max_days at most 10000")
    _check_clips(settings.clips, where)
    for profile in settings.profile:
        _check_profile(profile, where)
    if settings.log_level not in LOG_LEVELS:
        raise ConfigError(where, f"log_level = {settings.log_level!r}", f"one of {', '.join(LOG_LEVELS)}")
    if settings.model.provider not in PROVIDERS:
        raise ConfigError(where, f"model.provider = {settings.model.provider!r}", f"one of {', '.join(PROVIDERS)}")
    if settings.events.update_s < 0 or not SHORTEST_LEVEL_S <= settings.events.level_s <= LONGEST_S:
        what = f"events.update_s must be at least 0, events.level_s at least {SHORTEST_LEVEL_S:g} and at most {LONGEST_S:g}"
        raise ConfigError(where, what)
    address = re.fullmatch(r"(\[[0-9A-Fa-f:.%]+\]|[^:\[\]\s]+):([0-9]{1,9})", settings.web.listen)
    if settings.web.listen and not (address and int(address[2]) <= 65535):
        what = "names no port that there is: it is at most 65535" if address else "is not HOST:PORT"
        raise ConfigError(where, f"web.listen = {settings.web.listen!r} {what}", "for example 127.0.0.1:8080")


def _check_source(source: SourceSettings, settings: Settings, where: str) -> None:
    topic_level(source.name, where, "source.name")
    if source.device and source.input:
        raise ConfigError(where, f"source {source.name!r} has both device and input", "keep one")
    check_name(source.device, f"{where}: source {source.name!r}: device = {source.device!r}")
    if is_stream(source.input):
        check_url(source.input, f"{where}: source {source.name!r}")
    if source.calibration_db is not None and not CALIBRATION_DB[0] <= source.calibration_db <= CALIBRATION_DB[1]:
        what = f"source {source.name!r} has calibration_db = {source.calibration_db:g}, the dB SPL of a full-scale sine"
        raise ConfigError(where, what, f"{CALIBRATION_DB[0]:g} to {CALIBRATION_DB[1]:g}; `urbandetect calibrate` measures it")
    length = len(source.name.encode())
    if settings.log_scores.folder and length > LONGEST_LOGGED:
        raise ConfigError(where, f"source {source.name!r} is too long to name files of [log_scores]", "use letters and digits")
    if settings.clips.folder and (source.name.startswith(".") or length > 255):
        what = f"source {source.name!r} cannot be the name of a folder of clips"
        raise ConfigError(where, what, "use letters, digits, - and _")


def _check_mqtt(mqtt: MqttSettings, where: str) -> None:
    if not 0 <= mqtt.port <= 65535:
        raise ConfigError(where, f"mqtt.port = {mqtt.port}", "a port is 1 to 65535, 0 the usual one")
    try:
        mqtt.host.encode("idna")
    except UnicodeError:
        raise ConfigError(where, f"mqtt.host = {mqtt.host!r} is not a host name", "for example broker, or 192.168.1.10") from None
    if mqtt.password_file and not mqtt.username:
        raise ConfigError(where, "mqtt.password_file is given without mqtt.username", "give both")
    for key in ("ca_file", "cert_file", "key_file"):
        if getattr(mqtt, key) and not mqtt.tls:
            raise ConfigError(where, f"mqtt.{key} is given without mqtt.tls", "set mqtt.tls = true")
    if mqtt.key_file and not mqtt.cert_file:
        raise ConfigError(where, "mqtt.key_file is given without mqtt.cert_file", "give both")


def _check_clips(clips: ClipSettings, where: str) -> None:
    around_s = clips.before_s + clips.after_s
    if not (min(clips.before_s, clips.after_s) >= 0 and around_s < clips.max_s <= LONGEST_CLIP_S):
        what = f"clips.before_s = {clips.before_s:g}, clips.after_s = {clips.after_s:g}, clips.max_s = {clips.max_s:g}"
        raise ConfigError(where, what, f"before_s and after_s from 0, together less than max_s; max_s at most {LONGEST_CLIP_S:g}")
    if not 0 < clips.max_mb <= 10_000_000 or not 0 < clips.max_days <= 10_000:
        raise ConfigError(where, "clips.max_mb must be above 0 and at most 10000000, clips.max_days at most 10000")
    if clips.recipient and not clips.recipient.startswith("age1"):  # not shown: a private key may stand there
        raise ConfigError(where, "clips.recipient is no age public key", "age-keygen prints one: age1...")


def _check_profile(profile: ProfileSettings, where: str) -> None:
    for key in ("begins", "ends"):
        if not re.fullmatch(r"([01]\d|2[0-3]):[0-5]\d", getattr(profile, key)):
            raise ConfigError(where, f"profile {profile.name!r}: {key} = {getattr(profile, key)!r}", "a time is 22:00")
    if profile.begins == profile.ends:
        raise ConfigError(
            where, f"profile {profile.name!r} begins and ends at {profile.ends}", "for the whole day, use [thresholds]"
        )
    for day in profile.days:
        if day not in DAYS:
            raise ConfigError(where, f"profile {profile.name!r}: {day!r} is no day", f"days are {', '.join(DAYS)}")


def scores_folder(settings: Settings) -> Path:
    """Where score logs are: log_scores.folder, else in the state folder."""
    return _in_state(settings.log_scores.folder or "scores")


def outbox_path(settings: Settings) -> Path:
    """Where events wait for the broker: outbox.path, else in the state folder, by the node's name where that is this user's."""
    default = "outbox.db" if os.environ.get("STATE_DIRECTORY") else f"outbox-{node_name(settings)}.db"
    return _in_state(settings.outbox.path or default)


def clips_folder(settings: Settings) -> Path:
    """Where clips are kept: clips.folder."""
    return _in_state(settings.clips.folder)


def _in_state(name: str) -> Path:
    """In the service's state folder, else in this user's; who names a whole path needs neither."""
    if Path(name).is_absolute():
        return Path(name)
    if folder := os.environ.get("STATE_DIRECTORY"):
        return Path(folder.split(":")[0]) / name
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "urbandetect" / name


def announced_path(settings: Settings) -> Path:
    """Where what Home Assistant was told is remembered: beside the outbox."""
    return outbox_path(settings).with_suffix(".announced.json")


def topic_level(text: str, where: str, key: str) -> None:
    """Raise ConfigError unless `text` can be one level of an MQTT topic."""
    if not re.fullmatch(r"[^/+#\s$][^/+#]{0,63}", text) or not text.isprintable():
        raise ConfigError(where, f"{key} = {text!r} cannot stand in an MQTT topic", "use letters, digits, - and _")


def node_name(settings: Settings) -> str:
    """The node's name in the topics."""
    return settings.node or re.sub(r"[^A-Za-z0-9_-]", "-", socket.gethostname().split(".")[0]) or "node"


def thresholds(settings: Settings, own: Mapping[str, Threshold], where: str) -> dict[str, Threshold]:
    """The model's own thresholds with the settings' changes. Raises ConfigError for an unknown label or impossible levels."""
    result = dict(own)
    for label, change in settings.thresholds.items():
        if label not in own:
            raise ConfigError(where, f"thresholds.{label}: the model has no such label", f"it has {', '.join(own)}")
        given = {key: value for key, value in dataclasses.asdict(change).items() if value is not None}
        new = dataclasses.replace(own[label], **given)
        if "on" in given and "off" not in given:
            new = dataclasses.replace(new, off=min(new.off, new.on))
        if not 0 < new.on <= 1 or not 0 <= new.off <= new.on:
            raise ConfigError(where, f"thresholds.{label}: on = {new.on}, off = {new.off}", "0 <= off <= on <= 1, on above 0")
        for key in ("min_on_s", "min_off_s", "cooldown_s"):
            if not 0 <= (seconds := getattr(new, key)) <= LONGEST_S:
                raise ConfigError(where, f"thresholds.{label}: {key} = {seconds:g}", f"0 to {LONGEST_S:g}, a day")
        result[label] = new
    return result
