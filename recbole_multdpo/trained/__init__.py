"""Finished runs: loading, recommending, explaining, exporting. See docs/trained.md."""
