"""`eyespot chat`: a conversation line by line, on a terminal or from a pipe. Knows a Session, no engine."""

from __future__ import annotations

import json
import shlex
import sys
from contextlib import suppress
from threading import Thread
from typing import TYPE_CHECKING, Any

from eyespot.cli import options as o

if TYPE_CHECKING:
    from eyespot.images import Picture
    from eyespot.run.model import Options
    from eyespot.run.session import Session

HELP = """/image PATH   show a picture with the next message
/drop         take back the pictures not sent yet; if there are none the last turn, question and answer
/reset        forget everything
/history      show what was said
/help         this
/quit         leave, as Ctrl-D does; Ctrl-C stops an answer
//TEXT        say a text that begins with /"""


def command(
    model: o.ModelPath,
    image: o.Image = None,
    system: o.System = None,
    max_tokens: o.MaxTokens = 1024,
    max_tiles: o.MaxTiles = None,
    image_tokens: o.ImageTokens = None,
    image_ms: o.ImageMs = None,
    image_rule: o.ImageRule = None,
    ctx_size: o.CtxSize = 0,
    threads: o.Threads = None,
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
    settings |= o.seeing(max_tiles, image_tokens, image_ms, image_rule)
    with load(model, threads or 0, ctx_size, isa) as loaded:
        o.note_threads(loaded.engine.info)
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
        from eyespot.cli.interrupt import interrupted_only_in

        if not self.terminal:
            while self._turn():
                pass
            return
        with suppress(ImportError):
            import readline  # noqa: F401 - gives input() its history
        self.note("/help lists the commands")
        with interrupted_only_in(Chat._turn):
            going = True
            while going:
                try:
                    going = self._turn()
                except KeyboardInterrupt:
                    self.note("\n/quit or Ctrl-D leaves")

    def _turn(self) -> bool:
        """One line, read and obeyed; False to leave."""
        from eyespot.errors import EyespotError

        try:
            line = self._line()
            return line is not None and self._obey(line)
        except EyespotError as error:
            self.failed = True
            self.note(f"eyespot: error: {error}")
            return True

    def note(self, text: str) -> None:
        """For the person, not for a program that reads stdout."""
        o.line(text, sys.stderr)

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
        from eyespot.errors import UsageError

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
                self._drop()
            case "/reset", _:
                self.session.reset()
                self.pictures.clear()
                self.note("forgot everything")
            case "/history", _:
                self._history()
            case word, _ if word.startswith("//"):
                self._say(line.replace("/", "", 1))
            case word, _ if word.startswith("/"):
                raise UsageError(f"no command '{word}'", expected="one that /help lists, or // to say a text with /")
            case _:
                self._say(line)
        return True

    def _drop(self) -> None:
        if self.pictures:
            self.note(f"dropped {', '.join(picture.name for picture in self.pictures)}, not sent yet")
            self.pictures = []
        else:
            self.note("dropped the last turn" if self.session.drop() else "nothing to drop")

    def image(self, path: str) -> None:
        """Reads a picture now, so that a wrong path is told now, and keeps it for the next message."""
        from eyespot.errors import UsageError
        from eyespot.images import load

        try:
            names = shlex.split(path)  # as a terminal pastes a dragged file: quoted
        except ValueError:
            names = [path]
        if not names:
            raise UsageError("/image without a path")
        picture = load(path if len(names) > 1 else names[0])
        model = self.session.model
        cut = model.processor.cut(picture, model.rule(self.settings))
        self.pictures.append(picture)
        size, tokens = "x".join(map(str, cut.resized)), model.processor.image_tokens(cut)
        self.note(f"{picture.name} {picture.width}x{picture.height} -> {size}, {cut.tiles} tiles, {tokens} tokens")
        if self.terminal:  # the person types now: the eyes may begin
            Thread(target=self._look, args=(picture,), daemon=True).start()

    def _look(self, picture: Picture) -> None:
        with suppress(Exception):  # told when the answer is asked for
            self.session.model.look([picture], **self.settings)

    def _history(self) -> None:
        said = [(m.role, m.text, [picture.name for picture in m.pictures]) for m in self.session.messages]
        waiting, tokens, room = [p.name for p in self.pictures], self.session.tokens, self.session.model.ctx_size
        if self.as_json:
            turns = [{"role": role, "text": text, "images": names} for role, text, names in said]
            self._print({"messages": turns, "next_images": waiting, "tokens": tokens, "ctx_size": room})
            return
        for role, text, names in said:
            self.note(f"{role}: {''.join(f'[{name}] ' for name in names)}{text}")
        if waiting:
            self.note(f"with the next message: {', '.join(waiting)}")
        self.note(f"{tokens} of {room} tokens")

    def _print(self, record: dict[str, Any]) -> None:
        o.line(json.dumps(record, ensure_ascii=False), sys.stdout)

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
            if self.as_json:
                self._print(answer.to_json())
            else:
                o.line("", sys.stdout)
            if self.stats:
                self.note(answer.stats())
