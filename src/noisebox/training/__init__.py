"""Training: the loop, its optimiser, its checkpoints, and the smoke run that goes before."""
