"""What a run reads and keeps: its folder, data, checkpoints, logs and fingerprints."""
