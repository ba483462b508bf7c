"""RecBole's own models: baselines, and assistants and teachers of the language model."""
