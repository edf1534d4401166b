"""From slides to features: which slides, how they are prepared, and the streaming engine."""
