"""The user's settings: their fields, sources and checks."""
