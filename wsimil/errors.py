"""Every error that wsimil raises on purpose.

    WsimilError
    ├── ConfigError       a config file, an option or a call that cannot be meant           (exit code 2)
    ├── CohortError       slides, patients, labels or splits that contradict each other     (exit code 2)
    ├── OutputError       a place that cannot be written: full, read-only, in the way       (exit code 2)
    ├── SlideError        one slide that cannot be read or tiled; the batch goes on
    ├── FeatureError      features of one slide that are not usable; the batch goes on
    ├── StoreError        a feature file that is broken, incomplete or not ours
    ├── EncoderError      an encoder whose weights are missing or do not fit
    ├── ModelError        a trained model that does not fit its file or its input
    └── TrainingError     a training run that cannot go on

A message says what, where, got, wanted and the remedy, in one or two sentences.
"""

from __future__ import annotations


class WsimilError(Exception):
    """Base of every error that is the user's to mend; its text is written for them."""


class ConfigError(WsimilError):
    """A configuration that cannot be meant."""


class CohortError(WsimilError):
    """Slides, patients, labels or splits that contradict each other."""


class OutputError(WsimilError):
    """An output that cannot be written."""


class SlideError(WsimilError):
    """One slide that cannot be read, placed in physical space, or tiled."""


class FeatureError(WsimilError):
    """Features of one slide that are not usable, for example not finite."""


class StoreError(WsimilError):
    """A feature file that is missing, broken, incomplete or foreign."""


class EncoderError(WsimilError):
    """An encoder that cannot be built: weights missing, gated or of another shape."""


class ModelError(WsimilError):
    """A trained model that does not fit its file or its input."""


class TrainingError(WsimilError):
    """A training run that cannot go on."""
