"""From RecBole data sets to batches: item texts, prompts, tokens, contexts and the set-wise sampler."""
