import pytest
import torch
import torchaudio
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.frontend import FLOOR, LogMel, whiten
from trainer.layers import Frontend


@settings(max_examples=20, deadline=None)
@given(st.sampled_from([(256, 64), (1024, 512), (2048, 1024), (400, 100), (192, 192)]), st.integers(0, 1 << 16))
def test_the_log_mel_in_the_graph_is_torchaudios(size, seed):
    n_fft, hop = size
    fe = Frontend(sample_rate=16000, n_fft=n_fft, hop_length=hop, n_mels=8, f_min=50, norm="none")
    audio = torch.randn(2, n_fft + 9 * hop, generator=torch.Generator().manual_seed(seed))
    reference = torchaudio.transforms.MelSpectrogram(16000, n_fft, hop_length=hop, center=False, n_mels=8, f_min=50, f_max=8000)
    expected = torch.log(reference(audio) + FLOOR)
    torch.testing.assert_close(LogMel(fe)(audio), expected, atol=1e-3, rtol=1e-4)


def test_training_by_fft_and_shipping_by_matrix_products_are_the_same_numbers():
    module = LogMel(Frontend())
    audio = torch.randn(2, 1024 + 20 * 512) * 0.1
    torch.testing.assert_close(module.bands_of_magnitude(module.magnitude(audio)), module(audio), atol=1e-3, rtol=1e-4)


def test_bands_learned_from_a_sound_bring_it_to_mean_0_and_deviation_1():
    module = LogMel(Frontend())
    audio = torch.randn(4, 22016) * torch.tensor([[0.01], [0.1], [0.3], [1.0]])
    module.learn_bands(audio)
    features = module(audio)
    torch.testing.assert_close(features.mean((0, 2)), torch.zeros(64), atol=1e-3, rtol=0)
    torch.testing.assert_close(features.std((0, 2)), torch.ones(64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("frames", [3, 10])
def test_whitening_looks_at_a_clips_own_frames_only(frames):
    features = torch.randn(1, 5, 10)
    padded = torch.cat([features[:, :, :frames], torch.full((1, 5, 7), 99.0)], dim=2)
    out = whiten(padded, torch.tensor([frames]))
    own = out[:, :, :frames]
    assert abs(float(own.mean())) < 1e-5
    assert abs(float(own.std(correction=0)) - 1) < 1e-4
    assert (out[:, :, frames:] == 0).all()
