"""One file, one encoder family: cards, no code. A name in `CARDS` begins with the name of its file."""
