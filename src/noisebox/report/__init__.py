"""The report: tables, plots, pictures and `summary.md`, from files alone; nothing here imports torch."""
