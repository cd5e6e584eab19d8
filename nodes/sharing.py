"""One card, two programs: a run pauses while ComfyUI draws with models that find no room beside it.

ComfyUI tells nobody that a prompt begins, so its queue is glanced at as long as a run goes on. It is never kept waiting: until
the run has let go, ComfyUI does with the room that there is. Nothing here touches ComfyUI but through the `host` module
that is handed in.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from ..aprendiz.errors import AprendizError
from ..aprendiz.run import Run
from ..aprendiz.views.card import Card

logger = logging.getLogger(__name__)

GLANCE = 0.2  # seconds between two looks at the queue


class Models:
    """ComfyUI's models, as `Card` asks of them; before a run begins they are made to leave whatever is free."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def place(self) -> str:
        """What ComfyUI draws with."""
        return str(self.host.place())

    def wish(self) -> str:
        """They leave for every run on the card."""
        return "always"

    def there(self) -> bool:
        """Nobody needs to know: those that are not are not unloaded."""
        return True

    def free(self) -> int | None:
        """Nobody needs to know."""
        return None

    def leave(self) -> None:
        """The queue unloads them when it comes to it."""
        self.host.free_models_soon()

    def come_back(self) -> None:
        """ComfyUI loads what it draws with by itself."""

    def drawing(self) -> bool:
        """Whether the queue is at work that is none of ours."""
        return self.host.prompt_in_hand() is not None

    def lacks(self) -> bool:
        """Whether the models of the prompt in hand find too little room."""
        return bool(self.host.lacks_room())


def share(run: Run, host: Any, wait: Callable[[float], bool]) -> None:
    """Look after the card until a run has ended; `wait` waits for that so many seconds, and tells whether it came."""
    card = Card(Models(host), lambda: [run])
    before = None
    while not wait(GLANCE):
        prompt = host.prompt_in_hand()
        if prompt is not None and prompt != before:
            try:
                card.before_drawing()
            except (AprendizError, OSError) as error:  # the run's folder was removed, or its disk is full
                logger.warning("%s could not be told to pause: %s", run.name, error)
        before = prompt
