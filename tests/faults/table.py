"""What the faults gave, as the table of docs/faults.md."""

from collections.abc import Sequence

from faults.project import CHECKPOINT_EVERY, ITERATIONS
from faults.scenarios import Outcome

TITLES = ("fault", "verb", "what it says", "exit code", "iterations lost", "same bytes")
ABOVE = f"""# Faults, in numbers

Whatever ends a verb, it is run again and ends at the bytes of one that nothing disturbed. `make faults` does each fault
of this table on purpose, in a few minutes, and writes this page; `make test` does most of them once. The trainings are
of {ITERATIONS} iterations with `checkpoint_every: {CHECKPOINT_EVERY}` and a loader process of their own.

"""
BELOW = """
*Exit code* is that of the disturbed process, -9 for one that kill -9 ended: it says nothing, so what the next one says
stands there. *Iterations lost* are those that a training took again, the most of several times; a dash where a verb has
none. *Same bytes* says how often the verb, run again once the fault was gone, made the files of an undisturbed one, all
but the one that tells the time (`run.json` of a run, `speed.tsv` of an evaluation).

- **kill -9** costs a training at most `checkpoint_every` iterations. An evaluation, or `noisebox predict`, goes on from
  what it had measured a minute or so before, as `.ongoing/` in its folder has it; one that is over sooner, as those of
  this table, starts over. Depth ground truth goes on with the files that are missing.
- **kill -9 of the engine alone**, or a cache that is full when a job has ended: what the job finished is all there, but
  the engine does not know of it, and deletes it before it starts the job anew. A run comes back at once from
  `.finished/`, second names of its files, which go when the engine has noted it; other jobs start over.
- **SIGTERM**, as a scheduler sends it to every process of a job, and **Ctrl-C** let a training end its optimiser step
  (and the validation that belongs to it) and save; a second Ctrl-C ends it at once, as kill -9 would. Other verbs end
  where they are.
- **A damaged `last.pth`**, told by its checksums, is left for `previous.pth` beside it, the checkpoint before; the
  iterations between the two are taken again. Where both are damaged, all is lost but a `best.pth` that may lie in
  `work/` and still be wanted, so nothing is deleted unasked.
- **A full disk** leaves the files that were there. `previous.pth` is a second name of `last.pth` until a new one is
  written: while it is written there are two on the disk, as there would be without it.
- **Two processes**: the folder of a run, of an evaluation, of depth ground truth, and each dataset's manifest is one
  process's at a time; the claim ends with the process, however that ends.
- **A clock set back** makes every file come from the future. Nothing that Noisebox computes reads a clock, and how long
  something took is told by one that cannot be set. To see it here, every file of a killed training is dated an hour
  ahead. Of the engines, DVC goes by content. Snakemake goes by times: a file edited after the clock went back looks
  older than what was made from it, and `snakemake -n` has nothing to do. `noisebox sync` tells it what DVC knows.
"""


def page(outcomes: Sequence[Outcome]) -> str:
    """docs/faults.md."""
    rows = [TITLES, ("---",) * len(TITLES), *map(_row, outcomes)]
    return ABOVE + "".join(f"| {' | '.join(row)} |\n" for row in rows) + BELOW


def _row(outcome: Outcome) -> tuple[str, ...]:
    lost = "–" if outcome.lost is None else str(outcome.lost)
    same = f"{outcome.equal} of {outcome.times}" if outcome.times > 1 else ("yes" if outcome.equal else "no")
    said = outcome.said.replace("|", "\\|")
    return (outcome.fault, outcome.verb, said, str(outcome.code), lost, same)
