"""Clips on the page of a real daemon: played by a real browser, given in ranges, and nothing else of the disk to anybody."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("uvicorn", reason="needs packages: pip install -e '.[web]'")
pytest.importorskip("starlette", reason="needs packages: pip install -e '.[web]'")

STREET = Path(__file__).parents[2] / "detector" / "demo" / "street.ogg"
TOKEN = "correct-horse-battery"


def port_of(run):
    run.wait_for_error("web: http://")
    return int(re.search(r"web: http://\S+:(\d+)/", run.errors.read_text())[1])


def get(port, path, **headers):
    """Status, headers and bytes of an answer."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=15)) as connection:
        connection.request("GET", path, headers={"Host": f"127.0.0.1:{port}", **headers})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()


@pytest.fixture
def settings(tmp_path):
    def write(clips="folder = 'clips'\nafter_s = 0.5"):
        (tmp_path / "detector.toml").write_text(f"[clips]\n{clips}\n")
        return tmp_path / "urbandetect" / "clips"

    return write


@pytest.fixture
def heard(daemon, bursts):
    """A daemon with a page that has heard a burst, and the end of its event."""

    def run(**how):
        program = daemon("--input", "-", "--web", "127.0.0.1:0", **how)
        program.say(bursts(1.0, (0.2, 0.5)))
        program.say(bursts(1.0))
        return program, json.loads(program.lines[program.wait_for(lambda line: '"phase":"end"' in line)])

    return run


def test_a_clip_is_given_whole_or_in_the_ranges_that_a_browser_asks_for(settings, heard):
    folder = settings()
    run, event = heard()
    path = f"/clips/{event['id']}"
    status, headers, whole = get(port_of(run), path)
    assert (status, headers["content-type"], headers["accept-ranges"]) == (200, "audio/flac", "bytes")
    assert whole == (folder / event["clip"]).read_bytes()
    assert headers["cache-control"] == "no-store"
    status, headers, part = get(port_of(run), path, Range="bytes=100-299")
    assert (status, headers["content-range"]) == (206, f"bytes 100-299/{len(whole)}")
    assert part == whole[100:300]
    assert get(port_of(run), path, Range="bytes=-50")[2] == whole[-50:]
    assert get(port_of(run), path, Range=f"bytes={len(whole)}-")[0] == 416


def test_who_asks_before_the_clip_is_written_waits_for_it(daemon, bursts, settings):
    settings("folder = 'clips'\nafter_s = 1.0")
    run = daemon("--input", "-", "--web", "127.0.0.1:0")
    run.say(bursts(1.0, (0.2, 0.5)))
    event = json.loads(run.lines[run.wait_for(lambda line: '"phase":"end"' in line)])
    later = threading.Timer(0.7, run.say, [bursts(1.0)])
    later.start()
    began_s = time.monotonic()
    assert get(port_of(run), f"/clips/{event['id']}")[0] == 200
    assert time.monotonic() - began_s > 0.4
    later.join()


def test_nothing_but_the_clips_of_events_on_the_page_is_given(settings, heard, tmp_path):
    folder = settings()
    run, event = heard()
    port = port_of(run)
    other = folder / Path(event["clip"]).parent / Path(event["clip"]).name.replace(event["session"], "0" * 12)
    assert get(port, f"/clips/{event['id']}")[0] == 200
    shutil.copy(folder / event["clip"], other)
    (tmp_path / "secret").write_text("secret")
    name = Path(event["clip"]).name
    guesses = [
        "",
        "..",
        "../../secret",
        "..%2f..%2fsecret",
        "%2e%2e/%2e%2e/secret",
        "/etc/passwd",
        "%2fetc%2fpasswd",
        event["clip"],
    ]
    guesses += [event["clip"], name, f"{event['id']}.flac", f"{event['id']}%00", event["id"].replace(event["session"], "0" * 12)]
    for path in [f"/clips/{guess}" for guess in guesses]:
        status, _, body = get(port, path)
        assert status == 404, path
        assert b"secret" not in body
    (folder / event["clip"]).unlink()
    assert get(port, f"/clips/{event['id']}")[0] == 404  # it has gone, as one that is too old


def test_without_the_token_nobody_hears_a_clip(settings, heard):
    settings()
    run, event = heard(env={"URBANDETECT_WEB_TOKEN": TOKEN})
    port, path = port_of(run), f"/clips/{event['id']}"
    assert get(port, path)[0] == 401
    assert get(port, f"{path}?token={TOKEN}")[0] == 401
    assert get(port, path, Authorization=f"Bearer {TOKEN}")[0] == 200
    assert get(port, path, Authorization=f"Bearer {TOKEN}", Origin="http://evil.example")[0] == 403
    assert (
        get(port, path, **{"Authorization": f"Bearer {TOKEN}", "Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"})[0]
        == 403
    )


def test_an_encrypted_clip_is_not_given(settings, heard):
    pyrage = pytest.importorskip("pyrage", reason="needs a package: pip install -e '.[age]'")
    settings(f"folder = 'clips'\nafter_s = 0.5\nrecipient = '{pyrage.x25519.Identity.generate().to_public()}'")
    run, event = heard()
    assert event["clip"].endswith(".flac.age")
    assert get(port_of(run), f"/clips/{event['id']}")[0] == 404


# In a real browser


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="needs a package: pip install -e '.[test]'")
    from playwright.sync_api import sync_playwright

    found = shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        pytest.skip("needs a browser: apt install chromium")
    with sync_playwright() as playwright:
        options = ["--no-sandbox", "--autoplay-policy=no-user-gesture-required"]
        browser = playwright.chromium.launch(executable_path=found, args=options)
        yield browser
        browser.close()


@pytest.fixture
def opened(chromium):
    """A page, what it complained of and which clips it asked for."""
    contexts = []

    def open_page(port):
        contexts.append(chromium.new_context())
        page = contexts[-1].new_page()
        page.complaints, page.clips = [], []
        page.on("console", lambda message: page.complaints.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: page.complaints.append(f"{error}"))
        page.on("request", lambda request: page.clips.append(request.url) if "/clips/" in request.url else None)
        page.goto(f"http://127.0.0.1:{port}/")
        page.wait_for_selector("#state.live")
        return page

    yield open_page
    for context in contexts:
        context.close()


def until(condition, within_s=15.0):
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.02)
    return found


def test_the_clip_of_a_dog_that_barks_into_the_microphone_plays_on_the_page(start, microphone, opened, settings):
    folder = settings("folder = 'clips'\nbefore_s = 1.0\nafter_s = 1.0")
    import soxr

    street, own = soundfile.read(STREET, dtype="float32")
    street = soxr.resample(street[round(5.8 * own) : round(11.8 * own)], own, 48_000).astype(np.float32)
    quiet = 1e-4 * np.sin(np.arange(3 * 48_000)).astype(np.float32)
    microphone.hears(np.concatenate([quiet, street]))
    run = start("urbandetect", "run", "--device", "hw:1", "--web", "127.0.0.1:0", env=microphone.env)
    page = opened(port_of(run))
    at = run.wait_for(lambda line: '"phase":"end"' in line and '"dog_bark"' in line)
    event = json.loads(run.lines[at])
    audio = page.locator(f"#events li[data-id='{event['id']}'] audio")
    audio.wait_for()
    assert page.clips == []  # nothing is loaded before it is wanted
    assert "dog bark" in audio.get_attribute("aria-label")
    audio.focus()
    assert page.evaluate("document.activeElement.tagName") == "AUDIO"
    page.keyboard.press("Space")  # plays; it waits until the clip is written
    until(lambda: audio.evaluate("audio => audio.currentTime") > 0.3)
    info = soundfile.info(folder / event["clip"])
    assert audio.evaluate("audio => audio.duration") == pytest.approx(info.frames / info.samplerate, abs=0.01)
    assert info.frames / info.samplerate == pytest.approx(event["duration_s"] + 2.0, abs=0.002)
    last = len(run.lines)
    run.wait_for(lambda line: '"phase"' in line, after=last)  # another event is told meanwhile
    time.sleep(0.2)
    assert audio.evaluate("audio => audio.paused") is False or audio.evaluate("audio => audio.ended") is True
    audio.evaluate("audio => { audio.currentTime = 1.5; }")
    until(lambda: audio.evaluate("audio => !audio.seeking && audio.currentTime >= 1.5"))
    assert audio.evaluate("audio => audio.error") is None
    assert page.complaints == []


def test_a_clip_that_is_not_there_is_said_so(settings, heard, opened):
    folder = settings()
    run, event = heard()
    until(lambda: (folder / event["clip"]).exists())
    page = opened(port_of(run))
    (folder / event["clip"]).unlink()
    audio = page.locator(f"#events li[data-id='{event['id']}'] audio")
    audio.evaluate("audio => { audio.play().catch(() => {}); }")
    page.wait_for_selector(f"#events li[data-id='{event['id']}'] [role=status]", timeout=10_000)
    assert "no clip" in page.inner_text(f"#events li[data-id='{event['id']}']")
