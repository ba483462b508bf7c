"""The language model: the tiny one made on the spot, loading and saving, LoRA and the reference."""
