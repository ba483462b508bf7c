"""Several models, losses and seeds side by side: one command, one folder, one report.

`request` reads the command line, `runs` makes the runs, `results` reads what they found, then
`significance`, `tables` and `report` say it.
"""
