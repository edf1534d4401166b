"""The verbs of the command line: a config goes in, files come out."""
