"""Evaluation: how detections are counted, what every checkpoint is asked, and how fast it answers."""
