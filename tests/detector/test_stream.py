"""A stream from a real server is heard as its file is; its server's troubles are told, and never with a password."""

from __future__ import annotations

import io
import re
import ssl
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
from parts import PATIENCE_S

from detector.audio.source import LONGEST_BLOCK_S, SourceLost
from detector.audio.url import check_url, refuse_password, shown
from detector.errors import ConfigError, InputError

RATE = 22050


@pytest.fixture
def module():
    pytest.importorskip("av", reason="needs PyAV: pip install -e '.[stream]'")
    from detector.audio import stream

    return stream


@pytest.fixture
def noise():
    """Two channels, 3 s."""
    return np.random.default_rng(0).normal(0, 0.1, (3 * RATE, 2)).astype(np.float32)


def encoded(samples, kind, subtype=None, rate=RATE):
    file = io.BytesIO()
    soundfile.write(file, samples, rate, format=kind, subtype=subtype)
    return file.getvalue()


def hear(source):
    """All blocks until it is lost, and what is said then; no call of `read` may wait."""
    blocks, deadline = [], time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        try:
            block = source.read()
        except SourceLost as lost:
            source.close()
            return blocks, f"{lost}"
        if block:
            blocks.append(block)
        time.sleep(0.005)
    raise AssertionError("it never ends")


def joined(blocks):
    assert [block.first for block in blocks] == [0, *np.cumsum([len(block.samples) for block in blocks])[:-1]]
    return np.concatenate([block.samples for block in blocks])


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "ULAW", "ALAW"])
def test_a_stream_of_any_sample_format_gives_the_samples_of_its_file_at_its_own_rate(module, sound_server, noise, subtype):
    data = encoded(noise, "WAV", subtype)
    sound_server.files["x"] = data, 3.0
    source = module.Stream(sound_server.url("x"), threading.Event())
    blocks, said = hear(source)
    heard = joined(blocks)
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(axis=1)
    assert source.rate == RATE
    np.testing.assert_allclose(heard, expected, atol=1e-6)
    assert "127.0.0.1" in said
    assert {block.reason for block in blocks} == {""}


@pytest.mark.parametrize(("kind", "subtype"), [("FLAC", None), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", None)])
def test_what_icecast_sends_is_heard_as_libsndfile_hears_it(module, sound_server, noise, kind, subtype):
    rate = 48000 if subtype == "OPUS" else RATE
    smooth = np.cumsum(noise, axis=0).astype(np.float32) / 20  # a codec keeps low notes
    smooth -= smooth.mean(axis=0)
    smooth /= abs(smooth).max() * 1.2
    data = encoded(smooth, kind, subtype, rate)
    sound_server.files["x"] = data, 3.0
    source = module.Stream(sound_server.url("x"), threading.Event())
    heard = joined(hear(source)[0])
    expected = soundfile.read(io.BytesIO(data), dtype="float32")[0].mean(axis=1)
    common = min(len(heard), len(expected))
    assert source.rate == rate
    assert common > 0.95 * len(expected)
    best = max(np.corrcoef(heard[shift:common], expected[: common - shift])[0, 1] for shift in (0, 529, 1105, 1152, 1681))
    assert best > 0.99


def test_what_a_server_sends_at_once_is_no_loss_and_its_times_are_those_of_a_stream(module, sound_server):
    seconds = 15
    sound_server.files["x"] = encoded(np.random.default_rng(1).normal(0, 0.1, seconds * RATE), "WAV", "PCM_16"), seconds
    source = module.Stream(sound_server.url("x"), threading.Event())
    deadline = time.monotonic() + PATIENCE_S
    while not (source._failure or time.monotonic() > deadline):
        time.sleep(0.01)
    blocks, _ = hear(source)
    assert len(joined(blocks)) == seconds * RATE
    assert max(len(block.samples) for block in blocks) <= LONGEST_BLOCK_S * RATE
    zeros = [block.arrived_s - (block.first + len(block.samples)) / RATE for block in blocks]
    assert max(zeros) - min(zeros) < 0.01


@pytest.fixture
def soon(module, sound_server):
    """The blocks of three seconds, of a server that sends a minute at once."""
    sound_server.files["x"] = encoded(np.random.default_rng(1).normal(0, 0.1, 60 * RATE), "WAV", "PCM_16"), 60

    def hear(*given):
        source, blocks, deadline = module.Stream(sound_server.url("x"), threading.Event(), *given), [], time.monotonic() + 3
        while time.monotonic() < deadline:
            blocks += filter(None, [source.read()])
            time.sleep(0.005)
        source.close()
        assert {block.reason for block in blocks} == {""}
        zeros = [block.arrived_s - (block.first + len(block.samples)) / RATE for block in blocks]
        assert min(zeros) > zeros[0] - 0.05  # a busy computer is late, never early
        return blocks, zeros[0]

    return hear


def test_of_what_comes_faster_than_it_sounds_the_first_is_sound_of_before_and_the_rest_waits(module, soon, caplog):
    blocks, _ = soon()
    assert module.BURST_S < len(joined(blocks)) / RATE < module.BURST_S + 3
    assert "recording" not in caplog.text


def test_a_recording_is_said_to_be_none_and_heard_in_real_time_from_its_beginning(soon, sound_server, caplog):
    sound_server.sized, begun_s = True, time.monotonic()
    blocks, zero_s = soon()
    assert zero_s > begun_s
    assert 0 < len(joined(blocks)) / RATE < 3
    assert "is a recording of 60 s, not live" in caplog.text
    assert "`urbandetect scan URL`" in caplog.text


def test_what_was_heard_before_is_not_heard_again_when_a_server_that_was_lost_begins_with_it(module, soon):
    after_s = time.monotonic() - 5
    blocks, zero_s = soon(after_s)
    assert zero_s + blocks[0].first / RATE == pytest.approx(after_s, abs=0.001)
    assert sum(len(block.samples) for block in blocks) / RATE < 5 + 3


def test_what_is_new_of_a_server_that_closes_soon_is_heard(module, sound_server):
    sound_server.files["x"] = encoded(np.random.default_rng(1).normal(0, 0.1, 14 * RATE), "WAV", "PCM_16"), 14
    blocks, _ = hear(module.Stream(sound_server.url("x"), threading.Event(), time.monotonic() - 7))
    assert 6 < sum(len(block.samples) for block in blocks) / RATE < 9


@pytest.mark.parametrize(("speed", "least", "most"), [(0.0, 95000, 97000), (1.0, 1, 0.5 * 48000)], ids=["at once", "live"])
def test_a_jump_of_the_timestamps_is_a_gap_of_that_length_and_no_longer_than_there_was_time_for(
    module, sound_server, speed, least, most
):
    import av

    file, rng = io.BytesIO(), np.random.default_rng(2)
    with av.open(file, "w", format="mpegts") as out:
        track = out.add_stream("mp2", rate=48000, layout="mono")
        for number in range(100):  # of 24 ms, 1152 samples each; two seconds are missing in the middle
            frame = av.AudioFrame.from_ndarray(rng.integers(-9999, 9999, (1, 1152)).astype(np.int16), "s16", "mono")
            frame.sample_rate, frame.pts = 48000, number * 1152 + (96000 if number >= 50 else 0)
            for packet in track.encode(frame):
                out.mux(packet)
        for packet in track.encode(None):
            out.mux(packet)
    sound_server.files["x"], sound_server.speed = (file.getvalue(), 2.4), speed
    blocks, _ = hear(module.Stream(sound_server.url("x"), threading.Event()))
    at = next(number for number, block in enumerate(blocks) if block.reason)
    before, after = blocks[at - 1], blocks[at]
    assert [block.reason for block in blocks if block.reason] == ["jump"]
    assert least <= after.first - (before.first + len(before.samples)) <= most


def test_an_endless_stream_that_stalls_is_lost(module, sound_server, noise, monkeypatch):
    monkeypatch.setattr(module, "STALL_S", 0.5)
    sound_server.files["x"] = encoded(np.tile(noise, (40, 1)), "WAV", "PCM_16"), 120.0
    sound_server.speed = 2.0
    source, blocks, deadline = module.Stream(sound_server.url("x"), threading.Event()), [], time.monotonic() + PATIENCE_S
    while not blocks and time.monotonic() < deadline:
        blocks += filter(None, [source.read()])
    sound_server.stalled, begun_s = True, time.monotonic()
    _, said = hear(source)
    assert 0.4 < time.monotonic() - begun_s < 2
    assert "no sound for 0." in said or "does not answer" in said


def test_a_server_that_takes_connections_and_says_nothing_is_lost_and_never_waited_for(module, deaf_port, monkeypatch):
    monkeypatch.setattr(module, "CONNECT_S", 0.3)
    begun_s = time.monotonic()
    source = module.Stream(f"http://user:Pa55w0rd@127.0.0.1:{deaf_port}/x", threading.Event())
    assert source.read() is None
    assert time.monotonic() - begun_s < 0.25  # importing done, nothing waited for
    blocks, said = hear(source)
    assert (blocks, "does not answer" in said, "Pa55w0rd" in said) == ([], True, False)
    assert time.monotonic() - begun_s < 2


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("missing", "404"),
        ("text", "sends no"),
        ("script", "sends no"),
        ("list_of_files.m3u8", "sends no"),
        ("list_by_concat.m3u8", "sends no"),
    ],
)
def test_what_is_no_sound_is_said_and_neither_a_password_nor_a_file_of_this_computer_is_reached(
    module, sound_server, noise, tmp_path, path, words
):
    secret = tmp_path / "secret.ts"
    segments = "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\n{}\n#EXT-X-ENDLIST\n"
    secret.write_bytes(encoded(noise, "MP3"))
    sound_server.files |= {
        "text": (b"<html>hello</html>" * 1000, 1.0),
        "script": (f"ffconcat version 1.0\nfile '{secret}'\n".encode(), 1.0),
        "list_of_files.m3u8": (segments.format(secret.as_uri()).encode(), 1.0),
        "list_by_concat.m3u8": (segments.format(f"concat:{secret}").encode(), 1.0),
        "list_of_ours.m3u8": (segments.format(sound_server.url("segment.mp3")).encode(), 1.0),
        "segment.mp3": (encoded(noise, "MP3"), 3.0),
    }
    blocks, said = hear(module.Stream(sound_server.url(path, "user:Pa55w0rd@"), threading.Event()))
    assert (blocks, "Pa55w0rd" in said) == ([], False)
    print(said)
    assert re.search(words, said), said
    if path.startswith("list"):  # the same list of what is allowed is heard: it is the protocol that was refused
        blocks, _ = hear(module.Stream(sound_server.url("list_of_ours.m3u8"), threading.Event()))
        assert sum(len(block.samples) for block in blocks) > 2 * RATE


def test_over_https_only_a_server_whose_certificate_is_good_is_heard(module, sound_server, noise, tmp_path, monkeypatch):
    trustme = pytest.importorskip("trustme", reason="needs trustme: pip install -e '.[test]'")
    authority, tls = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(tls)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    sound_server.go()
    sound_server.start(tls)
    sound_server.files["x"] = encoded(noise, "WAV", "PCM_16"), 3.0
    url = sound_server.url("x").replace("http:", "https:")
    blocks, _ = hear(module.Stream(url, threading.Event()))
    assert (blocks, sound_server.asked) == ([], [])
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    blocks, _ = hear(module.Stream(url.replace("127.0.0.1", "localhost"), threading.Event()))
    assert (blocks, sound_server.asked) == ([], [])  # another name than the certificate's
    blocks, _ = hear(module.Stream(url, threading.Event()))
    assert len(joined(blocks)) == len(noise)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "concat://a|b",
        "ftp://host/x",
        "http://",
        "rtsp://host:port/x",
        "rtsp://u:p#w@host/x y",
        "http://h/\nx",
    ],
)
def test_an_address_that_is_none_is_one_error_that_does_not_repeat_it(url):
    with pytest.raises(ConfigError) as told:
        check_url(url, "detector.toml")
    assert "passwd" not in f"{told.value}"
    assert "p#w" not in f"{told.value}"
    assert "\n" not in f"{told.value}"


@pytest.mark.parametrize(
    "url", ["rtsp://u:p%40w@cam.lan:8554/1", "HTTP://host/live.m3u8?token=x", "https://[::1]:8000/s", "rtsps://c/x"]
)
def test_an_address_of_a_stream_is_taken_and_shown_without_secrets(url):
    check_url(url, "detector.toml")
    assert "p%40w" not in shown(url)
    assert "token" not in shown(url)
    assert shown("rtsp://u:p@w@cam/1?q") == "rtsp://***@cam/1?***"
    assert shown("rtsp://cam:554/user=admin&password=p4ss&channel=1.sdp?real") == "rtsp://cam:554/***"
    assert shown("http://radio/live.mp3") == "http://radio/live.mp3"


def test_a_password_on_the_command_line_is_refused_and_one_in_the_settings_is_not(urbandetect, tmp_path):
    done = urbandetect("run", "--input", "rtsp://user:Pa55w0rd@camera/1")
    assert (done.returncode, done.stderr.count("\n"), "Pa55w0rd" in done.stderr) == (64, 1, False)
    assert "detector.toml" in done.stderr
    refuse_password("http://host:8000/live")
    with pytest.raises(InputError):
        refuse_password("http://host:x@host/live")
    with pytest.raises(InputError):
        refuse_password("rtsp://cam/user=admin&password=p4ss")


def test_without_pyav_the_one_error_says_how_to_install_it(monkeypatch):
    from detector.audio import stream

    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ConfigError, match=r"pip install 'urbandetect\[stream\]'"):
        stream.Stream("http://host/x", threading.Event())
