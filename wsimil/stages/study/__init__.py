"""A study as a list of units that many processes share: slides x recipe, folds x seeds x configs, slides x models, reports."""
