"""Speech in, padded batches of clean and perturbed views out.

`load_speech` -> `PairDataset` or `PairStream` -> a dataloader -> `pad_pairs`.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import LaserError
from ..plugins import find_plugin, lazy_names
from .decode import BadAudio, Decoded, audio_seconds, decode_audio
from .files import AUDIO_SUFFIXES, find_audio_files, read_lines, read_table
from .noise import Noise
from .pairs import PairTransform, SkipLog, begin_pairs, pad_pairs
from .perturbation import Compose, Perturbation, draw_generator
from .resampling import resample
from .speaker import Equalizer, Voice
from .speed_pitch import SpeedPitch, pitch_shift, pitch_shift_batch, speed, speed_batch

if TYPE_CHECKING:
    from .listing import list_folder, list_manifest, write_manifest
    from .pair_sets import PairDataset, PairStream, keep_decoded
    from .speech import load_speech, source_digest

_LAZY = dict.fromkeys(("PairDataset", "PairStream", "keep_decoded"), ".pair_sets")
_LAZY |= dict.fromkeys(("load_speech", "source_digest"), ".speech")
_LAZY |= dict.fromkeys(("list_folder", "list_manifest", "write_manifest"), ".listing")
"""Looked up on first use: they import `datasets`, which `laser-hf train --help` need not wait for."""
__all__ = [
    "AUDIO_SUFFIXES", "PERTURBATIONS", "BadAudio", "Compose", "Decoded", "Equalizer", "Noise", "PairDataset",
    "PairStream", "PairTransform", "Perturbation", "SkipLog", "SpeedPitch", "Voice", "audio_seconds",
    "begin_pairs", "build_perturbation", "decode_audio", "draw_generator", "find_audio_files", "find_perturbation",
    "keep_decoded", "list_folder", "list_manifest", "load_speech", "pad_pairs", "pitch_shift", "pitch_shift_batch",
    "read_lines", "read_table", "resample", "source_digest", "speed", "speed_batch", "write_manifest",
]  # fmt: skip

PERTURBATIONS: dict[str, type[Perturbation]] = {cls.name: cls for cls in (SpeedPitch, Noise, Voice, Equalizer)}

__getattr__ = lazy_names(__name__, _LAZY)


def find_perturbation(name: str) -> type[Perturbation]:
    """A shipped perturbation by name, or one's own as `package.module:Class`; a `LaserError` if there is none."""
    return find_plugin(name, Perturbation, PERTURBATIONS)


def build_perturbation(names: str | Sequence[str], options: Mapping[str, Any] | None = None) -> Perturbation:
    """Build perturbations that are applied one after the other, named as `find_perturbation` takes them.

    `options` are values by `Option.dest`, such as `{"noise_dir": "DEMAND"}`, for all that have them. A `LaserError`
    says that there is no name, an unknown name, an option that none of them has, or an unsuitable value.
    """
    classes = [find_perturbation(name) for name in ([names] if isinstance(names, str) else names)]
    if not classes:
        raise LaserError("--perturbations is empty; name at least one, such as speed_pitch")
    values = options or {}
    if unknown := sorted(set(values) - {option.dest for cls in classes for option in cls.options}):
        raise LaserError(f"none of the perturbations {', '.join(cls.name for cls in classes)} has {', '.join(unknown)}")
    own = [{option.dest: values[option.dest] for option in cls.options if option.dest in values} for cls in classes]
    parts = [cls(**cls.checked(chosen)) for cls, chosen in zip(classes, own, strict=True)]
    return parts[0] if len(parts) == 1 else Compose(parts)
