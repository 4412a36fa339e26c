# What `snakemake --report` shows: every output that fits a pattern, under its category. Its caption is named after both,
# whatever the file's format: workflow/report/plots/loss.rst says what reports/plots/loss.png shows.
from fnmatch import fnmatch

SHOWN = {  # pattern: category
    f"{graph.REPORTS}/summary.md": "Summary",
    graph.RESULTS_MANIFEST: "Evidence",
    f"{graph.REPORTS}/tables/*.tsv": "Tables",
    f"{graph.REPORTS}/plots/*": "Plots",
    f"{graph.REPORTS}/pictures/*": "Pictures",
    f"{graph.REPORTS}/comparison/*": "Comparison",
    f"{graph.evaluation_folder('*', '*')}/results.tsv": "Runs",
}


def shown(paths):
    """The paths, marked for the report where they fit a pattern."""
    return [marked(path) for path in paths]


def marked(path):
    category = next((category for pattern, category in SHOWN.items() if fnmatch(path, pattern)), None)
    if category is None:
        return path
    stem, suffix = Path(path).stem, Path(path).suffix
    of_run = "{lineage}" in path
    return report(
        path,
        caption=f"../report/{category.lower()}/{stem}.rst",
        category=category,
        subcategory="{lineage}" if of_run else None,
        labels={"lineage": "{lineage}", "seed": "{seed}"} if of_run else {"result": stem, "format": suffix[1:]},
    )
