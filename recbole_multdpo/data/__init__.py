"""RecBole data sets to batches: item texts, prompts, tokens, examples, set-wise sampler."""
