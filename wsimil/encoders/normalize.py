"""Tiles of bytes to the normalized pixels that a model sees."""

from __future__ import annotations

import threading

import torch


class Normalize:
    """(pixel / 255 - mean) / std, in float32, channels last in memory; safe to call from several threads.

    On a CPU the pixels lie in memory that the same thread's next call uses again: fresh memory costs its page faults, five times
    what the arithmetic does.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> None:
        self._scale = 1 / (255 * torch.tensor(std, dtype=torch.float64))
        self._shift = -torch.tensor(mean, dtype=torch.float64) * 255 * self._scale
        self._device = device
        self._rows: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._memory = threading.local()

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Map uint8 [b, h, w, 3] on any device to float32 [b, 3, h, w] on this one's."""
        flat = tiles.to(self._device, non_blocking=True).contiguous().view(len(tiles), -1)
        scale, shift = self._row(flat.shape[1])
        pixels = self._room(flat)
        pixels.copy_(flat)
        torch.addcmul(shift, pixels, scale, out=pixels)
        return pixels.view(tiles.shape).permute(0, 3, 1, 2)

    def _row(self, length: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Scale and shift of every value of a tile: one long row is many times quicker than three values again and again."""
        if length not in self._rows:
            self._rows[length] = (
                self._scale.float().repeat(length // 3).to(self._device),
                self._shift.float().repeat(length // 3).to(self._device),
            )
        return self._rows[length]

    def _room(self, flat: torch.Tensor) -> torch.Tensor:
        if self._device.type != "cpu":
            return torch.empty(flat.shape, device=self._device)  # from torch's own cache of memory
        memory: torch.Tensor | None = getattr(self._memory, "pixels", None)
        if memory is None or memory.numel() < flat.numel():
            memory = self._memory.pixels = torch.empty(flat.numel())
        return memory[: flat.numel()].view(flat.shape)
