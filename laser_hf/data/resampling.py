"""Band-limited resampling between any two integer rates, from those taps of torchaudio's filter that are not zero.

Its dense kernel takes 1.15 GB for 17,959 -> 16,000 Hz (a pitch shift by two semitones), with about 14 taps a row.
"""

import math
from functools import lru_cache

import torch
import torchaudio

# torchaudio's defaults: zero crossings of the sinc on either side, and cut-off over the lower Nyquist frequency.
LOWPASS_FILTER_WIDTH, ROLLOFF = 6, 0.99
MAX_DENSE_ELEMENTS = 65_536  # of a dense kernel left to torchaudio


def resample(waveform: torch.Tensor, orig_freq: int, new_freq: int) -> torch.Tensor:
    """`(..., samples)` to `(..., ceil(samples * new_freq / orig_freq))`, as torchaudio does by default.

    The filter's phase is computed in float64, torchaudio's in the dtype of `waveform`: for float64 the two agree to
    round-off, for float32 torchaudio misplaces taps (17,959 -> 16,000 Hz: up to 4.5e-4 of full scale on speech).
    Rates are whole numbers of Hz; a `ValueError` says that one is not, or not positive.
    """
    for rate in (orig_freq, new_freq):
        if int(rate) != rate or rate <= 0:
            raise ValueError(f"a rate must be a positive whole number of Hz, got {rate!r}")
    gcd = math.gcd(int(orig_freq), int(new_freq))
    orig, new = int(orig_freq) // gcd, int(new_freq) // gcd
    if orig == new or waveform.shape[-1] == 0:
        return waveform.clone()
    small = new * (orig + 2 * math.ceil(_half_width(orig, new))) <= MAX_DENSE_ELEMENTS
    if small and waveform.device.type == "cpu":  # on CUDA its convolution rounds to TF32: up to 1e-3 of full scale
        return _dense(orig, new, waveform.dtype)(waveform)
    return _sparse_resample(waveform, orig, new)


def resampled_length(samples: int, orig_freq: int, new_freq: int) -> int:
    """Number of samples that `resample` makes of `samples`."""
    return -(-samples * new_freq // orig_freq)


def _half_width(orig: int, new: int) -> float:
    """Half the length of the filter, in input samples."""
    return LOWPASS_FILTER_WIDTH * orig / (min(orig, new) * ROLLOFF)


@lru_cache(maxsize=32)
def _dense(orig: int, new: int, dtype: torch.dtype) -> torch.nn.Module:
    """torchaudio's resampler with a kernel computed in float64 (`dtype=None` computes so and stores float32)."""
    return torchaudio.transforms.Resample(orig, new, dtype=None if dtype == torch.float32 else dtype)


@lru_cache(maxsize=16)
def _taps(orig: int, new: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """First input sample `(phases,)` and weights `(taps, phases)` of each output phase `j`, at `j * orig / new`."""
    half, cutoff = _half_width(orig, new), min(orig, new) * ROLLOFF / orig
    phase = torch.arange(new, dtype=torch.int64)
    # Integer part and remainder are separated to keep all digits of the fraction.
    whole = torch.div(phase * orig, new, rounding_mode="floor")
    fraction = (phase * orig - whole * new).to(torch.float64) / new
    start = torch.ceil(fraction - half).to(torch.int64)
    offset = start + torch.arange(math.floor(2 * half) + 1)[:, None] - fraction  # (taps, phases), input samples
    t = (offset * cutoff).clamp_(-LOWPASS_FILTER_WIDTH, LOWPASS_FILTER_WIDTH)
    weights = torch.sinc(t) * torch.cos(t * (math.pi / LOWPASS_FILTER_WIDTH / 2)).square() * cutoff
    return (whole + start).to(device), weights.to(dtype).to(device)


def _sparse_resample(waveform: torch.Tensor, orig: int, new: int) -> torch.Tensor:
    """Polyphase resampling with the non-zero taps only; `orig` and `new` have no common factor."""
    length = waveform.shape[-1]
    flat = waveform.reshape(-1, length)
    target = resampled_length(length, orig, new)
    periods = -(-target // new)
    left = math.ceil(_half_width(orig, new))
    span = orig + 2 * left + 2  # input samples that one period of outputs can touch
    padded = torch.nn.functional.pad(flat, (left, max(0, (periods - 1) * orig + span - left - length)))
    frames = padded.unfold(-1, span, orig)[:, :periods]  # (waveforms, periods, span), a view
    # With one row per input sample of a period a tap is one gather of contiguous rows: several times as fast.
    rows = frames.permute(2, 0, 1).reshape(span, -1).contiguous()
    phases = min(new, target)
    start, weights = _taps(orig, new, waveform.dtype, waveform.device)
    start = start[:phases] + left
    out = rows.new_zeros(phases, rows.shape[1])
    for tap, weight in enumerate(weights[:, :phases, None]):
        out.addcmul_(rows[tap:].index_select(0, start), weight)
    out = out.reshape(phases, len(flat), periods).permute(1, 2, 0)
    return out.reshape(len(flat), -1)[:, :target].reshape(*waveform.shape[:-1], target)
