"""One definition, three drivers: the clip, the stream and the exported file give the same scores."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from detector.model import Model
from trainer.cfg import load_cfg, parse_cfg
from trainer.crnn import CRNN
from trainer.export import export
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
    audio = torch.randn(streams, cfg.context + sum(splits) * cfg.hop) * 0.1
    expected = whole(model, audio).numpy()
    assert expected.shape == (streams, sum(splits), len(LABELS))
    with torch.no_grad():
        chunked = in_steps(model.step, model.fresh_state(streams), audio, cfg.hop, cfg.context, splits)
    np.testing.assert_allclose(chunked, expected, atol=1e-4)
    path = tmp_path_factory.mktemp("model") / "model.onnx"
    export(model, path, name="t", version="1", labels=LABELS, thresholds=dict.fromkeys(LABELS, DEFAULT), training={}, metrics={})
    runner = Model(path, "cpu")
    stepped = in_steps(runner.step, runner.fresh_state(streams), audio.numpy(), cfg.hop, cfg.context, splits)
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


@pytest.mark.parametrize("name", ["urban", "reference"])
def test_the_answer_for_a_clip_does_not_depend_on_its_batch(name):
    torch.manual_seed(1)
    model = CRNN(load_cfg(f"models/{name}.cfg")).eval()
    short, long = torch.randn(40_000), torch.randn(180_000)
    both = torch.zeros(2, 180_000)
    both[0, :40_000], both[1] = short, long
    with torch.no_grad():
        together = model.clip_logits(both, torch.tensor([40_000, 180_000]))
        alone = model.clip_logits(short[None], torch.tensor([40_000]))
    torch.testing.assert_close(together[:1], alone, atol=1e-4, rtol=1e-4)


def test_export_refuses_a_network_that_needs_the_whole_clip_and_names_the_layer(tmp_path):
    from detector.errors import CfgError

    model = CRNN(load_cfg("models/reference.cfg"))
    with pytest.raises(CfgError, match="norm=whiten"):
        export(model, tmp_path / "x.onnx", name="r", version="1", labels=LABELS, thresholds={}, training={}, metrics={})
    assert not list(tmp_path.iterdir())


def test_the_parameters_counted_from_text_are_those_of_torch(urban):
    assert sum(parameter.numel() for parameter in urban.parameters()) == urban.cfg.parameters
