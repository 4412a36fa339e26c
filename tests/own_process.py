"""Processes of their own that start fast: forked from one that has imported torch and done nothing with it."""

import multiprocessing

processes = multiprocessing.get_context("forkserver")
# One list for all tests: a process of pytest has one such server, whose imports are those asked for last.
processes.set_forkserver_preload(
    [
        *("pytest", "hypothesis", "scipy.stats", "noisebox.cli", "noisebox.training.loop"),
        *("noisebox.models.diffusiondet", "noisebox.models.detr"),
        *("noisebox.evaluation.protocol", "noisebox.evaluation.boxes"),
        *("noisebox.search.trials", "noisebox.search.adopt", "noisebox.report.searches"),
    ]
)
