"""What `wsimil view` and `wsimil export html` share: a folder of predictions made ready to be looked at, and who serves it."""
