"""Noisebox: a reproducible experiment pipeline for detectors that denoise, distil and refine."""

__version__ = "0.1.0"
