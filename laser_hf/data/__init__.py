"""Speech in, padded batches of clean and perturbed views out.

`load_speech` -> `PairDataset` or `PairStream` -> a dataloader -> `pad_pairs`.
"""

from .columns import SpeechSourceError
from .decode import BadAudio, Decoded, decode_audio
from .equalizer import Equalizer
from .noise import Noise
from .pair_sets import PairDataset, PairStream, durations, keep_decoded
from .pairs import PairTransform, SkipLog, pad_pairs
from .perturbation import (
    Compose,
    Perturbation,
    build_perturbation,
    draw_generator,
    register_perturbation,
)
from .resampling import resample
from .speech import load_speech
from .speed_pitch import SpeedPitch, pitch_shift, pitch_shift_batch, speed, speed_batch
from .voice import Voice

__all__ = [
    "BadAudio",
    "Compose",
    "Decoded",
    "Equalizer",
    "Noise",
    "PairDataset",
    "PairStream",
    "PairTransform",
    "Perturbation",
    "SkipLog",
    "SpeechSourceError",
    "SpeedPitch",
    "Voice",
    "build_perturbation",
    "decode_audio",
    "draw_generator",
    "durations",
    "keep_decoded",
    "load_speech",
    "pad_pairs",
    "pitch_shift",
    "pitch_shift_batch",
    "register_perturbation",
    "resample",
    "speed",
    "speed_batch",
]
