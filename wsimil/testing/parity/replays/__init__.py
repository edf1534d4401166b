"""One module a source: `replay(recording, report)` compares all that a recording of it expects."""
