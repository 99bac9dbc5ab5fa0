"""Log-mel as plain arithmetic: the same module trains and ships, and exports to ONNX without an FFT operator."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from trainer.layers import Frontend

FLOOR = 1e-6
"""Added to band power before the logarithm: about -86 dBFS of white noise, below any microphone's own."""


class LogMel(nn.Module):
    """Audio -> mel bands of un-centred Hann frames.

    A DFT of N = P*Q points is two small matrix products (Cooley and Tukey 1965): with n = Q*n1 + n2 and k = k1 + P*k2, the
    P-point DFT along n1, the twiddles exp(-2 pi i k1 n2 / N), the Q-point DFT along n2. The twiddles are in the second product, a
    matrix for every k1. Real input needs only k1 = 0..P/2; the mel matrix is laid out for the bins in that order, those that appear
    twice counted once.
    """

    window: Tensor
    dft_p: Tensor
    dft_q: Tensor
    mel_matrix: Tensor
    mel_natural: Tensor
    band_mean: Tensor
    band_deviation: Tensor

    def __init__(self, frontend: Frontend) -> None:
        super().__init__()
        self.frontend = frontend
        n = frontend.n_fft
        p = max(size for size in range(2, math.isqrt(n) + 1, 2) if n % size == 0)
        q = n // p
        self.p, self.q, self.half_p = p, q, p // 2 + 1
        self.register_buffer("window", torch.hann_window(n, dtype=torch.float64).float(), persistent=False)

        def phase(rows: int, columns: int, period: int) -> Tensor:
            product = torch.arange(rows)[:, None] * torch.arange(columns)[None, :]
            return 2 * math.pi * (product % period).double() / period

        along_p = phase(self.half_p, p, p)
        self.register_buffer("dft_p", torch.stack([along_p.cos(), -along_p.sin()], 1).flatten(0, 1).float(), persistent=False)
        k = torch.arange(self.half_p)[:, None] + p * torch.arange(q)[None, :]
        along_q = 2 * math.pi * (torch.arange(q)[None, :, None] * k[:, None, :] % n).double() / n
        cos, sin = along_q.cos(), along_q.sin()
        self.register_buffer("dft_q", torch.cat([torch.cat([cos, -sin], 2), torch.cat([sin, cos], 2)], 1).float(), persistent=False)

        bands = melscale_fbanks(n // 2 + 1, frontend.f_min, frontend.top_hz, frontend.n_mels, frontend.sample_rate)
        k = k.flatten()
        bins = torch.minimum(k, n - k)
        first = torch.zeros(len(bins), dtype=torch.bool)
        first[[int((bins == b).nonzero()[0]) for b in range(n // 2 + 1)]] = True
        self.register_buffer("mel_matrix", bands[bins] * first[:, None], persistent=False)
        self.register_buffer("mel_natural", bands, persistent=False)
        self.register_buffer("band_mean", torch.zeros(frontend.n_mels))
        self.register_buffer("band_deviation", torch.ones(frontend.n_mels))

    def power(self, audio: Tensor) -> Tensor:
        """Power of every DFT bin of every frame, bins in the order of the two-step DFT.

        audio: [streams, samples], samples a multiple of hop_length. Returns [streams, frames, bins],
        frames = 1 + (samples - n_fft) // hop_length.
        """
        hop, overlap = self.frontend.hop_length, self.frontend.n_fft // self.frontend.hop_length
        pieces = audio.reshape(audio.shape[0], -1, hop)
        framed = torch.cat([pieces[:, i : i - overlap + 1 or None] for i in range(overlap)], dim=2) * self.window
        first = torch.matmul(self.dft_p, framed.reshape(-1, self.p, self.q))
        spectrum = torch.matmul(first.reshape(-1, self.half_p, 2 * self.q).transpose(0, 1), self.dft_q)
        squared = spectrum * spectrum
        power = (squared[..., : self.q] + squared[..., self.q :]).transpose(0, 1)
        return power.reshape(audio.shape[0], -1, self.half_p * self.q)

    def magnitude(self, audio: Tensor) -> Tensor:
        """The same spectrum by FFT, for training: [clips, samples] -> magnitudes [clips, n_fft / 2 + 1, frames]."""
        fe = self.frontend
        spectrum = torch.stft(audio, fe.n_fft, fe.hop_length, window=self.window, center=False, return_complex=True)
        real, imaginary = spectrum.real, spectrum.imag
        return torch.addcmul(real * real, imaginary, imaginary).sqrt_()  # a third of the time of abs()

    def bands_of_magnitude(self, magnitude: Tensor) -> Tensor:
        """What `forward` gives, from magnitudes: [clips, n_fft / 2 + 1, frames] -> [clips, n_mels, frames]."""
        return self.compress(torch.matmul(self.mel_natural.T, magnitude * magnitude).transpose(1, 2))

    def compress(self, mel: Tensor) -> Tensor:
        """Band power, compressed and normalised by band: [streams, frames, n_mels] -> [streams, n_mels, frames]."""
        if self.frontend.compression == "log":
            mel = torch.log(mel + FLOOR)
        if self.frontend.norm == "bands":
            mel = (mel - self.band_mean) / self.band_deviation
        return mel.transpose(1, 2)

    def forward(self, audio: Tensor) -> Tensor:
        """[streams, samples] -> [streams, n_mels, frames]."""
        return self.compress(torch.matmul(self.power(audio), self.mel_matrix))

    def learn_bands(self, audio: Tensor) -> None:
        """Set the fixed mean and deviation per band from `audio`, [clips, samples]."""
        self.band_mean.zero_()
        self.band_deviation.fill_(1)
        mel = self(audio)
        self.band_mean.copy_(mel.mean((0, 2)))
        self.band_deviation.copy_(mel.std((0, 2)).clamp_min(1e-3))


def whiten(features: Tensor, frames: Tensor) -> Tensor:
    """Subtract each clip's mean and divide by its deviation, over its own frames only.

    features: [clips, n_mels, frames]; frames: [clips], the valid ones of each.
    """
    valid = (torch.arange(features.shape[2], device=features.device) < frames[:, None])[:, None, :].float()
    count = frames[:, None, None] * features.shape[1]
    mean = (features * valid).sum((1, 2), keepdim=True) / count
    variance = ((features - mean).square() * valid).sum((1, 2), keepdim=True) / count
    return (features - mean) / (variance.sqrt() + 1e-8) * valid
