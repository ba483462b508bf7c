"""What any program needs: processes, signals, files and output; nothing of recommenders."""
