"""RecBole's own models: trained and tested beside the language model, or assisting it."""
