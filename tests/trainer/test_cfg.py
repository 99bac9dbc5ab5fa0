import pytest

from detector.errors import CfgError
from detector.model import shipped
from trainer.cfg import load_cfg, parse_cfg, summary

ROWS = "[moddims]\npermute=[2,1,0]\ncollapse=[1,2]\n"
SMALL = f"""
[convs_module]
[conv2d]
out_channels=4
kernel_size=3
[maxpool2d]
kernel_size=[2,3]
{ROWS}
[recur_module]
[lstm]
hidden_size=5
[dense_module]
[linear]
out_features=10
"""


def test_the_reference_network_has_exactly_139786_parameters():
    assert load_cfg(shipped("reference.cfg")).parameters == 139_786


def test_the_reference_reaches_80_frames_in_strides_of_48():
    cfg = load_cfg(shipped("reference.cfg"))
    assert (cfg.receptive_frames, cfg.stride_frames) == (80, 48)
    assert cfg.receptive_samples == 79 * 1024 + 2048
    assert cfg.hop == 48 * 1024


@pytest.mark.parametrize(("name", "kinds", "reach"), [("cnn", "conv2d maxpool2d", (80, 48)), ("rnn", "lstm", (1, 1))])
def test_a_variant_of_the_reference_is_its_parts_behind_the_same_front_end(name, kinds, reach):
    whole, part = load_cfg(shipped("reference.cfg")), load_cfg(shipped(f"reference-{name}.cfg"))
    assert part.frontend == whole.frontend
    assert (part.receptive_frames, part.stride_frames) == reach
    assert part.outputs == 10
    assert part.clip_pooling == {"cnn": "logit_mean", "rnn": "last"}[name]
    for kind in kinds.split():
        ours, theirs = ([layer.args for layer in cfg.layers if layer.kind == kind] for cfg in (part, whole))
        assert ours == theirs
    assert {layer.kind for layer in part.layers} < {layer.kind for layer in whole.layers}
    with pytest.raises(CfgError, match="does not stream"):
        part.require_streaming()


def test_the_summary_names_every_layer_with_its_shape():
    cfg = load_cfg(shipped("reference.cfg"))
    text = summary(cfg)
    for layer in cfg.layers:
        assert any(line.startswith(layer.name) and str(list(layer.shape_out)) in line for line in text.splitlines())
    assert [layer.name for layer in cfg.layers][:5] == ["conv2d_0", "batchnorm2d_0", "elu_0", "maxpool2d_0", "conv2d_1"]
    assert "139,786" in text


def test_urban_streams_in_steps_of_at_most_100_ms_with_at_most_250000_parameters():
    cfg = load_cfg(shipped("urban.cfg"))
    assert not cfg.obstacles
    assert cfg.parameters <= 250_000
    assert cfg.hop / cfg.frontend.sample_rate <= 0.1


def test_repeat_blocks_are_written_out_and_comments_and_case_do_not_matter():
    block = "[conv1d]\nout_channels = 8\n  kernel_size=(3,)\n# a comment\n[ELU]\n"
    head = "[frontend]\nn_mels=16\n[moddims]\ncollapse=[0,1]\n"
    tail = "[moddims]\npermute=[1,0]\n[linear]\nout_features=10"
    repeated = parse_cfg(head + "RepeatX3\n" + block + "eNd\n" + tail)
    assert [layer.name for layer in repeated.layers] == [layer.name for layer in parse_cfg(head + 3 * block + tail).layers]
    assert repeated.receptive_frames == 7


def test_modules_may_be_absent_and_the_input_shape_may_be_given():
    cfg = parse_cfg(
        "[input]\nshape=[1,64,30]\n[moddims]\npermute=[2,0,1]\ncollapse=[1,2]\n[gru]\nhidden_size=7\n[linear]\nout_features=3"
    )
    assert cfg.input_shape == (1, 64, 30)
    assert cfg.layers[0].module == "main"
    assert cfg.layers[0].shape_out == (30, 7)
    assert cfg.outputs == 3


@pytest.mark.parametrize(
    ("change", "obstacle"),
    [
        (("hidden_size=5", "hidden_size=5\nbidirectional=True"), "lstm_0"),
        (("kernel_size=3", "kernel_size=3\npadding=same"), "conv2d_0"),
        (("kernel_size=[2,3]", "kernel_size=[2,3]\nceil_mode=True"), "maxpool2d_0"),
        (("[maxpool2d]\nkernel_size=[2,3]", "[adaptiveavgpool2d]\noutput_size=[3,7]"), "adaptiveavgpool2d_0"),
        (("[maxpool2d]", "[batchnorm2d]\ntrack_running_stats=False\n[maxpool2d]"), "batchnorm2d_0"),
        (("[convs_module]", "[frontend]\nnorm=whiten\n[convs_module]"), "norm=whiten"),
    ],
)
def test_what_needs_the_whole_clip_trains_but_does_not_stream_and_says_why(change, obstacle):
    cfg = parse_cfg(SMALL.replace(*change), "x.cfg")
    assert obstacle in cfg.obstacles[0]
    with pytest.raises(CfgError, match=r"x\.cfg: does not stream: .*" + obstacle):
        cfg.require_streaming()


def test_padding_the_bands_alone_streams():
    assert not parse_cfg(SMALL.replace("kernel_size=3", "kernel_size=3\npadding=[1,0]")).obstacles


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (SMALL.replace("[lstm]", "[lstmm]"), r"x\.cfg:13: unknown layer \[lstmm\]"),
        (
            SMALL.replace("kernel_size=3", "kernel_size=99"),
            r"x\.cfg:3: conv2d_0: kernel 99 is larger than its input of 64 \(bands\)",
        ),
        (SMALL.replace("kernel_size=3", "kernel=3"), r"x\.cfg:5: conv2d_0 has no argument kernel"),
        (SMALL.replace("out_channels=4", ""), r"x\.cfg:3: conv2d_0 needs out_channels"),
        (SMALL.replace("out_channels=4", "out_channels=four"), r"x\.cfg:4: conv2d_0: out_channels=four"),
        (SMALL.replace("kernel_size=[2,3]", "kernel_size=[2,3,4]"), r"maxpool2d_0: kernel_size=\[2, 3, 4\]"),
        (SMALL.replace("permute=[2,1,0]", "permute=[3,1,0]"), r"\[moddims\] permute=\[3, 1, 0\] does not fit"),
        (SMALL.replace(ROWS, ""), r"lstm_0 needs rows"),
        (SMALL.replace("collapse=[1,2]", "collapse=[0,1]"), "merges time into the features, and clips differ in length"),
        (SMALL.replace("permute=[2,1,0]", "permute=[0,1]"), r"drops time from the shape \[4, 31, "),
        (
            "[frontend]\nn_fft=512\n" + SMALL.replace("[2,3]", "1").replace("kernel_size=3", "kernel_size=1\nstride=5"),
            "skips sound",
        ),
        ("[frontend]\nn_mels=1e999\n" + SMALL, "n_mels=inf is not a whole number"),
        (SMALL + "\nEND", "END without REPEAT"),
        ("REPEATx2\n" + SMALL, r"x\.cfg:1: REPEAT without END"),
        ("hidden_size=3", r"x\.cfg:1: .* before the first \[section\]"),
        ("[linear]\nout_features", r"x\.cfg:2: `out_features` is neither"),
        ("", "has no layer"),
        ("[frontend]\nn_fft=1000\n" + SMALL, r"n_fft=1000 must be a multiple of 4 and of hop_length=512"),
        ("[frontend]\nmels=10\n" + SMALL, r"\[frontend\] has no key mels"),
        ("[frontend]\nsample_rate=fast\n" + SMALL, r"\[frontend\] sample_rate=fast is not a whole number"),
        ("[frontend]\nn_mels=512\n" + SMALL, "mel bands hold no frequency bin"),
        ("[input]\nshape=[1,2]\n" + SMALL, r"\[input\] needs shape"),
        ("[output]\nclip_pooling=best\n" + SMALL, r"clip_pooling=best"),
        (SMALL.replace("[linear]\nout_features=10", "[conv2d]\nout_channels=1\nkernel_size=1"), "conv2d_1 needs"),
        (SMALL.replace("hidden_size=5", "hidden_size=5\ndropout=0.5"), "dropout works between layers"),
    ],
)
def test_an_error_is_one_line_that_names_file_line_and_layer(text, said):
    with pytest.raises(CfgError, match=said) as error:
        parse_cfg(text, "x.cfg")
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_or_not_text_is_one_clear_line(tmp_path):
    with pytest.raises(CfgError, match=r"none\.cfg: cannot be read"):
        load_cfg(tmp_path / "none.cfg")
    (tmp_path / "binary.cfg").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CfgError, match=r"is not text; give a \.cfg, or of a trained network its model\.onnx"):
        load_cfg(tmp_path / "binary.cfg")
