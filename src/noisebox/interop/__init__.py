"""Noisebox inside other frameworks, and their files inside Noisebox."""
