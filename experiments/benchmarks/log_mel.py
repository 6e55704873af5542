"""Log-mel patches of one 45 s song: ours against librosa called per patch, and against PyTorch.

Claim: at least 5 times as fast as `librosa.feature.melspectrogram` per patch, not slower than batched
`torch.stft` with the mel product, on the same waveform in memory, with the same result.
Command: `python experiments/benchmarks/log_mel.py` (needs the extra [torch]; about a minute).
Result: `experiments/results/log_mel.md`.
"""

from __future__ import annotations

import numpy as np
import torch
from timing import interleaved, measured_on, table, write_result

from data_prep.features import FeatureConfig, log_mel

CONFIG = FeatureConfig(embedding="spectral")
SECONDS = 45
ROUNDS = 25


def per_patch_librosa(waveform: np.ndarray) -> np.ndarray:
    """As one writes it: a mel spectrogram for every half second."""
    import librosa

    patches = []
    for start in range(0, len(waveform) - CONFIG.step_samples + 1, CONFIG.step_samples):
        power = librosa.feature.melspectrogram(
            y=waveform[start : start + CONFIG.step_samples],
            sr=CONFIG.sample_rate,
            n_fft=CONFIG.fft,
            hop_length=CONFIG.hop,
            win_length=CONFIG.fft,
            window="hann",
            center=True,
            pad_mode="reflect",
            power=2.0,
            n_mels=CONFIG.mel_bands,
            fmin=0.0,
            fmax=CONFIG.sample_rate / 2,
            htk=True,
            norm=None,
        )
        patches.append(np.log(power.T + 1e-6))
    return np.stack(patches)


class BatchedTorch:
    """The strongest PyTorch form: one transform over all patches, one product with the mel triangles."""

    def __init__(self) -> None:
        """Builds window and triangles once."""
        import librosa

        self.window = torch.hann_window(CONFIG.fft, periodic=True)
        mel = librosa.filters.mel(
            sr=CONFIG.sample_rate, n_fft=CONFIG.fft, n_mels=CONFIG.mel_bands, fmin=0.0,
            fmax=CONFIG.sample_rate / 2, htk=True, norm=None,
        )  # fmt: skip
        self.mel = torch.from_numpy(mel.astype(np.float32))

    @torch.inference_mode()
    def __call__(self, waveform: np.ndarray) -> np.ndarray:
        """`[steps, F, M]`."""
        steps = len(waveform) // CONFIG.step_samples
        patches = torch.from_numpy(waveform[: steps * CONFIG.step_samples]).view(steps, -1)
        spectrum = torch.stft(
            patches, CONFIG.fft, CONFIG.hop, window=self.window, center=True, pad_mode="reflect",
            return_complex=True,
        )  # fmt: skip
        power = spectrum.real.square() + spectrum.imag.square()
        return torch.log(self.mel @ power + 1e-6).transpose(1, 2).numpy()


def main() -> None:
    """Checks that the sides agree, times them, writes the table."""
    waveform = np.random.RandomState(0).randn(SECONDS * CONFIG.sample_rate).astype(np.float32) * 0.1
    peer = BatchedTorch()
    ours = log_mel(waveform, CONFIG.sample_rate, CONFIG)
    for other in (per_patch_librosa(waveform), peer(waveform)):
        np.testing.assert_allclose(other, ours, atol=2e-3)
    seconds = interleaved(
        {
            "dsaml_jax": lambda: log_mel(waveform, CONFIG.sample_rate, CONFIG),
            "librosa per patch": lambda: per_patch_librosa(waveform),
            f"PyTorch, batched, {torch.get_num_threads()} threads": lambda: peer(waveform),
        },
        ROUNDS,
    )
    write_result(
        "log_mel",
        f"# Log-mel patches of a {SECONDS} s song ({ours.shape[0]} x {ours.shape[1]} x {ours.shape[2]})\n\n"
        f"{measured_on('numpy', 'scipy', 'librosa', 'torch')}; {ROUNDS} rounds, all sides in each; outputs "
        f"equal to 2e-3.\n\n{table(seconds, 'dsaml_jax')}",
    )


if __name__ == "__main__":
    main()
