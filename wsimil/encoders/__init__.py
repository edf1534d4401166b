"""Encoders: tiles to feature vectors, each with a card that says exactly which vectors these are."""

from __future__ import annotations

from wsimil.encoders.base import Encoder, EncoderCard, Precision
from wsimil.encoders.registry import build_encoder, card, list_cards

__all__ = ["Encoder", "EncoderCard", "Precision", "build_encoder", "card", "list_cards"]
