"""Inputs and outputs of a run: its folder, data, checkpoints, logs and fingerprints."""
