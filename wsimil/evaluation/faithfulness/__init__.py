"""Whether a map of scores says what an answer rests on: tiles are taken away by it, and the model is asked again."""
