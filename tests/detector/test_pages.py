"""The pages of the documentation: made of what they tell of, every link leads somewhere, and every page is on the site."""

from __future__ import annotations

import re
import runpy
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")]
PAGES += sorted([*(ROOT / "docs").glob("*.md"), *(ROOT / "models").glob("*.md"), ROOT / "detector/demo/ATTRIBUTION.md"])
FENCE = re.compile(r"^ *(```|~~~).*?^ *\1 *$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
LINK = re.compile(
    r"\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)|^ *\[[^\]]+\]:\s*(\S+)|\b(?:href|src|srcset)=\"([^\"]*)\"", re.MULTILINE
)


def links(text):
    """Where a Markdown text leads to, code left out."""
    return ["".join(found) for found in LINK.findall(CODE.sub("`code`", FENCE.sub("", text)))]


def anchors(text):
    """What its headings are called on GitHub: lower case, letters, digits, `-` and `_`; one that is there already gets a number."""
    found = set(re.findall(r"\b(?:id|name)=\"([^\"]+)\"", text))
    for heading in re.findall(r"^#{1,6}\s+(.+?)\s*#*$", FENCE.sub("", text), re.MULTILINE):
        plain = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = base = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        number = 0
        while name in found:
            number += 1
            name = f"{base}-{number}"
        found.add(name)
    return found


def faults(page, text):
    """What is wrong with the links of a page that lies at a path of this repository."""
    for link in links(text):
        parts = urlsplit(link)
        if parts.scheme or parts.netloc:
            if parts.scheme != "https" or not re.fullmatch(r"[\w-]+(\.[\w-]+)+", parts.netloc):
                yield f"{page.name}: {link}: not https://HOST/..."
            continue
        target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
        if target != page and not (target.is_relative_to(ROOT) and target.exists()):
            yield f"{page.name}: {link}: there is no such file"
        elif parts.fragment and parts.fragment not in anchors(text if target == page else target.read_text(encoding="utf-8")):
            yield f"{page.name}: {link}: {target.name} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page):
    assert list(faults(page, page.read_text(encoding="utf-8"))) == []


def test_the_readme_leads_to_pages_pictures_and_headings():
    found = links((ROOT / "README.md").read_text(encoding="utf-8"))
    assert {"docs/RELIABILITY.md", "docs/TRAINING.md#figures", "docs/page-dark.png", "docs/page-light.png"} <= set(found)


@pytest.mark.parametrize(
    "text",
    [
        "[a](NOWHERE.md)",
        "[a](RELIABILITY.md#no-such-heading)",
        "# One\n[a](#two)",
        "[a](../../outside.md)",
        "![a](nowhere.png)",
        '<img src="nowhere.png">',
        "[a]: nowhere.md",
        "[a](http://example.com)",
        "[a](https:/example.com)",
        "[a](https://nohost)",
    ],
)
def test_a_link_that_leads_nowhere_is_found(text):
    assert len(list(faults(ROOT / "docs" / "TEST.md", text))) == 1


def test_links_in_code_are_none_and_headings_are_called_as_github_does():
    assert links("`[a](b.md)` ``[`a](b.md)`` \n```\n[a](b.md)\n```\n[c](d.md)") == ["d.md"]
    text = "# A `b-c` [d](e.md), f_g!\n```\n# no heading\n```\n## Twice\n## Twice\n### [[x]] & y\n"
    assert anchors(text) == {"a-b-c-d-f_g", "twice", "twice-1", "x--y"}
    assert list(faults(ROOT / "docs" / "TEST.md", "## Twice\n## Twice\n[a](#twice-1) [b](RELIABILITY.md#a-soak)")) == []


@pytest.fixture(scope="module")
def made():
    return runpy.run_path(str(ROOT / "docs" / "generate.py"))


@pytest.mark.parametrize("name", ["TOPICS.md", "SETTINGS.md", "COMMANDS.md"])
def test_a_page_that_is_made_says_what_its_sources_say(made, name):
    kept = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert made["pages"]()[name] == kept, f"docs/{name} is not what its sources say: run `python docs/generate.py`"


def test_the_made_pages_have_every_topic_key_and_command(made):
    pages = made["pages"]()
    for line in ("`<node>/<source>/event`", "`level.laeq`", "`sources.<name>.gaps.overflow`", "`no_audio`"):
        assert line in pages["TOPICS.md"]
    for line in ("| `calibration_db` | number | none |", "| `port` | whole number | `0` |", "## [[profile]]", "| `cooldown_s` |"):
        assert line in pages["SETTINGS.md"]
    for line in ("## urbandetect run", "## urbandetect model info", "`--meter`", "`onset_s`", "`checks[].fix`"):
        assert line in pages["COMMANDS.md"]


def test_the_table_of_the_architecture_page_has_every_topic_as_its_schema_says(made):
    text = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `([^`]+)` \| (\d[^|]*?) \|", text, re.MULTILINE))
    told = [schema["mqtt"] for schema in made["SCHEMAS"].values() if "mqtt" in schema]
    assert len(told) == len(rows) > 8
    for topic in told:
        row = rows[topic["topic"].removeprefix("<node>/")]
        assert (row[0], row == f"{row[0]}, retained") == (str(topic["qos"]), topic["retained"]), topic


@pytest.mark.parametrize(
    ("was", "becomes", "said"),
    [
        ("# port = 0                     # 0: 1883, or 8883 with tls\n", "", "needs a line `# port = "),
        ("# port = 0 ", "# port = 1 ", "shows mqtt.port = 1, the default is 0"),
        ("# port = 0 ", '# colour = ""  # of what\n# port = 0 ', "no setting is named mqtt.colour"),
    ],
)
def test_a_setting_without_its_line_in_detector_toml_is_named(made, tmp_path, was, becomes, said):
    text = (ROOT / "detector.toml").read_text(encoding="utf-8")
    assert was in text
    (tmp_path / "detector.toml").write_text(text.replace(was, becomes), encoding="utf-8")
    settings = made["settings"]
    settings.__globals__["ROOT"] = tmp_path
    try:
        with pytest.raises(ValueError, match=re.escape(said)):
            settings()
    finally:
        settings.__globals__["ROOT"] = ROOT


def test_every_page_is_in_the_menu_of_the_site():
    menu = [line for line in (ROOT / "mkdocs.yml").read_text(encoding="utf-8").splitlines() if not line.strip().startswith("#")]
    listed = {found[1] for line in menu if (found := re.match(r"\s+- (\S+\.md)$", line))}
    missing = [page.relative_to(ROOT).as_posix() for page in PAGES if page.relative_to(ROOT).as_posix() not in listed]
    assert missing == [], f"mkdocs.yml: nav has no line for {', '.join(missing)}"
    assert [page for page in listed if not (ROOT / page).exists()] == []
