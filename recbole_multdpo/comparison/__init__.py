"""Several models, losses and seeds side by side: one command, one folder, one report.

`command` reads the command line into a `request`, `plan` checks it, `runs` makes the runs and
`tuning` those that choose settings, `results` reads what they found, then `significance`, `tables`
and `report` say it.
"""
