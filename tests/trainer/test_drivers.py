"""One definition, three drivers: the clip, the stream and the exported file give the same scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.model import Model, shipped
from trainer.cfg import load_cfg, parse_cfg
from trainer.crnn import CRNN
from trainer.exporter import export
from trainer.thresholds import DEFAULT

LABELS = ("a", "b", "c")


@st.composite
def cfgs(draw):
    """Random architectures of the grammar that stream."""
    hop = draw(st.sampled_from([128, 256]))
    text = [
        "[frontend]",
        "sample_rate=8000",
        f"n_fft={hop * draw(st.sampled_from([1, 2, 4]))}",
        f"hop_length={hop}",
        "n_mels=12",
        "f_min=60",
    ]
    text += [f"compression={draw(st.sampled_from(['log', 'none']))}", f"norm={draw(st.sampled_from(['bands', 'none']))}"]
    for _ in range(draw(st.integers(0, 2))):
        text += ["[conv2d]", f"out_channels={draw(st.integers(1, 6))}", f"kernel_size=[3,{draw(st.integers(1, 4))}]"]
        text += [f"dilation=[1,{draw(st.integers(1, 2))}]", f"padding={draw(st.sampled_from(['valid', '[1,0]']))}"]
        text += ["[batchnorm2d]", f"[{draw(st.sampled_from(['relu', 'elu', 'leakyrelu', 'sigmoid']))}]"]
        text += [f"[{draw(st.sampled_from(['maxpool2d', 'avgpool2d']))}]", f"kernel_size=[2,{draw(st.integers(1, 3))}]"]
    text += ["[moddims]", "permute=[2,1,0]", "collapse=[1,2]"]
    for _ in range(draw(st.integers(0, 2))):
        text += [f"[{draw(st.sampled_from(['lstm', 'gru', 'rnn']))}]", f"hidden_size={draw(st.integers(1, 8))}"]
        text += [f"num_layers={draw(st.integers(1, 2))}"]
    if draw(st.booleans()):
        text += ["[moddims]", "permute=[1]"]
    text += ["[batchnorm1d]", "[dropout]", "[linear]", f"out_features={len(LABELS)}"]
    return "\n".join(text)


def network(text: str, seed: int) -> CRNN:
    """Random weights and random statistics of every norm, so that no layer is an identity."""
    torch.manual_seed(seed)
    model = CRNN(parse_cfg(text))
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    model.frontend.band_mean.uniform_(-1, 1)
    return model.eval()


def whole(model: CRNN, audio: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return model.step(audio, model.fresh_state(len(audio)))[0]


def in_steps(step, state, audio, hop, context, splits):
    """Scores over windows of so many hops each, the state handed on."""
    scores, at = [], 0
    for hops in splits:
        rows, state = step(audio[:, at : at + context + hops * hop], state)
        scores.append(np.asarray(rows))
        at += hops * hop
    return np.concatenate(scores, axis=1)


@settings(max_examples=25, deadline=None)
@given(cfgs(), st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(1, 3), st.integers(0, 1 << 16))
def test_chunked_torch_is_whole_torch_is_onnxruntime(tmp_path_factory, text, splits, streams, seed):
    model = network(text, seed)
    cfg = model.cfg
    audio = torch.nn.functional.pad(torch.randn(streams, sum(splits) * cfg.hop) * 0.1, (cfg.context, 0))
    expected = whole(model, audio).numpy()
    assert expected.shape == (streams, sum(splits), len(LABELS))
    with torch.no_grad():
        chunked = in_steps(model.step, model.fresh_state(streams), audio, cfg.hop, cfg.context, splits)
    np.testing.assert_allclose(chunked, expected, atol=1e-4)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export(model, path, name="t", version="1", labels=LABELS, thresholds=dict.fromkeys(LABELS, DEFAULT), training={}, metrics={})
    runner = Model(path, "cpu")
    context = runner.description.context
    assert context == cfg.frontend.n_fft - cfg.frontend.hop_length
    new = audio[:, cfg.context - context :].numpy()
    stepped = in_steps(runner.step, runner.fresh_state(streams), new, cfg.hop, context, splits)
    np.testing.assert_allclose(stepped, expected, atol=1e-4)


@settings(max_examples=25, deadline=None)
@given(cfgs(), st.integers(2, 6), st.data())
def test_samples_after_a_rows_window_never_change_it(text, rows, data):
    model = network(text, 1)
    cfg = model.cfg
    row = data.draw(st.integers(0, rows - 2))
    audio = torch.randn(1, cfg.context + rows * cfg.hop) * 0.1
    other = audio.clone()
    other[:, cfg.context + (row + 1) * cfg.hop :] = torch.randn(1, (rows - row - 1) * cfg.hop)
    before, after = whole(model, audio)[:, : row + 1], whole(model, other)[:, : row + 1]
    torch.testing.assert_close(before, after, atol=1e-6, rtol=0)


@pytest.fixture(scope="module")
def urban():
    torch.manual_seed(3)
    return CRNN(load_cfg("models/urban.cfg")).eval()


def test_the_state_changes_with_every_step_and_a_reset_matters(urban):
    cfg = urban.cfg
    audio = torch.randn(1, cfg.context + cfg.hop)
    with torch.no_grad():
        first, state = urban.step(audio, urban.fresh_state(1))
        second, later = urban.step(audio, state)
        again, _ = urban.step(audio, urban.fresh_state(1))
    assert all((new != old).any() for new, old in zip(later, state, strict=True))
    assert not torch.equal(first, second)
    assert torch.equal(first, again)


def test_the_clip_driver_answers_as_a_fresh_stream_does(urban):
    cfg = urban.cfg
    clip = torch.randn(1, 3 * cfg.hop + 100) * 0.1
    audio = torch.nn.functional.pad(clip, (cfg.context, cfg.hop - 100))
    with torch.no_grad():
        logits = urban.clip_logits(clip, torch.tensor([clip.shape[1]]))
    torch.testing.assert_close(logits, torch.logit(whole(urban, audio)).mean(1), atol=1e-4, rtol=1e-4)


FRONT = "[frontend]\nsample_rate=8000\nn_fft=256\nhop_length=128\nn_mels=16\nf_min=60\n"
WHITE = FRONT.replace("f_min", "norm=whiten\nf_min")
CONV = "[conv2d]\nout_channels=6\nkernel_size=3\n[batchnorm2d]\n[relu]\n[maxpool2d]\nkernel_size=[2,3]\n"
SAME = CONV.replace("kernel_size=3\n", "kernel_size=3\npadding=same\n")
FOUR = "[adaptiveavgpool2d]\noutput_size=[2,4]\n"
ROWS = "[moddims]\npermute=[2,1,0]\ncollapse=[1,2]\n"
LSTM, BOTH_WAYS = "[lstm]\nhidden_size=8\n", "[lstm]\nhidden_size=8\nnum_layers=2\nbidirectional=True\n"
LAST = "[moddims]\npermute=[1]\n"
END = "[batchnorm1d]\n[linear]\nout_features=3\n"
LOGIT_MEAN = "[output]\nclip_pooling=logit_mean\n"
NETWORKS = {
    "cnn": FRONT + CONV + ROWS + END + LOGIT_MEAN,
    "cnn, whitened": WHITE + CONV + ROWS + END + LOGIT_MEAN,
    "rnn": FRONT + ROWS + LSTM + END,
    "rnn, whitened, many to one": WHITE + ROWS + LSTM + LAST + END,
    "crnn, whitened, many to one": WHITE + CONV + ROWS + LSTM + LAST + END,
    "bidirectional": FRONT + CONV + ROWS + BOTH_WAYS + END,
    "bidirectional, whitened": WHITE + CONV + ROWS + BOTH_WAYS + END,
    "bidirectional, many to one": FRONT + CONV + ROWS + BOTH_WAYS + LAST + END,
    "padding in time": FRONT + SAME + ROWS + LSTM + END,
    "padding in time, bidirectional": FRONT + SAME + ROWS + BOTH_WAYS + END,
    "padding in time, whitened": WHITE + SAME + ROWS + LSTM + LAST + END,
    "rounded up in time": FRONT + CONV.replace("[2,3]", "[2,3]\nceil_mode=True") + ROWS + LSTM + END,
    "pooled over time": FRONT + CONV + FOUR + "[moddims]\ncollapse=[0,1,2]\n" + END,
    "pooled over time into rows": FRONT + CONV + FOUR + ROWS + LSTM + END,
    "pooled over time, bidirectional": FRONT + CONV + FOUR + ROWS + BOTH_WAYS + END,
    "pooled over time, many to one": FRONT + CONV + FOUR + ROWS + LSTM + LAST + END,
    "stereo": FRONT + "[input]\nshape=[2,16,60]\n" + CONV + ROWS + LSTM + END,
    "stereo, whitened, bidirectional": WHITE + "[input]\nshape=[2,16,60]\n" + CONV + ROWS + BOTH_WAYS + LAST + END,
    **{name: shipped(f"{name}.cfg").read_text() for name in ("urban", "reference", "reference-cnn", "reference-rnn")},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_the_answer_for_a_clip_does_not_depend_on_its_batch(name):
    model = network(NETWORKS[name], 1)
    for parameter in model.parameters():
        parameter.data *= 2  # answers that differ
    cfg = model.cfg
    context, hop = cfg.context, cfg.hop
    lengths = [40, context + hop // 2, context + hop + 1, context + 2 * hop - 1, context + 3 * hop, context + 3 * hop + hop // 2]
    clips = [torch.randn(cfg.channels, length) * torch.linspace(0.01, 0.3, length) for length in lengths]
    batch = torch.zeros(len(clips), cfg.channels, max(lengths))
    for row, clip in zip(batch, clips, strict=True):
        row[:, : clip.shape[1]] = clip
    with torch.no_grad():
        together = model.clip_logits(batch.flatten(0, 1), torch.tensor(lengths))
        alone = torch.cat([model.clip_logits(clip, torch.tensor([clip.shape[1]])) for clip in clips])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert together.isfinite().all()
    assert (alone[-1] - alone[0]).abs().max() > 1e-3


def test_a_pooling_over_time_leaves_as_many_rows_to_answer_as_it_says():
    """Four rows of one sound: their mean is each of them, however long the clip is."""
    model = network(NETWORKS["pooled over time into rows"].replace(LSTM, "") + LOGIT_MEAN, 1)
    hop = model.cfg.hop
    sound = 0.3 * torch.sin(2 * torch.pi * 1000 * torch.arange(60 * hop) / 8000)[None]
    with torch.no_grad():
        short, long = (model.clip_logits(sound[:, :length], torch.tensor([length])) for length in (10 * hop, 60 * hop))
    torch.testing.assert_close(short, long, atol=0.05, rtol=0.05)


def test_export_refuses_a_network_that_needs_the_whole_clip_and_names_the_layer(tmp_path):
    from detector.errors import CfgError

    model = CRNN(load_cfg("models/reference.cfg"))
    with pytest.raises(CfgError, match="norm=whiten"):
        export(model, tmp_path / "x.onnx", name="r", version="1", labels=LABELS, thresholds={}, training={}, metrics={})
    assert not list(tmp_path.iterdir())


def test_the_parameters_counted_from_text_are_those_of_torch(urban):
    assert sum(parameter.numel() for parameter in urban.parameters()) == urban.cfg.parameters
