"""What a training or an evaluation meets in its life, done to it on purpose: `make faults` writes docs/faults.md."""
