"""From RecBole data sets to batches: item texts, prompts, tokens, contexts, set-wise sampler."""
