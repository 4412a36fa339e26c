"""The budget search: short trainings of one lineage that differ in a few keys of its recipe."""
