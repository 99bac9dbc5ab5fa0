import itertools
import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from detector.cli import cli
from detector.errors import InputError
from detector.model import shipped
from trainer.architecture import CHARACTER, COUNT, SIZES, WIDTH, draw, reach_of
from trainer.cfg import load_cfg, parse_cfg

SVG = "{http://www.w3.org/2000/svg}"
WHOLE_CLIP = """
[convs_module]
[convtranspose2d]
out_channels=1024
kernel_size=[3,1]
padding=[1,0]
dilation=[2,1]
bias=False
[adaptivemaxpool2d]
output_size=[4,10]
[moddims]
permute=[2,1,0]
[moddims]
collapse=[1,2]
[a_module_with_a_name_that_is_longer_than_its_column_module]
[gru]
hidden_size=512
num_layers=3
bidirectional=True
dropout=0.25
[moddims]
permute=[1]
[linear]
out_features=10
"""


def cfgs():
    return [load_cfg(shipped("urban.cfg")), load_cfg(shipped("reference.cfg")), parse_cfg(WHOLE_CLIP)]


def lines(svg: str) -> list[tuple[ElementTree.Element, str]]:
    return [(text, "".join(text.itertext())) for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


@pytest.mark.parametrize("cfg", cfgs(), ids=["urban", "reference", "whole clip"])
def test_every_layer_is_there_in_order_with_its_shape_and_parameters(cfg):
    said = [words for _, words in lines(draw(cfg, "a network"))]
    at = 0
    for layer in cfg.layers:
        at = said.index(layer.name, at)
        box = said[at : at + 3]
        assert box[1] == " × ".join(map(str, layer.shape_out))  # noqa: RUF001
        assert not layer.parameters or box[2] == f"{layer.parameters:,}"
    assert f"{cfg.parameters:,}" in said[at:]
    assert [words for words in said if "does not stream" in words] == [f"does not stream: {reason}" for reason in cfg.obstacles]


@pytest.mark.parametrize("cfg", cfgs()[:2], ids=["urban", "reference"])
def test_the_last_layer_reaches_as_far_as_the_network(cfg):
    last = reach_of(cfg)[-1]
    assert (last.reads, last.moves, last.past) == (cfg.receptive_frames, cfg.stride_frames, True)


@pytest.mark.parametrize("title", ["urban", "a title that is far too long for the page " * 3])
@pytest.mark.parametrize("cfg", cfgs(), ids=["urban", "reference", "whole clip"])
def test_no_text_runs_out_of_the_page_or_into_the_next(cfg, title):
    root = ElementTree.fromstring(draw(cfg, title))
    by_line: dict[str, list[tuple[float, float]]] = {}
    for text in root.iter(f"{SVG}text"):
        width = len("".join(text.itertext())) * CHARACTER * SIZES.get(text.get("class", ""), 12.0)
        x = float(text.attrib["x"])
        start = x - width if text.get("text-anchor") == "end" else x
        by_line.setdefault(text.attrib["y"], []).append((start, start + width))
    for spans in by_line.values():
        spans.sort()
        assert spans[0][0] >= 0
        assert spans[-1][1] <= WIDTH
        assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    assert float(root.attrib["height"]) > max(map(float, by_line))
    assert WIDTH > COUNT


def test_only_arguments_that_are_not_the_defaults_are_said():
    said = [words for _, words in lines(draw(load_cfg(shipped("reference.cfg")), "reference"))]
    assert said.count("kernel_size=4") == 2  # a pool's stride is its kernel unless it says otherwise
    assert "out_channels=32, kernel_size=3" in said
    assert not any("stride=" in words or "eps=" in words for words in said)


def test_it_reads_on_light_and_dark_pages_and_aloud_whatever_the_title_holds():
    svg = draw(load_cfg(shipped("urban.cfg")), 'a <b> & "c" \x07 \udcff')
    root = ElementTree.fromstring(svg)
    assert root.findtext(f"{SVG}title") == 'Architecture a <b> & "c" ? ?'
    assert "210,698 parameters" in (root.findtext(f"{SVG}desc") or "")
    style = root.findtext(f"{SVG}style") or ""
    light, dark = style.split("@media (prefers-color-scheme: dark)")
    used = {word for element in root.iter() for word in element.get("class", "").split()}
    fills = {name for name in used if re.search(rf"\.{name} {{ fill: #", light)}
    assert {"page", "panel", "box", "time", "conv"} <= fills
    assert all(f".{name} {{ fill: #" in dark for name in fills)
    svg.encode("utf-8")


def test_the_command_draws_a_cfg_and_a_model_file_without_torch_or_matplotlib(tmp_path):
    blocked = "import sys; sys.modules['torch'] = sys.modules['matplotlib'] = None; from detector.cli import main; main()"
    for name in ("urban.cfg", "urban.onnx"):
        out = tmp_path / f"{name}.svg"
        command = [sys.executable, "-c", blocked, "model", "plot", str(shipped(name)), str(out)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")
        assert any(words == "lstm_0" for _, words in lines(out.read_text(encoding="utf-8")))


def test_another_kind_of_picture_is_refused_with_the_one_that_works(tmp_path):
    arguments = ["model", "plot", str(shipped("urban.cfg")), str(tmp_path / "urban.png")]
    with pytest.raises(InputError, match=r"name it \.svg"):
        CliRunner().invoke(cli, arguments, catch_exceptions=False)
    assert not list(tmp_path.iterdir())
