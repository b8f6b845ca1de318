"""Speech in, padded batches of clean and perturbed views out.

``load_speech`` -> (``shuffled_stream``) -> ``with_pairs`` -> a dataloader with ``PairCollator``.
"""

from .collator import PairCollator, SkipLog
from .columns import SpeechSourceError
from .decode import BadAudio, Decoded, decode_audio
from .pairs import PairTransform, with_pairs
from .perturbation import (
    Compose,
    Perturbation,
    SpeedPitch,
    build_perturbation,
    draw_generator,
    pitch_shift,
    register_perturbation,
    speed,
)
from .resampling import resample
from .speech import load_speech, shuffled_stream

__all__ = [
    "BadAudio",
    "Compose",
    "Decoded",
    "PairCollator",
    "PairTransform",
    "Perturbation",
    "SkipLog",
    "SpeechSourceError",
    "SpeedPitch",
    "build_perturbation",
    "decode_audio",
    "draw_generator",
    "load_speech",
    "pitch_shift",
    "register_perturbation",
    "resample",
    "shuffled_stream",
    "speed",
    "with_pairs",
]
