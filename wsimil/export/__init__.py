"""Tile scores as files: a table with the raw numbers, and pure functions of it for QuPath and for the eye."""
