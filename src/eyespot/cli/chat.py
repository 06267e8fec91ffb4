"""`eyespot chat`: a conversation line by line, on a terminal or from a pipe. Knows a Session, no engine."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from typing import TYPE_CHECKING

from eyespot.cli import options as o

if TYPE_CHECKING:
    from eyespot.run.images import Picture
    from eyespot.run.model import Options
    from eyespot.run.session import Session

HELP = """/image PATH   show a picture with the next message
/drop         take the last turn back, question and answer
/reset        forget everything
/history      show what was said
/help         this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer"""


def command(
    model: o.ModelPath,
    image: o.Image = None,
    system: o.System = None,
    max_tokens: o.MaxTokens = 1024,
    ctx_size: o.CtxSize = 0,
    threads: o.Threads = 0,
    seed: o.Seed = None,
    temp: o.Temp = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repeat_penalty: o.RepeatPenalty = None,
    repeat_last_n: o.RepeatLastN = None,
    isa: o.Isa = "",
    as_json: o.Json = False,
    no_stats: o.NoStats = False,
) -> int:
    """Talk with a model, turn by turn; /help lists the commands. With --json each answer is one line of JSON."""
    from eyespot.errors import FAILED, OK
    from eyespot.run.model import load

    settings = o.sampling(max_tokens, seed, temp, top_k, top_p, min_p, repeat_penalty, repeat_last_n)
    with load(model, threads, ctx_size, isa) as loaded:
        chat = Chat(loaded.chat(system), settings, as_json, not no_stats)
        for path in image or ():
            chat.image(path)
        chat.run()
    return FAILED if chat.failed and not chat.terminal else OK


class Chat:
    """The loop: a line is a command or a message. failed: some line was, which a script wants to know at the end."""

    def __init__(self, session: Session, settings: Options, as_json: bool, stats: bool) -> None:
        self.session, self.settings, self.as_json, self.stats = session, settings, as_json, stats
        self.terminal, self.failed = sys.stdin.isatty(), False
        self.pictures: list[Picture] = []  # of the next message

    def run(self) -> None:
        from eyespot.errors import EyespotError

        if self.terminal:
            with suppress(ImportError):
                import readline  # noqa: F401 - gives input() its history
            self.note("/help lists the commands")
        while (line := self._line()) is not None:
            try:
                if not self._obey(line):
                    return
            except EyespotError as error:
                self.failed = True
                print(f"eyespot: error: {error}", file=sys.stderr)

    def note(self, text: str) -> None:
        """For the person, not for a program that reads stdout."""
        print(text, file=sys.stderr, flush=True)

    def _line(self) -> str | None:
        """The next line, None at the end of the input."""
        if not self.terminal:
            line = sys.stdin.readline()
            return line.rstrip("\r\n") if line else None
        try:
            return input("> ")
        except EOFError:
            self.note("")
            return None

    def _obey(self, line: str) -> bool:
        """Does what one line asks; False to leave."""
        words = line.strip().split(maxsplit=1)
        if not words:
            return True
        match words[0], words[1] if len(words) > 1 else "":
            case "/quit" | "/exit", _:
                return False
            case "/help", _:
                self.note(HELP)
            case "/image", path:
                self.image(path)
            case "/drop", _:
                self.note("dropped the last turn" if self.session.drop() else "nothing to drop")
            case "/reset", _:
                self.session.reset()
                self.pictures.clear()
                self.note("forgot everything")
            case "/history", _:
                self._history()
            case _:
                self._say(line)
        return True

    def image(self, path: str) -> None:
        """Reads a picture now, so that a wrong path is told now, and keeps it for the next message."""
        from eyespot.errors import UsageError
        from eyespot.run.images import load

        try:
            names = shlex.split(path)  # as a terminal pastes a dragged file: quoted
        except ValueError:
            names = [path]
        if not names:
            raise UsageError("/image without a path")
        picture = load(path if len(names) > 1 else names[0])
        cut = self.session.model.processor.tiling(picture)
        self.pictures.append(picture)
        size, rows = "x".join(map(str, cut.resized)), self.session.model.bundle.program.info.tile_tokens
        self.note(
            f"{picture.name} {picture.width}x{picture.height} -> {size}, {cut.tiles} tiles, {cut.tiles * rows} tokens"
        )

    def _history(self) -> None:
        for message in self.session.messages:
            marks = "".join(f"[{picture.name}] " for picture in message.pictures)
            self.note(f"{message.role}: {marks}{message.text}")
        self.note(f"{self.session.tokens} of {self.session.model.ctx_size} tokens")

    def _say(self, line: str) -> None:
        from eyespot.cli.interrupt import interruptible

        stream = self.session.stream(line, self.pictures, **self.settings)
        with interruptible(stream.cancel):
            for piece in stream:
                if not self.as_json:
                    o.show(piece, sys.stdout)
        answer = stream.answer
        if answer is None:
            return
        if answer.tokens or answer.stop_reason != "cancelled":
            self.pictures = []
        print(json.dumps(answer.to_json(), ensure_ascii=False) if self.as_json else "", flush=True)
        if self.stats:
            self.note(answer.stats())
