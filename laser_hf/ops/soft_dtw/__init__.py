"""Soft-DTW (Cuturi & Blondel, ICML 2017) over ragged batches: checks in `api`, one module for each backend."""
