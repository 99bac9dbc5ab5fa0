"""What looking on costs a live stream: one reader of the page's stream, Prometheus every 15 s, the log of scores, against none.

.venv/bin/python bench/web.py
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

PROGRAM = [str(Path(sys.executable).with_name("urbandetect"))]
STREET = Path(__file__).parent.parent / "detector" / "demo" / "street.ogg"
LISTEN_S = 40
SETTLE_S = 3
SCRAPE_S = 15.0


def cost(*options: str, watched: bool = False, logged: bool = False) -> tuple[float, float, int]:
    """Share of a core, resident MB and bytes streamed, of a daemon that hears the street in real time."""
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "errors").open("w") as errors:
        settings = Path(folder) / "detector.toml"
        settings.write_text(f'[log_scores]\nfolder = "{folder}/scores"\n' if logged else "")
        command = [*PROGRAM, "run", "--config", str(settings), "--input", str(STREET), "--provider", "cpu", *options]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
        try:
            streamed = [0]
            time.sleep(SETTLE_S)
            if watched:
                found = re.search(r"http://([^/]+):(\d+)/", (Path(folder) / "errors").read_text())
                assert found
                threading.Thread(target=_read, args=(found[1], int(found[2]), streamed), daemon=True).start()
                threading.Thread(target=_scrape, args=(found[0] + "metrics",), daemon=True).start()
                time.sleep(SETTLE_S)
            before_s, bytes_before = _cpu_s(process.pid), streamed[0]
            time.sleep(LISTEN_S)
            share = (_cpu_s(process.pid) - before_s) / LISTEN_S
            status = Path(f"/proc/{process.pid}/status").read_text()
            return share, int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024, streamed[0] - bytes_before  # type: ignore[index]
        finally:
            process.terminate()
            process.wait()


def _read(host: str, port: int, streamed: list[int]) -> None:
    with socket.create_connection((host, port)) as reader:
        reader.sendall(f"GET /stream HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
        while got := reader.recv(1 << 16):
            streamed[0] += len(got)


def _scrape(address: str) -> None:
    with contextlib.suppress(OSError):  # the daemon has gone
        while True:
            with urllib.request.urlopen(address) as answer:
                answer.read()
            time.sleep(SCRAPE_S)


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, {LISTEN_S} s each")
    print("                       share of a core  resident MB  streamed kB/s")
    web = ("--web", "127.0.0.1:0")
    rows = [
        ("off", ()),
        ("on, nobody looks", web),
        ("on, page and figures", web),
        ("log of scores", ()),
        ("page, figures, log", web),
    ]
    for name, options in rows:
        share, resident_mb, streamed = cost(*options, watched="page" in name, logged="log" in name)
        print(f"{name:<21}  {100 * share:13.1f} %  {resident_mb:11.1f}  {streamed / LISTEN_S / 1000:13.1f}", flush=True)


if __name__ == "__main__":
    main()
