"""Speech in, padded batches of clean and perturbed views out.

``load_speech`` -> (``shuffled_stream``) -> ``with_pairs`` -> a dataloader with ``PairCollator``.
"""

from .cache import DecodedCache, DecodedCacheError
from .collator import PairCollator, SkipLog
from .columns import SpeechSourceError
from .decode import BadAudio, Decoded, decode_audio
from .durations import durations
from .equalizer import Equalizer
from .noise import Noise
from .pairs import PairTransform, with_pairs
from .perturbation import (
    Compose,
    Perturbation,
    build_perturbation,
    draw_generator,
    register_perturbation,
)
from .resampling import resample
from .speech import load_speech, shuffled_stream
from .speed_pitch import SpeedPitch, pitch_shift, pitch_shift_batch, speed, speed_batch
from .voice import Voice

__all__ = [
    "BadAudio",
    "Compose",
    "Decoded",
    "DecodedCache",
    "DecodedCacheError",
    "Equalizer",
    "Noise",
    "PairCollator",
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
    "load_speech",
    "pitch_shift",
    "pitch_shift_batch",
    "register_perturbation",
    "resample",
    "shuffled_stream",
    "speed",
    "speed_batch",
    "with_pairs",
]
