"""A card's memory that spills into the computer's: noticed, and told with the remedy."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .run import Run

WINDOW = 10  # steps looked at together
JUMP = 2.0   # how much longer than the best ones they take
FULL = 0.03  # share of its memory that is free on a full card


class Spill:
    """Notices that memory overflows, as drivers on Windows let it: nothing fails, but steps take many times longer.

    probe: bytes free on the card, of the card, and held by torch. It is noticed once: when torch holds more than the card has, or
    when steps suddenly take much longer and the card is full.
    """

    def __init__(self, run: Run, probe: Callable[[], tuple[int, int, int]]) -> None:
        self.run, self.probe = run, probe
        self.noticed = False
        self._before: float | None = None
        self._best: float | None = None
        self._window: list[float] = []

    def note(self, now: float) -> None:
        """A step ended at this second."""
        if self._before is not None:
            self._window.append(now - self._before)
        self._before = now
        if len(self._window) < WINDOW or self.noticed:
            return
        typical = statistics.median(self._window)  # samples and saves between two steps do not count
        self._window.clear()
        self._best = typical if self._best is None else min(self._best, typical)
        free, total, held = self.probe()
        if held > total or (typical > JUMP * self._best and free < FULL * total):
            self.noticed = True
            self.run.say("The card's memory is full and spills into the computer's: a step takes {seconds} s, the best took "
                         "{best} s. Close other programs that use the card, or set 'CUDA - Sysmem Fallback Policy' in the NVIDIA "
                         "control panel to 'Prefer No Sysmem Fallback', so that the run fits itself in.",
                         warning=True, seconds=f"{typical:.2g}", best=f"{self._best:.2g}")
