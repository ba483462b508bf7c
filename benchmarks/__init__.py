"""Measurements of speed, memory and error; each module is a command that prints a table."""
