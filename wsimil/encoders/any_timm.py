"""A card for any timm model, made from timm's own configuration of it."""

from __future__ import annotations

import dataclasses
import difflib

import timm
import torch

from wsimil.encoders.base import EncoderCard
from wsimil.encoders.timm_encoder import make_backbone
from wsimil.errors import ConfigError


def any_timm_card(model: str) -> EncoderCard:
    """The card "timm:<model>": timm's input side, mean and std, and the pooling of the model's own head.

    Raises ConfigError for an unknown model, or one that does not map square RGB images to vectors.
    """
    name = f"timm:{model}"
    try:
        config = timm.get_pretrained_cfg(model) if timm.is_model(model) else None
    except RuntimeError:  # a tag that this model does not have
        config = None
    if config is None:
        known = timm.list_models() + timm.list_pretrained()
        close = difflib.get_close_matches(model, known, n=3)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() shows all"
        raise ConfigError(f"unknown encoder {name!r}: timm has no such model; {hint}")
    channels, height, width = config.input_size
    if channels != 3 or height != width:
        raise ConfigError(f"{name!r} cannot be an encoder of tiles: its input is {config.input_size}, wanted (3, n, n)")
    repo = str(config.hf_hub_id or "")
    draft = EncoderCard(
        name=name,
        dim=1,
        input_px=height,
        # Convolutional models say the size of their last map, and take any input that gives a whole one.
        multiple_px=32 if config.pool_size is not None and not config.fixed_input_size else 0,
        mpp=(),
        pooling="own",
        mean=(config.mean[0], config.mean[1], config.mean[2]),
        std=(config.std[0], config.std[1], config.std[2]),
        published_resize=f"resize to {height}/{config.crop_pct:g} px, {config.interpolation}, center crop",
        license=config.license or "see its page",
        license_url=f"https://huggingface.co/{repo}" if repo else "https://github.com/huggingface/pytorch-image-models",
        gated=False,
        paper=config.paper_ids if isinstance(config.paper_ids, str) else "",
        hub_id=repo,
        hub_files=(config.hf_hub_filename or "model.safetensors", "pytorch_model.bin") if repo else (),
        architecture=model,
    )
    return _with_dim(draft)


def _with_dim(draft: EncoderCard) -> EncoderCard:
    """Learn the length of a vector from a forward pass without numbers."""
    try:
        with torch.device("meta"), torch.inference_mode():
            out = make_backbone(draft).eval()(torch.empty(2, 3, draft.input_px, draft.input_px))
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AssertionError, AttributeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"{draft.name!r} cannot be an encoder of tiles: {reason}") from None
    if not isinstance(out, torch.Tensor) or out.ndim != 2:
        raise ConfigError(f"{draft.name!r} cannot be an encoder of tiles: it does not give one vector for each")
    return dataclasses.replace(draft, dim=out.shape[1])
