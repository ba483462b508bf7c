"""RecBole's own models: trained and tested as baselines, or assisting the language model."""
