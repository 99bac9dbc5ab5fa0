from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

from trainer.cfg import load_cfg, parse_cfg
from trainer.crnn import CRNN
from trainer.data import Decoded
from trainer.draw import Augmentation, Crop, Gain, Mixup, Noise, Stretch
from trainer.hear import Passage, Sounds, frames_of, hear, prepare, rows_of
from trainer.losses import Streams, clip_loss, stream_loss
from trainer.recipe import Recipe, Stream, Train

HEAD = "[frontend]\nsample_rate=8000\nn_fft=256\nhop_length=128\nn_mels=16\nf_min=60\n"
WHITE = HEAD.replace("f_min", "norm=whiten\ncompression=none\nf_min")
CONV = "[conv2d]\nout_channels=6\nkernel_size=3\n[batchnorm2d]\n[relu]\n[maxpool2d]\nkernel_size=[2,4]\n"
ROWS = "[moddims]\npermute=[2,1,0]\ncollapse=[1,2]\n"
LSTM, GRU = "[lstm]\nhidden_size=8\nnum_layers=2\n", "[gru]\nhidden_size=5\n"
LAST = "[moddims]\npermute=[1]\n"
END = "[batchnorm1d]\n[dropout]\n[linear]\nout_features=3\n"
WHOLE_CLIPS = {
    "streaming": HEAD + CONV + ROWS + LSTM + END,
    "reference": WHITE + CONV + ROWS + LSTM + LAST + END,
    "bidirectional": HEAD + CONV + ROWS + LSTM + "bidirectional=True\n" + END,
    "bidirectional, many to one": HEAD + CONV + ROWS + GRU + "bidirectional=True\n" + LAST + END,
    "cnn": WHITE + CONV + ROWS + END + "[output]\nclip_pooling=logit_mean\n",
    "rnn": WHITE + ROWS + LSTM + LAST + END,
    "max": HEAD + CONV + ROWS + END + "[output]\nclip_pooling=max\n",
    "stereo": HEAD + "[input]\nshape=[2,16,60]\n" + CONV + ROWS + GRU + END,
}
STREAMING = {
    "lstm": HEAD + CONV + ROWS + LSTM + END,
    "two recurrent layers": HEAD + CONV + ROWS + GRU + LSTM + END,
    "cnn": HEAD + CONV + ROWS + END,
    "rnn": HEAD + ROWS + GRU + END,
}
WHOLE = replace(Recipe(), train=Train(loss="clip"))
STREAM = replace(Recipe(), stream=Stream(canvas_s=2.05, fresh=0.0, quiet=3.0))
LENGTHS = (900, 12_000, 5000, 5100, 7777)


def network(text):
    """Random weights and random statistics of every norm, so that no layer is an identity."""
    torch.manual_seed(1)
    model = CRNN(parse_cfg(text))
    for module in model.modules():
        if isinstance(module, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.3)
            module.running_var.uniform_(0.5, 2)
    for parameter in model.parameters():
        parameter.data *= 2
    return model.eval()


def noise(lengths, channels=1, seed=1):
    random = np.random.default_rng(seed)
    shape = (channels,) if channels > 1 else ()
    parts = [random.integers(-8000, 8000, (length, *shape)).astype(np.int16) for length in lengths]
    return Decoded(np.concatenate(parts), np.cumsum([0, *lengths]))


def batch_of(cfg, recipe, clips, which, soundscapes=0, seed=1):
    """The chosen clips, each in a row, and so many rows of soundscapes with short events in half of each."""
    random, passages = np.random.default_rng(seed), []
    for number in range(soundscapes):
        frames, canvas = frames_of(cfg, recipe)
        active = random.random((frames // 6 + 1, 3)).repeat(6, axis=0)[:frames] > 0.7
        active[: frames // 2] &= number % 2 == 0
        audio = random.integers(-8000, 8000, canvas).astype(np.int16)
        passages.append(Passage(audio, active, np.zeros_like(active), number, False))
    sounds = Sounds(clips, torch.arange(len(clips)) % 3)
    chosen, generator = torch.tensor(which, dtype=torch.long), torch.Generator().manual_seed(seed)
    return prepare(cfg, recipe, sounds, chosen, len(which) + soundscapes, generator, passages)


@pytest.mark.parametrize("name", WHOLE_CLIPS)
def test_a_whole_clips_loss_does_not_depend_on_the_clips_it_is_padded_to(name):
    model = network(WHOLE_CLIPS[name])
    clips = noise(LENGTHS, model.cfg.channels)
    with torch.no_grad():
        alone = [float(clip_loss(model, batch_of(model.cfg, WHOLE, clips, [clip]))) for clip in range(len(LENGTHS))]
        together = float(clip_loss(model, batch_of(model.cfg, WHOLE, clips, list(range(len(LENGTHS))))))
    assert len({round(loss, 3) for loss in alone}) > 2
    assert together == pytest.approx(np.mean(alone), abs=1e-4)


@pytest.mark.parametrize("name", WHOLE_CLIPS)
def test_the_loss_of_a_plain_clip_is_the_cross_entropy_of_the_answer_it_gets_in_evaluation(name):
    """Clips as long as their rows read: what evaluation fills up or cuts off at the end is not there."""
    model = network(WHOLE_CLIPS[name])
    cfg = model.cfg
    if not cfg.obstacles:
        model.cfg = cfg = replace(cfg, obstacles=("evaluation hears a clip of a network that streams after silence",))
    length = cfg.receptive_samples + 7 * cfg.hop
    clips = noise([length], cfg.channels)
    audio = torch.from_numpy(clips[0].reshape(-1, cfg.channels).T / np.float32(32768))
    with torch.no_grad():
        logits = model.clip_logits(audio, torch.tensor([length]))
        for smoothing in (0.0, 0.3):
            expected = functional.cross_entropy(logits, torch.tensor([0]), label_smoothing=smoothing)
            torch.testing.assert_close(
                clip_loss(model, batch_of(cfg, WHOLE, clips, [0]), smoothing), expected, atol=1e-4, rtol=1e-4
            )


def test_a_mixed_clip_is_both_its_labels():
    model = network(WHOLE_CLIPS["reference"])
    mixed = replace(WHOLE, augment=Augmentation(mixup=Mixup(1)))
    batch = batch_of(model.cfg, mixed, noise([9000, 9000]), [0, 1])
    batch = replace(batch, drawn=replace(batch.drawn, partner=torch.tensor([1, 0])))
    with torch.no_grad():
        heard = hear(model.frontend, batch, 3)
        assert torch.equal(torch.maximum(heard.labels, heard.partner_labels), torch.tensor([[1, 1, 0]] * 2))
        swapped = replace(batch, target=batch.target.flip(0))
        torch.testing.assert_close(clip_loss(model, batch), clip_loss(model, swapped))


def expected_loss(logits, batch, quiet):
    """Every moment and label against the truth, what is not there by twice its score, moments of soundscapes without any event
    `quiet` times; and the pooled answer of each clip, which no soundscape is asked for."""
    there = batch.target >= 0
    truth = batch.active.clone()
    truth[there, :, batch.target[there]] = True
    moments = torch.where(truth, functional.softplus(-logits), 2 * torch.sigmoid(logits) * functional.softplus(logits)).sum(2)
    loss = (moments * torch.where(truth.any(2), 1.0, quiet)).mean()
    return loss + (functional.cross_entropy(logits[there].mean(1), batch.target[there]) if there.any() else 0)


def part(batch, cfg, first, frames):
    """Some frames of a batch as a batch."""
    fe = cfg.frontend
    here = slice(first * fe.hop_length, (first + frames) * fe.hop_length + fe.n_fft - fe.hop_length)
    active = batch.active[:, first // cfg.stride_frames : (first + frames) // cfg.stride_frames]
    faint = batch.faint[:, : active.shape[1]]
    return replace(batch, clips=batch.clips[:, here], beds=batch.beds[:, here], active=active, faint=faint, frames=frames)


@pytest.mark.parametrize("name", STREAMING)
@pytest.mark.parametrize("clips", [0, 2, 4])
def test_two_steps_with_the_state_carried_are_one_step_of_twice_the_sound(name, clips):
    model = network(STREAMING[name])
    cfg = model.cfg
    batch = batch_of(cfg, STREAM, noise([40_000] * 4), list(range(clips)), 4 - clips)
    if clips < 4:
        assert 0.1 < batch.active[clips:].any(2).float().mean() < 0.9
    frames = batch.frames // 2 // cfg.stride_frames * cfg.stride_frames
    assert frames > 20
    both = part(batch, cfg, 0, 2 * frames)
    with torch.no_grad():
        quiet = model.frontend.compress(torch.zeros(4, cfg.receptive_frames - cfg.stride_frames, 16))
        features = hear(model.frontend, both, 3).features
        logits, state = model.rows(torch.cat([quiet, features], dim=2), model.fresh_state(4))
        begin, end = part(batch, cfg, 0, frames), part(batch, cfg, frames, frames)
        whole, after_whole = stream_loss(model, both, STREAM, None)
        first, carried = stream_loss(model, begin, STREAM, None)
        second, after = stream_loss(model, end, STREAM, carried)
    k = frames // cfg.stride_frames
    for loss, rows, heard in ((whole, logits, both), (first, logits[:, :k], begin), (second, logits[:, k:], end)):
        torch.testing.assert_close(loss, expected_loss(rows, heard, 3.0), atol=1e-4, rtol=1e-4)
    if not clips:  # then no answer is pooled, and the loss is a mean over rows
        torch.testing.assert_close(whole, (first + second) / 2, atol=1e-4, rtol=1e-4)
    for got, expected, also in zip(after.state, after_whole.state, state, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(got, also, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(after.context, after_whole.context, atol=1e-3, rtol=1e-3)


def test_what_is_too_faint_to_be_sure_of_is_neither_asked_for_nor_forbidden():
    model = network(STREAMING["lstm"])
    batch = batch_of(model.cfg, STREAM, noise([40_000] * 2), [0, 1], 3)
    others = ~batch.active & (batch.target < 0)[:, None, None]
    either = [replace(batch, active=active) for active in (batch.active, others)]
    with torch.no_grad():
        judged = [one_loss(model, one, STREAM) for one in either]
        unjudged = [one_loss(model, replace(one, faint=torch.ones_like(others)), STREAM) for one in either]
    assert judged[0] != pytest.approx(judged[1], abs=1e-3)
    assert unjudged[0] == pytest.approx(unjudged[1], abs=1e-6)


def one_loss(model, batch, recipe):
    """With the same dropout every time."""
    torch.manual_seed(0)
    return float(stream_loss(model, batch, recipe, None)[0])


def test_the_clips_answer_and_no_other_is_smoothed_as_the_recipe_says():
    model = network(STREAMING["lstm"])
    clips = noise([40_000] * 2)
    smooth = replace(STREAM, train=replace(STREAM.train, label_smoothing=0.3))
    with torch.no_grad():
        for which, soundscapes in (([0, 1], 0), ([0, 1], 2), ([], 2)):
            batch = batch_of(model.cfg, STREAM, clips, which, soundscapes)
            plain, smoothed = (float(stream_loss(model, batch, recipe, None)[0]) for recipe in (STREAM, smooth))
            assert (plain == smoothed) == (not which)


def test_a_fresh_row_ignores_what_its_stream_carries_and_the_others_do_not():
    model = network(STREAMING["lstm"])
    cfg = model.cfg
    batch = batch_of(cfg, STREAM, noise([40_000] * 2), [0, 1])
    again = cfg.receptive_frames - cfg.stride_frames
    rubbish = Streams(tuple(torch.randn_like(tensor) for tensor in model.fresh_state(2)), torch.randn(2, 16, again))
    with torch.no_grad():
        begun, from_zero = stream_loss(model, batch, STREAM, None)
        fresh, ignored = stream_loss(model, replace(batch, fresh=torch.tensor([True, True])), STREAM, rubbish)
        carried, _ = stream_loss(model, batch, STREAM, rubbish)
        _, one = stream_loss(model, replace(batch, fresh=torch.tensor([True, False])), STREAM, rubbish)
    assert torch.equal(begun, fresh)
    assert not torch.equal(begun, carried)
    for zero, also, mixed in zip(from_zero.state, ignored.state, one.state, strict=True):
        assert torch.equal(zero, also)
        torch.testing.assert_close(mixed[:, 0], zero[:, 0])
        assert (mixed[:, 1] != zero[:, 1]).any()


def test_the_gradient_is_cut_between_two_steps():
    model = network(STREAMING["lstm"]).train()
    batch = batch_of(model.cfg, STREAM, noise([40_000] * 2), [0, 1])
    loss, streams = stream_loss(model, batch, STREAM, None)
    assert loss.requires_grad
    assert not any(tensor.requires_grad for tensor in (*streams.state, streams.context))
    loss.backward()
    stream_loss(model, batch, STREAM, streams)[0].backward()


LIVELY = Augmentation(Crop(0.5), gain=Gain(0.5), mixup=Mixup(0.5), noise=Noise(0.5, std=0.01), stretch=Stretch(0.5, (0.5, 2)))
AT_THE_END = {
    "padding=same": HEAD + CONV.replace("kernel_size=3", "kernel_size=3\npadding=same") + ROWS + GRU + END,
    "adaptive, rows": HEAD + CONV + "[adaptiveavgpool2d]\noutput_size=[2,4]\n" + ROWS + GRU + "bidirectional=True\n" + END,
    "adaptive, many to one": HEAD + CONV + "[adaptivemaxpool2d]\noutput_size=[2,4]\n" + ROWS + GRU + LAST + END,
    "adaptive, one vector": HEAD + CONV + "[adaptiveavgpool2d]\noutput_size=[2,4]\n[moddims]\ncollapse=[0,1,2]\n" + END,
}


@pytest.mark.parametrize("variant", [*WHOLE_CLIPS, *AT_THE_END])
def test_one_step_on_clips_of_any_length_gives_every_parameter_a_gradient(variant):
    model = network((WHOLE_CLIPS | AT_THE_END)[variant]).train()
    batch = batch_of(model.cfg, replace(WHOLE, augment=LIVELY), noise(LENGTHS, model.cfg.channels), list(range(len(LENGTHS))))
    loss = clip_loss(model, batch)
    assert loss.isfinite()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        if not ("many to one" in variant and name.endswith("hh_l0_reverse")):  # the last row is the first one read backwards
            assert parameter.grad.any(), name


@pytest.mark.parametrize("variant", ["reference", "reference-cnn", "reference-rnn"])
def test_the_reference_networks_learn_from_one_step(variant):
    torch.manual_seed(1)
    model = CRNN(load_cfg(f"models/{variant}.cfg"))
    batch = batch_of(model.cfg, WHOLE, noise([60_000, 140_000, 160_000]), [0, 1, 2])
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = clip_loss(model, batch)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())
        assert all(parameter.grad.any() for parameter in model.parameters())
    assert losses[-1] < losses[0]


def test_the_soft_part_of_a_clip_is_neither_asked_for_nor_forbidden_as_its_label():
    model = network(STREAMING["lstm"])
    cfg, clip = model.cfg, noise([20_000])
    clip.samples[10_000:] = clip.samples[10_000:] // 18  # 25 dB
    batch = batch_of(cfg, STREAM, clip, [0])
    with torch.no_grad():
        quiet = model.frontend.compress(torch.zeros(1, cfg.receptive_frames - cfg.stride_frames, 16))
        heard = hear(model.frontend, batch, 3)
        own, clear = (rows_of(present, batch, cfg.stride_frames)[0] for present in (heard.own, heard.own_clear))
        assert 0.4 < (clear.sum() / own.sum()) < 0.6
        logits = model.rows(torch.cat([quiet, heard.features], dim=2), model.fresh_state(1))[0][0]
        truth, judged = torch.zeros_like(logits), torch.ones_like(logits)
        truth[own, 0], judged[own & ~clear, 0] = 1, 0
        each = torch.where(truth > 0, functional.softplus(-logits), 2 * torch.sigmoid(logits) * functional.softplus(logits))
        moments = (each * judged).sum(1).mean()
        answer = functional.cross_entropy(logits[own].mean(0), torch.tensor(0))
        torch.testing.assert_close(stream_loss(model, batch, STREAM, None)[0], moments + answer, atol=1e-4, rtol=1e-4)
