"""The listener of a real daemon: its page in a real browser, its figures, who may ask, and that it harms no detection."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs packages: pip install -e '.[web]'")
pytest.importorskip("starlette", reason="needs packages: pip install -e '.[web]'")

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"
DOCS = Path(__file__).parents[2] / "docs"
TOKEN = "correct-horse-battery"
PICTURES = "URBANDETECT_PICTURES"
"""Set it, and docs/page-light.png and docs/page-dark.png are made anew."""


def port_of(run):
    run.wait_for_error("web: http://")
    return int(re.search(r"web: http://\S+:(\d+)/", run.errors.read_text())[1])


def ask(port, path, method="GET", body=None, **headers):
    """Status, headers and text of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, {"Host": f"127.0.0.1:{port}", **named})
    answer = connection.getresponse()
    text = answer.read().decode()
    connection.close()
    return answer.status, answer.headers, text


def until(condition, within_s=15.0):
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)
    return found


def post(port, wish, **headers):
    return ask(port, "/thresholds", "POST", json.dumps(wish), **{"Content_Type": "application/json"} | headers)


def stream(port, receive_bytes=0):
    """A socket on which the live stream comes."""
    reader = socket.socket()
    if receive_bytes:
        reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    reader.settimeout(10)
    reader.connect(("127.0.0.1", port))
    reader.sendall(f"GET /stream HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n\r\n".encode())
    return reader


def parsed(text):
    """Samples of the exposition format: {name{labels}: value}; every line must be of it, in its order."""
    values, kinds = {}, {}
    for line in text.splitlines():
        if line.startswith("# "):
            _, what, name, rest = line.split(" ", 3)
            if what == "TYPE":
                assert name not in kinds
                assert rest in ("gauge", "counter", "histogram")
                kinds[name] = rest
            continue
        match = re.fullmatch(r'([a-z_]+)((?:\{(?:[a-z_]+="(?:[^"\\\n]|\\.)*",?)+\})?) (-?[0-9.e+-]+)', line)
        assert match, line
        name, labels, value = match.groups()
        family = re.sub(r"_(bucket|sum|count)$", "", name) if name not in kinds else name
        assert family == list(kinds)[-1], line
        assert kinds[family] != "counter" or name.endswith("_total")
        assert name + labels not in values
        values[name + labels] = float(value)
    assert text.endswith("\n")
    assert all(name.startswith("urbandetect_") for name in kinds)
    return values


def test_the_figures_are_prometheus_and_tell_what_was_heard(daemon, broker, bursts, tmp_path):
    (tmp_path / "detector.toml").write_text('[[source]]\nname = "north \\"1\\""\ninput = "-"\n')
    broker.start()
    run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{broker.port}", "--web", "127.0.0.1:0")
    port = port_of(run)
    run.say(bursts(1.0, (0.2, 0.5)))
    run.say(bursts(1.0, (0.2, 1.0)))
    mine = 'source="north \\"1\\""'
    values = until(
        lambda: (
            (found := parsed(ask(port, "/metrics")[2])).get(f'urbandetect_events_total{{{mine},label="loud"}}') == 2
            and found["urbandetect_outbox_messages"] == 0
            and found['urbandetect_mqtt_published_total{result="accepted"}'] == 3
            and found
        )
    )
    assert ask(port, "/metrics")[1]["content-type"].startswith("text/plain; version=0.0.4")
    assert values[f"urbandetect_audio_samples_total{{{mine}}}"] == 16000
    assert values[f"urbandetect_source_up{{{mine}}}"] == 1
    assert values[f'urbandetect_event_active{{{mine},label="loud"}}'] == 1
    assert values["urbandetect_mqtt_connected"] == 1
    assert values['urbandetect_mqtt_published_total{result="refused"}'] == 0
    assert -12 < values[f"urbandetect_level_dbfs{{{mine}}}"] < 0
    assert abs(values[f"urbandetect_audio_last_block_timestamp_seconds{{{mine}}}"] - time.time()) < 20
    for name in ("step_duration_seconds", "event_latency_seconds"):
        buckets = [value for key, value in values.items() if key.startswith(f"urbandetect_{name}_bucket")]
        assert buckets == sorted(buckets)
        assert buckets[-1] == values[f"urbandetect_{name}_count"] > 0
    assert 0 < values["urbandetect_realtime_factor"] < 1


def test_ready_means_that_sound_arrives_and_otherwise_says_what_is_missing(daemon, bursts):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        run = daemon("--input", "-", "--mqtt", f"127.0.0.1:{nobody.getsockname()[1]}", "--web", "127.0.0.1:0")
        port = port_of(run)
        status, _, text = ask(port, "/readyz")
        assert (status, json.loads(text)["ready"]) == (503, False)
        assert json.loads(text)["stages"]["mic1"] == "not heard: no sound yet"
        assert json.loads(text)["stages"]["model"] == "loudness 1 on cpu"
        run.say(bursts(0.5))
        status, _, text = until(lambda: (answer := ask(port, "/readyz"))[0] == 200 and answer)
        assert json.loads(text)["ready"] is True
        assert json.loads(text)["stages"]["mic1"] == "hearing"
        until(lambda: "is the broker running" in json.loads(ask(port, "/readyz")[2])["stages"]["publishing"])
        assert ask(port, "/healthz")[::2] == (200, "ok\n")


def test_a_loop_that_stands_still_is_not_healthy(daemon, bursts, monkeypatch, loudness_model):
    from detector.config import Settings, WebSettings
    from detector.model import Model
    from detector.web import server

    monkeypatch.setattr(server, "STILL_S", 0.3)
    model = Model(loudness_model, "cpu").description
    web = server.Web(Settings(web=WebSettings("127.0.0.1:0")), model)
    web.look({"sources": {"mic1": {"hearing": True}}}, {"mic1": "hearing"})
    web.start()
    assert [ask(web._port, path)[0] for path in ("/healthz", "/readyz")] == [200, 200]
    time.sleep(0.4)
    assert [ask(web._port, path)[0] for path in ("/healthz", "/readyz")] == [503, 503]
    web.stop()
    web._thread.join(5)


@pytest.mark.parametrize(
    ("method", "path", "status", "said"),
    [
        ("GET", "/nothing", 404, "there is no such path; there are /, /stream, "),
        ("GET", "/thresholds", 405, "this method is not for this path; use POST"),
        ("DELETE", "/", 405, "this method is not for this path; use "),
    ],
)
def test_a_path_or_method_that_there_is_not_is_one_line_that_says_what_there_is(loudness_model, method, path, status, said):
    from detector.config import Settings, WebSettings
    from detector.model import Model
    from detector.web import server

    web = server.Web(Settings(web=WebSettings("127.0.0.1:0")), Model(loudness_model, "cpu").description)
    web.start()
    got, headers, text = ask(web._port, path, method)
    assert (got, headers["Content-Type"]) == (status, "application/json")
    assert json.loads(text)["error"].startswith(said)
    web.stop()
    web._thread.join(5)


@pytest.mark.parametrize("given", ["file", "environment", "credential"])
def test_beyond_this_computer_nobody_looks_without_the_token(daemon, tmp_path, given):
    (tmp_path / "web_token").write_text(TOKEN + "\n")
    (tmp_path / "detector.toml").write_text('[web]\nlisten = "0.0.0.0:0"\n')
    refused = daemon("--input", "-")
    assert refused.end() == 78
    assert "detector.toml: web.listen: 0.0.0.0:0 is reached from other computers and has no token" in refused.errors.read_text()
    environment = {"environment": {"URBANDETECT_WEB_TOKEN": TOKEN}, "credential": {"CREDENTIALS_DIRECTORY": str(tmp_path)}}
    if given == "file":
        (tmp_path / "detector.toml").write_text('[web]\nlisten = "0.0.0.0:0"\ntoken_file = "web_token"\n')
    run = daemon("--input", "-", env=environment.get(given))
    port = port_of(run)
    for path in ("/", "/metrics", "/readyz", "/stream", "/nothing", "/?token=wrong", "/metrics?token=" + TOKEN, "/?token="):
        assert ask(port, path)[0] == 401, path
    assert post(port, {"loud": {"on": 0.9}})[0] == 401
    assert ask(port, "/metrics", Authorization="Bearer wrong")[0] == 401
    assert ask(port, "/metrics", Authorization="Bearer \xe9")[0] == 401
    assert ask(port, "/metrics", Cookie="urbandetect_web=" + TOKEN)[0] == 401
    assert ask(port, "/metrics", Authorization=f"Bearer {TOKEN}")[0] == 200
    assert ask(port, "/healthz")[0] == 200
    status, headers, _ = ask(port, f"/?token={TOKEN}")
    cookie, *attributes = headers["set-cookie"].split("; ")
    assert status == 200
    assert TOKEN not in cookie
    assert {"HttpOnly", "SameSite=Strict"} <= set(attributes)
    assert ask(port, "/metrics", Cookie=cookie)[0] == 200
    assert post(port, {"loud": {"on": 0.9}}, Cookie=cookie)[0] == 202
    assert TOKEN not in run.errors.read_text()


def test_a_token_that_can_be_guessed_is_refused(daemon):
    run = daemon("--input", "-", "--web", "127.0.0.1:0", env={"URBANDETECT_WEB_TOKEN": "short"})
    assert run.end() == 78
    assert "URBANDETECT_WEB_TOKEN: holds no web token of 16 or more letters and digits" in run.errors.read_text()


def test_no_other_web_page_reaches_it_through_its_reader_browser(daemon, tmp_path):
    (tmp_path / "detector.toml").write_text('[web]\nlisten = "127.0.0.1:0"\nhosts = ["street.example.org"]\n')
    run = daemon("--input", "-")
    port = port_of(run)
    answers = {host: ask(port, "/healthz", Host=host)[0] for host in (f"localhost:{port}", f"[::1]:{port}", "street.example.org")}
    assert set(answers.values()) == {200}
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "localhost.evil.example", ""):
        assert ask(port, "/metrics", Host=host)[0] == 421, host
    wish = {"loud": {"on": 0.9}}
    assert post(port, wish, Origin=f"http://127.0.0.1:{port}")[0] == 202
    assert post(port, wish, Origin="https://street.example.org")[0] == 202  # through a proxy that speaks TLS
    for origin in ("http://evil.example", "null", "http://127.0.0.1:1", "https://street.example.org.evil.example"):
        assert post(port, wish, Origin=origin)[0] == 403, origin
    assert ask(port, "/stream", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors")[0] == 403
    assert ask(port, "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate")[0] == 200
    assert post(port, wish, Content_Type="text/plain")[0] == 415
    headers = ask(port, "/")[1]
    assert headers["content-security-policy"].startswith("default-src 'none'; script-src 'sha256-")
    assert "access-control-allow-origin" not in headers


def test_thresholds_count_at_once_and_impossible_ones_change_nothing(daemon, bursts, events):
    run = daemon("--input", "-", "--web", "127.0.0.1:0")
    port = port_of(run)
    status, _, text = post(port, {"loud": {"on": 0.95, "off": 0.9}})
    assert (status, json.loads(text)["loud"]["min_off_s"]) == (202, 0.2)
    time.sleep(0.6)  # the loop takes them within a quarter of a second
    run.say(bursts(1.0, (0.2, 0.5)))
    until(lambda: ask(port, "/readyz")[0] == 200)
    wrong = [
        {"loud": {"on": 2}},
        {"loud": {"on": 0.5, "off": 0.6}},
        {"laud": {"on": 0.5}},
        {"loud": {"onn": 0.5}},
        [1],
        {"loud": 1},
    ]
    for wish in [*wrong, {"loud": {"on": float("nan")}}, {"loud": {"on": True}}]:
        status, _, text = post(port, wish)
        assert (status, "error" in json.loads(text)) == (400, True), wish
    assert ask(port, "/thresholds", "POST", "{", Content_Type="application/json")[0] == 400
    assert ask(port, "/thresholds", "POST", "[" * 16000, Content_Type="application/json")[0] == 400
    assert ask(port, "/thresholds", "POST", " " * 20_000, Content_Type="application/json")[0] == 413
    run.say(bursts(1.0, (0.2, 0.5)))
    time.sleep(0.5)
    assert post(port, {"loud": {"on": 0.8}})[0] == 202
    time.sleep(0.6)
    run.say(bursts(1.0, (0.2, 0.5)))
    run.wait_for(lambda line: '"phase":"end"' in line)
    assert [(event["threshold"], event["id"].rsplit("-", 1)[1]) for event in events(run.lines)] == [(0.8, "17600")] * 2


def test_a_port_in_use_a_wrong_address_and_missing_packages_are_said_at_start(daemon, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        run = daemon("--input", "-", "--web", f"127.0.0.1:{port}")
        assert run.end() == 64
        said = f"urbandetect: --web: cannot listen at 127.0.0.1:{port} (address already in use); choose another port or address\n"
        assert run.errors.read_text() == said
    for address in ("8080", "127.0.0.1", "::1:80"):
        run = daemon("--input", "-", "--web", address)
        assert run.end() == 64
        assert f"web.listen = '{address}' is not HOST:PORT; for example 127.0.0.1:8080" in run.errors.read_text()
    (tmp_path / "starlette.py").write_text("raise ModuleNotFoundError('none', name='starlette')")
    path = os.pathsep.join([str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])])
    run = daemon("--input", "-", "--web", env={"PYTHONPATH": path})
    assert run.end() == 78
    assert "not there (starlette); install it: " in run.errors.read_text()
    assert "-m pip install 'urbandetect[web]'" in run.errors.read_text()


def listening(pid):
    """Ports on which a process listens."""
    links = [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir() if link.is_symlink()]
    own = {match[1] for link in links if (match := re.fullmatch(r"socket:\[(\d+)\]", link))}
    tables = [Path(f"/proc/{pid}/net/{name}") for name in ("tcp", "tcp6")]
    lines = [line.split() for table in tables if table.exists() for line in table.read_text().splitlines()[1:]]
    return [int(line[1].rpartition(":")[2], 16) for line in lines if line[3] == "0A" and line[9] in own]


def test_by_default_no_port_is_open_and_nothing_of_the_page_is_loaded(daemon, bursts, loudness_model, tmp_path):
    run = daemon("--input", "-")
    shown = daemon("--input", "-", "--web", "127.0.0.1:0")
    for program in (run, shown):
        program.say(bursts(0.5))
        program.wait_for_error("hearing")
    assert listening(run.process.pid) == []
    assert listening(shown.process.pid) == [port_of(shown)]
    soundfile.write(tmp_path / "short.wav", bursts(1.0, (0.2, 0.5)), 8000)
    command = [sys.executable, "-X", "importtime", "-c", "from detector.cli import main; main()", "run"]
    options = ["--model", str(loudness_model), "--input", "short.wav", "--speed", "max"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert '"phase":"end"' in done.stdout
    assert "detector.daemon" in done.stderr
    assert not re.search(r"starlette|uvicorn|detector\.web|asyncio", done.stderr)


def test_readers_that_are_slow_or_many_hold_up_no_detection_and_get_what_is_new(daemon, bursts, events):
    run = daemon("--input", "-", "--web", "127.0.0.1:0")
    port = port_of(run)
    with contextlib.ExitStack() as readers:
        slow = [readers.enter_context(stream(port, 4096)) for _ in range(8)]
        for reader in slow:
            got = b""
            while b"event: hello" not in got:
                got += reader.recv(1024)
        assert ask(port, "/stream")[0] == 503  # there are enough
        for _ in range(100):
            readers.enter_context(socket.create_connection(("127.0.0.1", port)))
        began_s = time.monotonic()
        for _ in range(20):
            run.say(np.tile(bursts(0.6, (0.0, 0.2)), 50))  # ten minutes in all
        last = 999 * 4800
        run.wait_for(lambda line: f"-loud-{last}" in line and '"phase":"end"' in line)
        assert time.monotonic() - began_s < 15
        ended = [event for event in events(run.lines) if event["phase"] == "end" and event["label"] == "loud"]
        assert len(ended) == 1000
        run.say(bursts(0.6, (0.1, 0.3)))
        got, patient = b"", slow[0]
        while f"loud-{last + 4800 + 800}".encode() not in got:
            got += patient.recv(1 << 16)
        assert got.count(b"event: hello") >= 1  # it was sent to the newest ...
        assert got.count(b"event: event") < 1500  # ... and not all that it missed
        assert len(got) < 2_000_000
    until(lambda: ask(port, "/healthz")[0] == 200)
    with stream(port):
        run.send(signal.SIGTERM)  # an open page keeps nobody
        assert run.end(2) == 0


def test_a_listener_that_fails_is_said_and_opened_again(monkeypatch, loudness_model, caplog):
    from detector.config import Settings, WebSettings
    from detector.model import Model
    from detector.web import server

    monkeypatch.setattr(server, "AGAIN_S", 0.05)
    serve, failures = server.uvicorn.Server.serve, [OSError("the network is gone"), SystemExit(1)]

    async def fail_first(self, sockets):
        if failures:
            raise failures.pop(0)
        await serve(self, sockets=sockets)

    monkeypatch.setattr(server.uvicorn.Server, "serve", fail_first)
    model = Model(loudness_model, "cpu").description
    web = server.Web(Settings(web=WebSettings("127.0.0.1:0")), model)
    port = web._port
    web.look({"sources": {}}, {})
    web.start()

    def answers():
        with contextlib.suppress(OSError):
            return ask(port, "/healthz")[0] == 200

    until(answers)
    said = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said[0] == "web: the listener failed (OSError: the network is gone); detection goes on, and it is tried again"
    assert len(said) == 2
    web.stop()
    web._thread.join(5)


def test_a_tone_is_seen_in_its_band_at_its_level():
    from detector.observer import Sound
    from detector.web.hub import Hub

    rate, hop = 22050, 2048
    for hz in (60.0, 440.0, 1000.0, 7000.0):
        tone = (0.5 * np.sin(2 * np.pi * hz * np.arange(2 * hop) / rate)).astype(np.float32)
        hub = Hub(rate, hop, {})
        seen = hub.column(Sound("mic1", "s", 0, 0.0, tone, np.zeros((2, 1), np.float32), np.full(2, 0.125)))
        import base64

        for row in seen["bands"]:
            shades = np.frombuffer(base64.b64decode(row), np.uint8)
            band = int(shades.argmax())
            assert hub._edges_hz[band] / 1.15 < hz < hub._edges_hz[band + 1] * 1.15
            assert shades[band] == pytest.approx((1 - 6 / 100) * 255, abs=5)
        assert seen["dbfs"] == [-6.0, -6.0]


# In a real browser


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="needs a package: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("needs a browser: apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """A page, and what it complained of."""
    contexts = []

    def open_page(port, **how):
        context = chromium.new_context(**how)
        contexts.append(context)
        page = context.new_page()
        page.complaints = []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(f"{error}"))
        page.on(
            "request",
            lambda request: (
                request.url.startswith((f"http://127.0.0.1:{port}/", "data:", "blob:")) or page.complaints.append(request.url)
            ),
        )
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#state.live")
        page.wait_for_selector("[role=slider]")
        return page

    yield open_page
    for context in contexts:
        context.close()


def bark(rate, seconds=6.0):
    """The demo's street with its first barks, from half a second before them."""
    samples, own = soundfile.read(STREET, dtype="float32")
    import soxr

    return soxr.resample(samples[round(5.8 * own) : round((5.8 + seconds) * own)], own, rate).astype(np.float32)


FRAMED = """() => {
  const canvas = document.querySelector('#spectrogram');
  const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
  const frame = [179, 38, 30];  // --event
  let found = 0;
  for (let at = 0; at < data.length; at += 4) found += frame.every((value, i) => Math.abs(data[at + i] - value) < 8);
  return found > canvas.height;
}"""
"""Whether the spectrogram has a frame around an event."""


def test_a_dog_that_barks_into_the_microphone_is_on_the_page_within_a_second(start, microphone, opened):
    street = bark(48_000)
    microphone.hears(
        np.concatenate([np.zeros(3 * 48_000, np.float32) + 1e-4 * np.sin(np.arange(3 * 48_000)).astype(np.float32), street])
    )
    run = start("urbandetect", "run", "--device", "hw:1", "--web", "127.0.0.1:0", env=microphone.env)
    page = opened(port_of(run))
    at = run.wait_for(lambda line: '"phase":"start"' in line and '"dog_bark"' in line, after=len(run.lines))
    told_s, bark_id = time.monotonic(), json.loads(run.lines[at])["id"]
    page.wait_for_selector(f"#events li[data-id='{bark_id}']", timeout=1000)
    assert time.monotonic() - told_s < 1
    assert "dog bark" in page.inner_text(f"#events li[data-id='{bark_id}']")
    assert "dog bark began" in page.inner_text("#said")
    until(lambda: page.evaluate(FRAMED))  # the page's policy lets nobody else's script poll in it
    assert page.inner_text("#stages").startswith("mic1\nhearing")
    assert re.fullmatch(r"-\d+ dBFS", page.inner_text("#dbfs"))
    run.wait_for(lambda line: '"phase":"end"' in line and bark_id in line)
    page.wait_for_selector(f"#events li[data-id='{bark_id}']:not(.lasting)", timeout=1000)
    assert page.complaints == []
    run.kill()
    until(lambda: page.inner_text("#state").startswith("not connected"))


def test_a_threshold_is_dragged_or_moved_by_keyboard_and_counts_at_once(daemon, bursts, opened):
    run = daemon("--input", "-", "--web", "127.0.0.1:0")
    port = port_of(run)
    page, other = opened(port), opened(port)
    run.say(bursts(1.0))
    line = page.locator("[role=slider][data-label=loud]")
    assert line.get_attribute("aria-valuenow") == "0.500"
    at, lane = line.bounding_box(), page.locator(".lane").first.bounding_box()
    page.mouse.move(at["x"] + 40, at["y"] + at["height"] / 2)
    page.mouse.down()
    page.mouse.move(at["x"] + 60, lane["y"] + lane["height"] * 0.05, steps=4)
    page.mouse.up()
    moved = float(line.get_attribute("aria-valuenow"))
    assert moved == pytest.approx(0.95, abs=0.03)
    other.wait_for_selector(f"[role=slider][data-label=loud][aria-valuenow='{moved:.3f}']")
    run.say(bursts(1.0, (0.2, 0.5)))  # 0.9: not enough now
    line.focus()
    page.keyboard.press("ArrowDown")  # near 1 a hundredth is far too much
    other.wait_for_selector(f"[role=slider][data-label=loud][aria-valuenow='{moved - 0.001:.3f}']")
    for _ in range(2):
        page.keyboard.press("PageDown")
    other.wait_for_selector(f"[role=slider][data-label=loud][aria-valuenow='{moved - 0.201:.3f}']")
    run.say(bursts(1.0, (0.2, 0.5)))
    number = run.wait_for(lambda text: '"phase":"start"' in text)
    assert json.loads(run.lines[number])["threshold"] == pytest.approx(moved - 0.201)
    assert "-loud-17600" in run.lines[number]
    page.get_by_role("button", name="Keep these thresholds").press("Enter")
    assert page.inner_text("#toml").split() == f"[thresholds.loud] on = {moved - 0.201:.3f}".rstrip("0").split()
    with page.expect_download() as download:
        page.get_by_role("link", name="Download").click()
    assert Path(download.value.path()).read_text().startswith("[thresholds.loud]\non = ")
    assert page.complaints == other.complaints == []


ACCESSIBLE = """() => {
  const wrong = [];
  const name = node => node.getAttribute('aria-label') || node.textContent.trim()
    || (node.labels && node.labels[0]?.textContent.trim())
    || (node.getAttribute('aria-labelledby') || '').split(' ').map(id => document.getElementById(id)?.textContent).join(' ').trim();
  document.querySelectorAll('button, a, select, meter, [role=slider], [role=img], section, [tabindex]').forEach(node => {
    if (!name(node)) wrong.push('no name: ' + node.outerHTML.slice(0, 80));
  });
  const ids = [...document.querySelectorAll('[id]')].map(node => node.id);
  if (new Set(ids).size != ids.length) wrong.push('an id twice');
  if (document.documentElement.lang != 'en') wrong.push('no language');
  if (!document.querySelector('[aria-live=polite]')) wrong.push('no live region');
  if (document.querySelectorAll('h1').length != 1 || !document.querySelector('main')) wrong.push('no h1 or main');
  document.querySelectorAll('[role=slider]').forEach(node => {
    const [low, now, high] = ['min', 'now', 'max'].map(what => Number(node.getAttribute('aria-value' + what)));
    if (!(low <= now && now <= high) || node.tabIndex != 0) wrong.push('slider: ' + node.outerHTML.slice(0, 80));
  });
  const light = text => { const c = text.match(/[\\d.]+/g).slice(0, 3).map(v => v / 255)
      .map(v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4);
    return .2126 * c[0] + .7152 * c[1] + .0722 * c[2]; };
  const behind = node => {
    for (; node; node = node.parentElement) {
      const c = getComputedStyle(node).backgroundColor;
      if (!/, 0\\)|transparent/.test(c)) return c;
    }
  };
  document.querySelectorAll('h1, h2, p, dt, dd, li, button, label, #state, .lane > span').forEach(node => {
    if (!node.offsetParent || !node.textContent.trim()) return;
    const [a, b] = [light(getComputedStyle(node).color), light(behind(node))].sort((a, b) => b - a);
    if ((a + .05) / (b + .05) < 4.5) wrong.push('contrast: ' + node.outerHTML.slice(0, 80));
  });
  if (document.documentElement.scrollWidth > innerWidth) wrong.push('scrolls sideways');
  return wrong;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_is_accessible_on_a_phone_and_wide_light_and_dark(daemon, bursts, opened, scheme):
    run = daemon("--input", "-", "--web", "127.0.0.1:0")
    port = port_of(run)
    run.say(bursts(1.0, (0.2, 0.5)))
    for width, height in ((360, 740), (1280, 900)):
        page = opened(port, color_scheme=scheme, viewport={"width": width, "height": height}, reduced_motion="reduce")
        page.wait_for_selector("#events li")
        assert page.evaluate(ACCESSIBLE) == []
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        assert page.complaints == []


@pytest.mark.skipif(PICTURES not in os.environ, reason=f"makes docs/page-*.png when {PICTURES} is set")
def test_the_pictures_of_the_page(start, tmp_path, opened):
    samples, rate = soundfile.read(STREET, dtype="float32")
    soundfile.write(tmp_path / "street.wav", samples[: 20 * rate], rate)
    run = start("urbandetect", "run", "--input", "street.wav", "--web", "127.0.0.1:0")
    port = port_of(run)
    pages = {scheme: opened(port, color_scheme=scheme, viewport={"width": 1100, "height": 960}) for scheme in ("light", "dark")}
    run.wait_for(lambda line: '"phase":"end"' in line)
    pages["light"].wait_for_timeout(4000)
    for scheme, page in pages.items():
        picture = DOCS / f"page-{scheme}.png"
        page.screenshot(path=picture)
        assert picture.stat().st_size < 200_000
