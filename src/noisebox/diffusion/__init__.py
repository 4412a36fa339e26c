"""Diffusion processes and their samplers; they know nothing of the networks that they drive."""
