"""N streams are N rows of one batch: fixed slots, each with its own part of the recurrent state."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from detector.audio.source import Floats
from detector.model import Model, State


class Engine:
    """Steps any subset of its slots in one call of the model. State stays here; a slot is reset alone. steps: calls so far."""

    def __init__(self, model: Model, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.steps = 0
        self._state = model.fresh_state(slots)

    def reset(self, slot: int) -> None:
        """Zeros for this slot: the next window is the first of a session."""
        for rows in self._rows(self._state):
            rows[slot] = 0

    def step(self, slots: Sequence[int], windows: Sequence[Floats]) -> Floats:
        """One step of these slots over windows of the same length (context + k * hop samples): scores [len(slots), k, labels]."""
        self.steps += 1
        audio = windows[0][None] if len(windows) == 1 else np.stack(windows)
        if list(slots) == list(range(self.slots)):
            scores, self._state = self.model.step(audio, self._state)
            return scores
        chosen = list(slots)
        axes = self.model.stream_axes
        part = tuple(np.ascontiguousarray(tensor.take(chosen, axis)) for tensor, axis in zip(self._state, axes, strict=True))
        scores, new = self.model.step(audio, part)
        for rows, stepped in zip(self._rows(self._state), self._rows(new), strict=True):
            rows[chosen] = stepped
        return scores

    def _rows(self, state: State) -> list[Floats]:
        """The tensors with their streams first, not copied."""
        return [np.moveaxis(tensor, axis, 0) for tensor, axis in zip(state, self.model.stream_axes, strict=True)]
