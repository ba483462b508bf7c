"""Processes, signals, files and output: general tools that know nothing of recommenders."""
