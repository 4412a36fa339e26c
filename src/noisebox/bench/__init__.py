"""`noisebox bench`: what each part of Noisebox costs, at sizes given on the command line.

`settings` says what is timed, `timing` how; `made` makes the models and batches; one module a part has `timings`, which
`run` gathers; `compare` holds two results against each other, `growth` fits how a cost grows.
"""
