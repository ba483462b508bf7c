"""Log-probabilities of items under a language model, and exact top-K over the catalogue."""
