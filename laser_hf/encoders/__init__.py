"""Speech encoders of the wav2vec 2.0 family: exact under padding (`encoder`), loaded by id or folder (`loading`)."""

from .encoder import SAMPLE_RATE, SUPPORTED_MODEL_TYPES, EncoderOutput, SpeechEncoder, receptive_field
from .loading import TRAINING_CONFIG, load_encoder, load_pretrained

__all__ = [
    "SAMPLE_RATE", "SUPPORTED_MODEL_TYPES", "TRAINING_CONFIG", "EncoderOutput", "SpeechEncoder", "load_encoder",
    "load_pretrained", "receptive_field",
]  # fmt: skip
