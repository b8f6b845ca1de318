"""SUPERB's ASR and phoneme recognition: CTC probes on a frozen encoder, and transcription with them."""
