"""Measurements of speed and error; each module is a command that prints a table."""
