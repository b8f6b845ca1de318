"""Diagnostics that need no labels or only word and phone times, quick enough to run during training."""
