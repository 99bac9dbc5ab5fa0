from __future__ import annotations

import dataclasses
import re
import string
import tomllib
import typing
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from detector.config import (
    Settings,
    SourceSettings,
    clips_folder,
    load_settings,
    node_name,
    outbox_path,
    scores_folder,
    thresholds,
)
from detector.errors import ConfigError
from detector.model import Threshold

OWN = {"siren": Threshold(0.6, 0.3, 0.1, 0.5), "dog_bark": Threshold(0.5, 0.2, 0.1, 0.5)}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return tmp_path_factory.mktemp("config") / "detector.toml"


def settings_of(file, text):
    file.write_text(text)
    return load_settings(file)[0]


def test_an_empty_file_is_the_defaults(file):
    assert settings_of(file, "") == Settings()


def test_every_file_of_a_folder_is_a_source_named_as_the_file_unless_it_says_otherwise(tmp_path):
    settings, folder = tmp_path / "detector.toml", tmp_path / "sources.d"
    folder.mkdir()
    (folder / "north.toml").write_text('input = "rtsp://camera/1"')
    (folder / "east.toml").write_text('name = "gate"\ndevice = "hw:2"\ncalibration_db = 120')
    (folder / "notes.txt").write_text("not a source")
    (folder / ".east.toml.swp.toml").write_text("nor this")
    wanted = [SourceSettings("gate", "hw:2", calibration_db=120.0), SourceSettings("north", input="rtsp://camera/1")]
    assert list(settings_of(settings, 'source_folder = "sources.d"').source) == wanted
    both = settings_of(settings, f'source_folder = "{folder}"\n[[source]]\nname = "first"')
    assert list(both.source) == [SourceSettings("first"), *wanted]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("x", "/state/urbandetect/x"),
        ("/data/x", "/data/x"),
        ("~/a/x", "/home/me/a/x"),
        ("./x", "{folder}/x"),
        ("a/x", "{folder}/a/x"),
        ("../a/x", "{folder}/../a/x"),
    ],
)
@pytest.mark.parametrize(
    ("key", "place"), [("outbox.path", outbox_path), ("clips.folder", clips_folder), ("log_scores.folder", scores_folder)]
)
def test_what_is_written_lies_where_one_rule_says(tmp_path, monkeypatch, key, place, given, meant):
    for name, value in (("HOME", "/home/me"), ("XDG_STATE_HOME", "/state")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    monkeypatch.chdir(tmp_path)
    for file in (tmp_path / "detector.toml", Path("detector.toml")):
        assert str(place(settings_of(file, f"{key} = '{given}'"))) == meant.format(folder=tmp_path)


def test_a_home_that_nobody_knows_is_said(file):
    with pytest.raises(ConfigError, match=r"clips.folder = '~no-one/x': nobody knows the home of ~no-one; write the whole path"):
        settings_of(file, "clips.folder = '~no-one/x'")


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "divice = 'hw:1'", r"sources.d/a.toml: unknown key divice; did you mean device\?"),
        ("a.toml", "[[source]]", r"sources.d/a.toml: unknown key source"),
        ("a.toml", "input =", r"sources.d/a.toml: is not TOML"),
        ("mic1.toml", "", r"sources.d/mic1.toml: two \[\[source\]\] are named 'mic1', the other in .*/detector.toml; give each"),
        ("a+b.toml", "", r"sources.d/a\+b.toml: source.name = 'a\+b' cannot stand in an MQTT topic"),
        ("a.toml", "input = 'x.wav'\ndevice = 'hw:1'", r"sources.d/a.toml: source 'a' has both device and input; keep one"),
        ("a.toml", "device = 'hw:x'", r"sources.d/a.toml: source 'a': device = 'hw:x': is not hw:N"),
        ("a.toml", "input = 'ftp://x'", r"sources.d/a.toml: source 'a': input = 'ftp://...' is no stream"),
        ("a.toml", "calibration_db = -3", r"sources.d/a.toml: source 'a' has calibration_db = -3"),
    ],
)
def test_what_is_wrong_with_a_file_of_the_folder_is_one_line_that_names_it(tmp_path, name, text, said):
    (tmp_path / "sources.d").mkdir()
    (tmp_path / "sources.d" / name).write_text(text)
    with pytest.raises(ConfigError, match=said):
        settings_of(tmp_path / "detector.toml", 'source_folder = "sources.d"\n[[source]]\nname = "mic1"')


def test_a_folder_of_sources_that_is_not_there_or_holds_none_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"source_folder: .*sources.d cannot be read \(No such file or directory\); make it"):
        settings_of(tmp_path / "detector.toml", 'source_folder = "sources.d"')
    (tmp_path / "sources.d").mkdir()
    with pytest.raises(ConfigError, match="has no"):
        settings_of(tmp_path / "detector.toml", 'source_folder = "sources.d"')


def test_whole_paths_need_no_home(monkeypatch, file):
    for variable in ("HOME", "XDG_STATE_HOME", "STATE_DIRECTORY"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr("pathlib.Path.home", lambda: 1 / 0)
    found = settings_of(file, '[outbox]\npath = "/a/o.db"\n[clips]\nfolder = "/a/c"\n[log_scores]\nfolder = "/a/s"')
    assert [str(place(found)) for place in (outbox_path, clips_folder, scores_folder)] == ["/a/o.db", "/a/c", "/a/s"]


def test_every_setting_of_a_full_file_arrives(file):
    found = settings_of(
        file,
        """
        node = "street"
        [[source]]
        name = "north"
        device = "hw:1"
        [[source]]
        name = "south"
        input = "south.wav"
        [model]
        path = "my.onnx"
        provider = "cpu"
        [mqtt]
        host = "broker"
        port = 8883
        username = "me"
        password_file = "secret"
        client_id = "one"
        root = "a/b"
        [events]
        update_s = 5
        level_s = 1.5
        [thresholds.siren]
        on = 0.9
        """,
    )
    assert [source.name for source in found.source] == ["north", "south"]
    assert (found.node, found.mqtt.port, found.mqtt.root, found.events.update_s) == ("street", 8883, "a/b", 5.0)
    assert thresholds(found, OWN, "x")["siren"] == Threshold(0.9, 0.3, 0.1, 0.5)


def test_a_microphone_is_not_calibrated_unless_it_is_said(file):
    found = settings_of(file, "[[source]]\nname = 'north'\ncalibration_db = 117\n[[source]]\nname = 'south'")
    assert [source.calibration_db for source in found.source] == [117.0, None]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("nod = 'x'", "unknown key nod; did you mean node?"),
        ("[mqtt]\nhots = 'x'", "unknown key mqtt.hots; did you mean mqtt.host?"),
        ("[[source]]\nzzz = 1", "unknown key source.zzz; known: name, device, input"),
        ("[thresholds.siren]\nonn = 1", "unknown key thresholds.siren.onn; did you mean thresholds.siren.on?"),
        ('"a\\nb" = 1', "unknown key a b"),
        ("node = 3", "node must be text in quotes, not 3"),
        ("[mqtt]\nport = '1883'", "mqtt.port must be a whole number, not '1883'"),
        ("[mqtt]\nport = true", "mqtt.port must be a whole number, not true"),
        ("node = 1970-01-01", "node must be text in quotes, not 1970-01-01"),
        ("[mqtt]\nport = {a = 1}", "mqtt.port must be a whole number, not a table"),
        ("[web]\nlisten = '127.0.0.1:99999'", "web.listen = '127.0.0.1:99999' names no port"),
        ("[web]\nlisten = '8080'", "web.listen = '8080' is not HOST:PORT"),
        ("[[source]]\ndevice = 'hw:x'", "source 'mic1': device = 'hw:x': is not hw:N"),
        ("[mqtt]\nport = 70000", "mqtt.port = 70000"),
        ("[events]\nupdate_s = nan", "events.update_s must be a number"),
        ("[events]\nupdate_s = inf", "events.update_s must be a number"),
        ("[events]\nupdate_s = -1", "events.update_s"),
        ("[events]\nlevel_s = 0", "events.level_s"),
        ("[events]\nlevel_s = 1" + "0" * 400, "events.level_s"),
        ("[events]\nlevel_s = 1" + "0" * 5000, "detector.toml"),
        ("[model]\nprovider = 'gpu'", "model.provider = 'gpu'; one of auto, cuda, cpu"),
        ("model = 'x'", "model must be a table"),
        ("source = {}", "source must be a list of tables, not a table; write [[source]]"),
        ("source = []", "has no [[source]]"),
        ("source = [1]", "source must be a table"),
        ("thresholds = 1", "thresholds must be a table"),
        ("thresholds = {siren = 1}", "thresholds.siren must be a table"),
        ("[[source]]\n[[source]]", "two [[source]] are named 'mic1'"),
        ("[[source]]\nname = 'a/b'", "source.name = 'a/b' cannot stand in an MQTT topic"),
        ("[[source]]\nname = ''", "source.name"),
        ("[[source]]\ndevice = 'a'\ninput = 'b'", "both device and input"),
        ("[[source]]\ncalibration_db = -38.5", "source 'mic1' has calibration_db = -38.5"),
        ("[[source]]\ncalibration_db = '120'", "source.calibration_db must be a number, not '120'"),
        ("[events]\nlevel_s = 86401", "events.level_s at least 0.1 and at most 86400"),
        ("[events]\nlevel_s = 0.09", "events.level_s at least 0.1 and at most 86400"),
        ("node = '#'", "node = '#'"),
        ("[mqtt]\nroot = 'a//b'", "mqtt.root"),
        ("[mqtt", "is not TOML"),
        ("x = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_file_and_key(file, text, named):
    with pytest.raises(ConfigError) as caught:
        settings_of(file, text)
    assert named in str(caught.value)
    assert str(caught.value).startswith(str(file))
    assert len(str(caught.value).splitlines()) == 1


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    (tmp_path / "latin.toml").write_bytes(b"node = '\xe9'")
    for path in (tmp_path, tmp_path / "missing.toml", tmp_path / "latin.toml"):
        with pytest.raises(ConfigError, match=r"^.*(cannot be read .* may this user read it|is not TOML .* save it as UTF-8)"):
            load_settings(path)


keys = st.sampled_from(["node", "source", "model", "mqtt", "events", "thresholds", "name", "port", "on", "update_s", "x"])
values = st.recursive(
    st.one_of(st.integers(), st.floats(), st.booleans(), st.text(string.printable, max_size=5), st.dates()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)


def toml(value):
    """An inline TOML value."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\u{ord(letter):04x}" for letter in value) + '"'
    return str(value).lower() if isinstance(value, bool) else str(value)


@settings(deadline=None)
@given(
    st.one_of(
        st.binary(),
        st.text().map(str.encode),
        st.dictionaries(keys, values).map(lambda t: toml(t)[1:-1].replace(", ", "\n").encode()),
    )
)
@example(b"a = " + b"{a=" * 2000)
def test_no_file_whatever_raises_anything_but_a_configuration_error_of_one_line(file, content):
    file.write_bytes(content)
    try:
        load_settings(file)
    except ConfigError as error:
        assert len(str(error).splitlines()) == 1  # noqa: PT017 - it may also be valid


def test_without_a_file_the_first_of_the_known_places_counts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("detector.config.PLACES", (Path("detector.toml"), tmp_path / "other.toml"))
    assert load_settings(None)[0] == Settings()
    (tmp_path / "other.toml").write_text("node = 'other'")
    assert load_settings(None)[0].node == "other"
    (tmp_path / "detector.toml").write_text("node = 'here'")
    assert load_settings(None)[0].node == "here"


def test_thresholds_change_only_what_is_given_and_off_stays_below_on(file):
    found = settings_of(file, "[thresholds.siren]\non = 0.2\n[thresholds.dog_bark]\nmin_off_s = 2")
    assert thresholds(found, OWN, "x") == {"siren": Threshold(0.2, 0.2, 0.1, 0.5), "dog_bark": Threshold(0.5, 0.2, 0.1, 2.0)}


@pytest.mark.parametrize(
    "text",
    [
        "[thresholds.sirene]\non = 0.5",
        *(f"[thresholds.siren]\n{line}" for line in ["on = 1.5", "on = 0", "on = -1", "off = 0.7", "off = -1"]),
        *(f"[thresholds.siren]\n{key} = {value}" for key in ["min_on_s", "min_off_s", "cooldown_s"] for value in [-1, 1e308]),
    ],
)
def test_impossible_thresholds_are_named(file, text):
    with pytest.raises(ConfigError, match=r"thresholds\.siren"):
        thresholds(settings_of(file, text), OWN, "x")


def test_the_node_is_the_host_s_name_unless_set(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "my pi.local")
    assert node_name(Settings()) == "my-pi"
    assert node_name(Settings(node="street")) == "street"


def test_the_settings_file_explains_every_key_and_shows_its_default():
    """What is commented out is the default, but where an example says more: names, [thresholds] and [[profile]]."""
    examples = {"source", "thresholds", "profile"}
    shown: dict[str, dict[str, str]] = {"": {}}
    table = ""
    for line in (Path(__file__).parents[2] / "detector.toml").read_text().splitlines():
        if header := re.match(r"(?:# )?\[+(\w+)[\].]", line):
            table = table if table == "profile" and header[1] == "profile" else header[1]
            shown.setdefault(table, {})
            continue
        if key := re.match(r"(?:# )?([a-z_]+) = (\S.*?)\s+#|(?:# )?([a-z_]+) = (\S.*)$", line):
            name, value = key[1] or key[3], key[2] or key[4]
            shown[table][name] = value
    for field in dataclasses.fields(Settings):
        hint = typing.get_type_hints(Settings)[field.name]
        kind = next((one for one in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(one)), None)
        if kind is None:
            assert field.name in shown[""], f"detector.toml does not show {field.name}"
            continue
        keys = {one.name: one for one in dataclasses.fields(kind)}
        missing = keys.keys() - shown.get(field.name, {}).keys() - ({"thresholds"} if field.name == "profile" else set())
        assert not missing, f"detector.toml does not show {field.name}.{missing}"
        if field.name not in examples:
            for name, one in keys.items():
                value = tomllib.loads(f"x = {shown[field.name][name]}")["x"]
                assert (tuple(value) if isinstance(value, list) else value) == one.default, f"{field.name}.{name}"
