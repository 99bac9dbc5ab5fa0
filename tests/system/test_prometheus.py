"""The figures of the real daemon in the real Prometheus: what the page, the rules and the dashboard say of them is there."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path

import pytest

pytest.importorskip("uvicorn", reason="needs packages: pip install -e '.[web]'")
pytest.importorskip("starlette", reason="needs packages: pip install -e '.[web]'")
yaml = pytest.importorskip("yaml", reason="needs packages: pip install -e '.[test]'")

ROOT = Path(__file__).parents[2]
STREET = ROOT / "detector" / "demo" / "street.ogg"
PAGE = (ROOT / "docs" / "PROMETHEUS.md").read_text(encoding="utf-8")
RULES = ROOT / "deploy" / "prometheus" / "rules.yml"
DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "urbandetect.json").read_text())
LOWER = "[thresholds.drilling]\non = 0.05\noff = 0.04\n"
"""So low that the recording begins with an event."""
NEEDS = "needs Prometheus: scripts/integrations, or apt install prometheus"


def program(name):
    found = shutil.which(name, path=f"{ROOT}/.cache/prometheus/usr/bin:{os.environ['PATH']}")
    return found or pytest.skip(NEEDS)


@pytest.fixture
def hearing(broker, start, tmp_path):
    """The port of a daemon that hears the street and has a broker."""
    broker.start()
    (tmp_path / "detector.toml").write_text(f'node = "street"\n{LOWER}')
    run = start("urbandetect", "run", "--input", STREET, "--mqtt", f"127.0.0.1:{broker.port}", "--web", "127.0.0.1:0")
    run.wait_for_error("hearing")
    return int(re.search(r"web: http://\S+:(\d+)/", run.errors.read_text())[1])


def fetch(port, path, **parameters):
    url = f"http://127.0.0.1:{port}{path}?{urllib.parse.urlencode(parameters)}"
    with urllib.request.urlopen(url, timeout=10) as answer:
        return answer.read().decode()


def until(condition, within_s=20.0):
    deadline_s = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline_s, "not in time"
        time.sleep(0.1)
    return found


@pytest.fixture
def prometheus(hearing, start, tmp_path):
    """Asks the real Prometheus, which has the shipped rules and reads the daemon every half second: the value of an API path."""
    server = program("prometheus")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms", "scrape_timeout": "500ms"}
    config["rule_files"] = [str(RULES)]
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{hearing}"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
    options = (f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/tsdb")
    run = start(server, *options, f"--web.listen-address=127.0.0.1:{port}")
    run.wait_for_error("Server is ready", within_s=30)

    def ask(path, **parameters):
        answer = json.loads(fetch(port, f"/api/v1/{path}", **parameters))
        assert answer["status"] == "success", answer
        return answer["data"]

    return ask


def families(text):
    """Of the exposition format: {name: (type, labels)}."""
    kinds = dict(re.findall(r"^# TYPE urbandetect_(\w+) (\w+)$", text, re.MULTILINE))
    labels = {name: set() for name in kinds}
    for name, inside in re.findall(r"^urbandetect_(\w+)\{(.*)\} ", text, re.MULTILINE):
        family = name if name in kinds else re.sub(r"_(bucket|sum|count)$", "", name)
        labels[family] |= set(re.findall(r'(\w+)="', inside)) - {"le"}
    return {name: (kind, labels[name]) for name, kind in kinds.items()}


def test_the_table_of_figures_is_what_the_daemon_serves(hearing):
    served = until(lambda: (found := families(fetch(hearing, "/metrics")))["audio_last_block_timestamp_seconds"][1] and found)
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| ([^|]*) \| ([^|]*) \| ([^|]+) \|$", PAGE, re.MULTILINE)
    assert {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels, _, _ in rows} == served
    for name, _, _, unit, _ in rows:
        assert ("_seconds" in name) == (unit in ("s", "s since 1970")), name
        assert ("_dbfs" in name) == (unit == "dBFS"), name


def test_every_expression_of_the_dashboard_and_the_rules_has_an_answer_in_prometheus(prometheus):
    wanted = [
        (panel["title"], target["expr"], target["legendFormat"]) for panel in DASHBOARD["panels"] for target in panel["targets"]
    ]
    assert len(wanted) > 15
    counted = "count_over_time(urbandetect_uptime_seconds[1m]) >= 6 and sum without (source, label) (urbandetect_events_total) > 0"
    until(lambda: prometheus("query", query=counted)["result"])
    for title, expression, legend in wanted:
        for name, value in (("$__rate_interval", "1m"), ("$instance", ".*"), ("$source", ".*"), ("[1h]", "[1m]")):
            expression = expression.replace(name, value)
        assert "$" not in expression
        result = prometheus("query", query=expression)["result"]
        assert result, (title, expression)
        named = re.findall(r"\w+", " ".join([*re.findall(r"by \(([^)]*)\)", expression), *re.findall(r"\{\{(\w+)\}\}", legend)]))
        assert set(named) - {"le"} <= result[0]["metric"].keys(), (title, named)
        for series, matchers in re.findall(r"(urbandetect_\w+)\{([^}]*)\}", expression):
            assert set(re.findall(r"(\w+)=~", matchers)) <= prometheus("query", query=series)["result"][0]["metric"].keys(), title
    for variable in DASHBOARD["templating"]["list"][1:]:
        series, label = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["definition"]).groups()
        assert prometheus(f"label/{label}/values", **{"match[]": series.replace("$instance", ".*")})
    rules = until(lambda: (groups := prometheus("rules")["groups"])[0]["evaluationTime"] and groups)
    assert [(rule["name"], rule["health"]) for rule in rules[0]["rules"]] == [
        (rule["alert"], "ok") for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]
    ]
    assert not [rule["name"] for rule in rules[0]["rules"] if rule["alerts"]]
    for rule in rules[0]["rules"]:  # without the comparisons that are not met while all is well
        for name, matchers in re.findall(r"(urbandetect_\w+|\bup\b)(\{[^}]*\})?", rule["query"]):
            result = prometheus("query", query=name + matchers)["result"]
            assert result, (rule["name"], name)
            labels = set(re.findall(r"\$labels\.(\w+)", " ".join(rule["annotations"].values())))
            assert labels <= result[0]["metric"].keys(), rule["name"]


def test_the_rules_are_valid_and_each_alert_fires_when_it_should_and_not_before():
    promtool = program("promtool")
    for command in (("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")):
        done = subprocess.run([promtool, *command], cwd=RULES.parent, capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load((RULES.parent / "rules_test.yml").read_text())["tests"]
    told = [(one["alertname"], bool(one.get("exp_alerts"))) for test in tests for one in test["alert_rule_test"]]
    alerts = [rule["alert"] for rule in yaml.safe_load(RULES.read_text())["groups"][0]["rules"]]
    assert set(told) == {(alert, fires) for alert in alerts for fires in (True, False)}
    assert set(re.findall(r"^\| `(Urbandetect\w+)` \|", PAGE, re.MULTILINE)) == set(alerts)


def test_the_dashboard_has_the_shape_that_grafana_documents():
    assert 8 <= len(DASHBOARD["uid"]) <= 40
    assert DASHBOARD["panels"]
    assert "id" not in DASHBOARD  # Grafana gives it
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "instance", "source"]
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len({panel["title"] for panel in panels}) == len(panels)
    places = set()
    for panel in panels:
        assert panel["type"] in ("stat", "timeseries", "state-timeline")
        assert panel["description"]
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert max(x for x, _ in cells) < 24
        assert not places & cells, panel["title"]
        places |= cells
        assert [target["refId"] for target in panel["targets"]] == [chr(65 + i) for i in range(len(panel["targets"]))]
        for part in (panel, *panel["targets"]):
            assert part["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert panel["fieldConfig"]["defaults"]["unit"] in ("none", "short", "s", "dB", "percentunit")
