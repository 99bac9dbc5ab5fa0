"""`pulse:SOURCE` opens that source of a real PulseAudio, through ALSA and PortAudio, and no other."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from parts import PATIENCE_S

HINT = "needs PulseAudio and ALSA's plugin for it: apt install pulseaudio pulseaudio-utils libasound2-plugins"
LISTEN = """
import json, sys, threading, time
from detector.audio.devices import os
from detector.audio.microphone import Microphone
from detector.errors import UrbandetectError
for name in sys.argv[1:]:
    try:
        microphone, peak, count = Microphone(name, threading.Event()), 0.0, 0
        while count < 2 * microphone.rate:
            if block := microphone.read():
                peak, count = max(peak, float(abs(block.samples).max())), count + len(block.samples)
            time.sleep(0.01)
        print(json.dumps(peak), os.environ.get("PULSE_SOURCE"), flush=True)
        microphone.close()
    except UrbandetectError as error:
        print(error, flush=True)
os._exit(0)
"""


@pytest.fixture
def server(start, tmp_path):
    """What a client of a PulseAudio needs: on its `gate.monitor` there is a tone, on `yard.monitor` nothing."""
    folders = [Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":") if folder] + [
        *Path("/usr/lib").glob("*-linux-gnu*")
    ]
    plugin = next((p for folder in folders if (p := folder / "alsa-lib/libasound_module_pcm_pulse.so").exists()), None)
    if not (plugin and shutil.which("pulseaudio") and shutil.which("pactl")):
        pytest.skip(HINT)
    pulse = f'pcm_type.pulse {{ lib "{plugin}" }}\npcm.pulse {{ type pulse hint {{ show on description "Pulse" }} }}\n'
    (tmp_path / "asound.conf").write_text(f"</usr/share/alsa/alsa.conf>\n{pulse}")
    env = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PULSE_SERVER": f"unix:{tmp_path}/native"}
    modules = [f"module-native-protocol-unix socket={tmp_path}/native auth-anonymous=1", "module-null-sink sink_name=yard"]
    modules += ["module-null-sink sink_name=gate", "module-sine sink=gate frequency=500"]
    options = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", "--disable-shm=yes"]
    program = start("pulseaudio", *options, *(part for module in modules for part in ("-L", module)), env=env)
    deadline = time.monotonic() + PATIENCE_S
    while (
        b"gate.monitor"
        not in subprocess.run(["pactl", "list", "short", "sources"], env=os.environ | env, capture_output=True).stdout
    ):
        assert time.monotonic() < deadline, program.errors.read_text()
        time.sleep(0.05)
    return env | {"ALSA_CONFIG_PATH": str(tmp_path / "asound.conf")}


def test_the_source_that_is_named_is_heard_and_one_that_is_not_there_is_said(server, start):
    run = start(
        sys.executable,
        "-c",
        LISTEN,
        "pulse:gate.monitor",
        "pulse:yard.monitor",
        "pulse:none",
        "pulse:",
        env=server,
    )
    assert run.end(40) == 0
    gate, yard, none, empty = run.lines
    assert [json.loads(line.split()[0]) > 0.1 for line in (gate, yard)] == [True, False]
    assert {line.split()[1] for line in (gate, yard)} == {"None"}  # nothing stays behind for who opens another one
    assert none.startswith("microphone pulse:none: cannot be opened")
    assert "pactl list short sources" in none
    assert empty.startswith("microphone pulse:: is not pulse:SOURCE")
