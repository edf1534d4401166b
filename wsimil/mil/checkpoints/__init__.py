"""Checkpoints of official code, read into our methods; one file, one source. Written from their layouts, not from their code."""
