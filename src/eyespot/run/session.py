"""A conversation: turns in, answers out, and nothing of a failed turn left behind.

Knows messages and prompts; what of them the engine's cache already holds is the Model's concern.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Unpack

from eyespot.run.answer import Answer
from eyespot.run.model import Model, Options, Stream
from eyespot.run.processor import Message, Prompt

if TYPE_CHECKING:
    from eyespot.images import Source


class Session:
    """Made by Model.chat(). A turn counts once its answer has ended. After an error or a cancel before the first token
    it is as if the user had said nothing; a later cancel keeps the answer as far as it came."""

    def __init__(self, model: Model, system: str | None = None) -> None:
        self.model = model
        self._system = [] if system is None else [model.processor.message("system", system)]
        self._turns: list[tuple[Message, Message, Prompt]] = []  # user, assistant, and all that was said up to here
        self._stream: Callable[[], Stream | None] = lambda: None  # weak, for it may be let go

    @property
    def messages(self) -> list[Message]:
        """All that was said, the system prompt included if one was given."""
        return [*self._system, *(message for user, answer, _ in self._turns for message in (user, answer))]

    @property
    def tokens(self) -> int:
        """Tokens of the context that the conversation takes; the last one of a full context needs no room."""
        return min(len(self._turns[-1][2].ids), self.model.ctx_size) if self._turns else 0

    def send(self, text: str, images: Sequence[Source] = (), **options: Unpack[Options]) -> Answer:
        """Says `text`, with pictures; the whole answer."""
        return self.stream(text, images, **options).finish()

    def stream(self, text: str, images: Sequence[Source] = (), **options: Unpack[Options]) -> Stream:
        """Says `text`, with pictures; the answer piece by piece. Errors as of Model.stream()."""
        self._settle()
        started = time.perf_counter()
        processor = self.model.processor
        user = processor.message("user", text, images, sum(len(m.pictures) for m in self.messages))
        read = time.perf_counter() - started if images else 0.0
        after = self._turns[-1][2] if self._turns else None
        prompt = processor.chat([*self.messages, user], after, self.model.rule(options))

        def end(answer: Answer) -> None:
            if answer.tokens or answer.stop_reason != "cancelled":
                said = processor.message("assistant", answer.text)
                self._turns.append((user, said, prompt.extended(processor.mark(answer.text), answer.tokens)))

        stream = self.model.answer(prompt, started, options, read, end, self.tokens)
        self._stream = weakref.ref(stream)
        return stream

    def _settle(self) -> None:
        """Ends the answer that was left before its end: what was said so far stays."""
        if (stream := self._stream()) is not None:
            stream.close()

    def drop(self) -> bool:
        """Takes the last turn back, question and answer, though it is still being said. False when there is none."""
        self._settle()
        if self._turns:
            self._turns.pop()
            return True
        return False

    def reset(self) -> None:
        """Forgets all turns."""
        self._settle()
        self._turns.clear()
