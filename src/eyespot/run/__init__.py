"""Run: a bundle, an engine and words in, an answer out."""
