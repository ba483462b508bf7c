"""Training of both stages, checkpoints and metric collection."""
