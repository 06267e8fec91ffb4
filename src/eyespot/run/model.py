"""A bundle ready to answer: eyespot.load() and what it returns.

One Model has one engine and so one sequence; sessions share it, and whichever asks next goes on from what is common.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from eyespot import limits, resolution
from eyespot.bundle.read import Bundle, Verify, open_bundle
from eyespot.errors import Cancelled, EyespotError, UsageError
from eyespot.run.answer import Answer, Timings
from eyespot.run.arguments import whole
from eyespot.run.processor import Processor, Prompt, load_processor
from eyespot.run.sampling import Sampler, Sampling
from eyespot.run.sequence import EngineLike, Prefill
from eyespot.run.sequence import Sequence as Cache
from eyespot.run.tokenizer import Detokenizer

if TYPE_CHECKING:
    from eyespot.images import Source
    from eyespot.resolution import Rule
    from eyespot.run.grammar import Grammar, Vocabulary
    from eyespot.run.session import Session

Messages = str | Sequence[Mapping[str, Any]]


class Options(TypedDict, total=False):
    """How to answer. What is absent or None comes from the bundle's config.json (seed: drawn; max_tokens: 256).

    image_rule: how pictures are cut, a name of resolution.RULES, instead of the bundle's. max_tiles: into how many, the
    thumbnail not counted; image_tokens: what one picture may take of the context; image_ms: milliseconds that encoding
    one may take, by a tile that is timed first. The least of the three counts. json_schema: what the answer is held to:
    a schema, as an object, JSON or a file's name, or "boxes".
    """

    max_tokens: int | None
    max_tiles: int | None
    image_tokens: int | None
    image_ms: float | None
    image_rule: str | None
    json_schema: str | Mapping[str, Any] | None
    seed: int | None
    temperature: float | None
    top_k: int | None
    top_p: float | None
    min_p: float | None
    repetition_penalty: float | None
    repetition_window: int | None


TIMED = 8  # tiles of a token a side, where one alone would tell little
OPTIONS = tuple(Options.__annotations__)
SAMPLING = tuple(field.name for field in fields(Sampling))


def load(path: str | Path, threads: int = 0, ctx_size: int = 0, isa: str = "", verify: Verify = "auto") -> Model:
    """Opens the bundle in directory `path`.

    threads: 0 = as EYESPOT_THREADS or config.json says. ctx_size: 0 = as config.json says. isa: "" = the best this
    machine has; another that it cannot run fails.
    verify: whether to hash the files; "auto" = when they are new to this machine.
    Errors: UsageError for a wrong path, EyespotError for a damaged bundle, UnsupportedModel for an op unknown here.
    """
    if not isinstance(path, str | os.PathLike):
        raise UsageError("the path is not a path", found=type(path).__name__, expected="the directory of a bundle")
    if verify != "auto" and not isinstance(verify, bool):
        raise UsageError("verify is unknown", found=repr(verify), expected='True, False or "auto"')
    bundle = open_bundle(path, verify)
    later = _Later(lambda: load_processor(bundle))  # may take a third of a second, while the engine opens
    try:
        from eyespot.run.engine import Engine, threads_for

        settings = bundle.settings
        engine = Engine(bundle.path, threads_for(threads, settings.threads), ctx_size or settings.ctx_size, isa)
    except BaseException:
        later.wait()
        raise
    try:
        return Model(bundle, engine, later.result())
    except BaseException:
        engine.close()
        raise


class Model:
    """An open bundle. Threads take turns: an answer waits while another thread streams one."""

    def __init__(self, bundle: Bundle, engine: EngineLike, processor: Processor) -> None:
        self.bundle, self.engine, self.processor = bundle, engine, processor
        self.cache = Cache(engine, processor.seen)
        self.cache.short = lambda: _available() < engine.info.get("weight_bytes", 0)
        self._lock = threading.Lock()
        self._stream: Callable[[], Stream | None] = lambda: (
            None
        )  # the one that holds the lock: weak, for it may be let go
        self._owner: int | None = None
        self._looking = self._closed = False
        self._vocabulary: Vocabulary | None = None  # made for the first schema

    @property
    def ctx_size(self) -> int:
        return int(self.engine.info["ctx_size"])

    def generate(
        self, prompt: Messages, images: Sequence[Source] = (), raw: bool = False, **options: Unpack[Options]
    ) -> Answer:
        """The whole answer to the user's text, or to messages as {"role", "content"}; see stream()."""
        return self.stream(prompt, images, raw, **options).finish()

    def stream(
        self, prompt: Messages, images: Sequence[Source] = (), raw: bool = False, **options: Unpack[Options]
    ) -> Stream:
        """The answer piece by piece.

        images: paths, bytes or PIL images of the user's text (of the last user message). raw: the prompt is taken as
        it is, without the chat template; so is a plain text given to a bundle that has no template.
        Errors come before the first piece where they can: UsageError for a bad call or picture path, EyespotError for a
        picture that is none or a prompt that does not fit the context.
        """
        started = time.perf_counter()
        if isinstance(prompt, str) and (raw or not self.processor.source):
            return self.answer(self.processor.raw(prompt, images, self.rule(options)), started, options)
        if raw:
            raise UsageError("a raw prompt is a text", found="messages")
        messages = self.processor.messages(prompt, images)
        read = time.perf_counter() - started if any(m.pictures for m in messages) else 0.0
        return self.answer(self.processor.chat(messages, None, self.rule(options)), started, options, read)

    def chat(self, system: str | None = None) -> Session:
        """A conversation that remembers. system: replaces the template's own system prompt."""
        from eyespot.run.session import Session

        return Session(self, system)

    def answer(
        self,
        prompt: Prompt,
        started: float,
        options: Options,
        preprocess_s: float = 0.0,
        on_end: Callable[[Answer], None] = lambda answer: None,
        before: int = 0,
    ) -> Stream:
        """The answer to a prompt that is encoded already.

        started: time.perf_counter() of the call. before: how many of the tokens are what was said before.
        """
        if unknown := sorted(set(options) - set(OPTIONS)):
            raise UsageError("unknown option", found=unknown[0], expected=", ".join(OPTIONS))
        given: dict[str, Any] = {name: options.get(name) for name in SAMPLING}
        defaults = Sampling(**{name: getattr(self.bundle.settings.sampling, name) for name in SAMPLING})
        sampling = replace(defaults, **{name: value for name, value in given.items() if value is not None})
        most = options.get("max_tokens")
        most = 256 if most is None else whole("max_tokens", most, 1, limits.CONTEXT)
        self._check_room(prompt, before)
        image = self.processor.image_token_id
        sampler = Sampler(sampling, options.get("seed"), banned=(image,) if image >= 0 else ())
        schema = options.get("json_schema")
        grammar = None if schema is None else self._held_to(schema)
        return Stream(self, prompt, sampler, most, started, preprocess_s, on_end, grammar)

    def _held_to(self, schema: Any) -> Grammar:
        from eyespot.run.grammar import Grammar, Vocabulary, read_schema

        if isinstance(schema, str):
            schema = read_schema(schema)
        if not isinstance(schema, Mapping):
            raise UsageError("json_schema", found=type(schema).__name__, expected="an object, a file, or JSON")
        if self._vocabulary is None:
            assert self.bundle.tokenizer is not None
            size = self.bundle.program.info.vocab_size
            self._vocabulary = Vocabulary(self.bundle.tokenizer, size, self.bundle.settings.stop_tokens)
        return Grammar(self._vocabulary, schema)

    def _check_room(self, prompt: Prompt, before: int) -> None:
        tokens, image, room = len(prompt.ids), prompt.image_tokens, self.ctx_size
        if tokens <= room:
            return
        if before and tokens - before <= room:
            cause = "the conversation is long: drop() its last turn or reset() it (/drop, /reset)"
        elif self.bundle.program.ctx > room:
            cause = f"ctx_size was set below the {self.bundle.program.ctx} that the bundle was compiled for"
        elif any(placed.picture.frame_pairs > 1 for placed in prompt.pictures):
            cause = "many frames: lower --max-frames or --image-tokens, or compile with a larger --ctx-size"
        elif image:
            cause = "large pictures: lower --image-tokens (image_tokens=), or compile with a larger --ctx-size"
        else:
            cause = "a long text: shorten it, or compile with a larger --ctx-size"
        count = len(prompt.pictures)
        split = f" ({image} for {count} picture{'s' * (count > 1)}, {tokens - image} of text)" if count else ""
        raise EyespotError(
            "the prompt does not fit the context",
            found=f"{tokens} tokens{split}",
            expected=f"at most {room}",
            cause=cause,
        )

    def look(self, images: Sequence[Source], **options: Unpack[Options]) -> None:
        """Encodes pictures now, so that an answer about them need not: while the question is being typed or spoken.
        options: those that say how pictures are cut, as in the call that will ask."""
        from eyespot.images import load

        rule = self.rule(options)
        loaded = [load(source) for source in images]
        for picture in loaded:
            cut = self.processor.cut(picture, rule)
            if self.processor.image_tokens(cut) * picture.frame_pairs > self.ctx_size:
                continue  # the answer that asks for it will say so
            with self._alone():
                if self._closed:
                    return
                self._looking = True
                try:
                    self.cache.look(picture, cut)
                finally:
                    self._looking = False

    def save_prompt(self, path: str | Path) -> int:
        """Writes what the sequence holds, pictures included, to a file; returns its tokens. See run/prompt_cache.py."""
        from eyespot.run.prompt_cache import save

        with self._alone():
            return save(self, Path(path))

    def load_prompt(self, path: str | Path) -> int:
        """Goes on from what save_prompt() wrote: a prompt that begins alike is not read again, nor its pictures seen.
        Returns its tokens. EyespotError for a file that is none, or is another bundle's."""
        from eyespot.run.prompt_cache import restore

        with self._alone():
            return restore(self, Path(path))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """The engine, between two answers."""
        mine = threading.get_ident()
        if self._owner == mine:
            self.cancel()  # or it would wait for itself
        if self._owner == mine:
            raise UsageError("an answer is being made", cause="this call comes from inside of it")
        with self._lock:
            self.engine.cancel(False)  # a request that came too late for the answer before
            yield

    def rule(self, options: Options) -> Rule | None:
        """How these options have pictures cut; None for a model without eyes. image_ms takes the engine, the first
        time, to encode a grey tile."""
        tokens, ms = options.get("image_tokens"), options.get("image_ms")
        if ms is not None and self.processor.image_token_id >= 0:
            if not (isinstance(ms, int | float) and 0 < ms < float("inf")):
                raise UsageError("image_ms", found=ms, expected="milliseconds above 0")
            each = self.bundle.program.info.tile_tokens
            fit = min(max(1, int(ms / 1e3 / self._tile_s)) * each, limits.CONTEXT)
            tokens = fit if tokens is None else min(tokens, fit)
        return self.processor.rule(options.get("image_rule"), options.get("max_tiles"), tokens)

    @cached_property
    def _tile_s(self) -> float:
        """Seconds to encode a tile, the better of two: the first one reads the weights from the disk."""
        from PIL import Image

        from eyespot.images import load

        image, info = self.bundle.settings.image, self.bundle.program.info
        assert image is not None
        side = image.resolution.size * max(1, TIMED // info.tile_tokens)
        grey = load(Image.new("RGB", (side, side)))
        cut = self.processor.cut(grey, None if info.tile_tokens == 1 else resolution.other(image.resolution, "fixed"))
        took = []
        with self._alone():
            for _ in range(2):
                started = time.perf_counter()
                for seen in self.processor.seen(grey, cut):
                    self.engine.encode(seen.pixels, seen.places, seen.windows, seen.frames)
                took.append(time.perf_counter() - started)
        return min(took) * info.tile_tokens / self.processor.image_tokens(cut)

    def cancel(self) -> None:
        """Ends the answer that is being made, if any; the model is free for the next. From any thread."""
        if (stream := self._stream()) is not None:
            stream.cancel()
        elif self._looking:
            self.engine.cancel()

    def close(self) -> None:
        """Ends what is being said and gives the memory back. The model is not usable after."""
        self._closed = True
        self.cancel()
        with self._lock:
            self.engine.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def acquire(self, stream: Stream) -> None:
        """Waits until `stream` may use the engine. What this thread left half read ends here."""
        if self._owner == threading.get_ident():
            self.cancel()
        if self._owner == threading.get_ident():
            raise UsageError("another answer is being made", cause="this call comes from inside of it")
        self._lock.acquire()
        self._owner, self._stream = threading.get_ident(), weakref.ref(stream)

    def release(self) -> None:
        self._owner, self._stream = None, lambda: None
        self._lock.release()


class Stream:
    """Iterates over the pieces of an answer; once it has ended, `answer` holds all of it.

    It has the engine from its first piece to its last, and ends where it is let go: at cancel(), close(), the next
    answer that its thread asks for, or when nobody refers to it. What was said so far stays.
    """

    def __init__(
        self,
        model: Model,
        prompt: Prompt,
        sampler: Sampler,
        max_tokens: int,
        started: float,
        preprocess_s: float,
        on_end: Callable[[Answer], None],
        grammar: Grammar | None = None,
    ) -> None:
        self.answer: Answer | None = None
        self._turn = threading.Lock()  # of the thread that takes a step
        self._holds = self._over = self._cancelled = False  # holds: the engine
        self._model, self._prompt, self._sampler, self._max_tokens = model, prompt, sampler, max_tokens
        self._started, self._preprocess_s, self._on_end, self._grammar = started, preprocess_s, on_end, grammar
        self._stops = frozenset(model.bundle.settings.stop_tokens)
        self._words = Detokenizer(model.processor.tokenizer, prompt.ids[-8:].tolist() if prompt.raw else ())
        self._tokens: list[int] = []
        self._history: list[int] = []  # the prompt's keys and the tokens, once there is a prompt in the cache
        self._texts: list[str] = []
        self._rest = ""  # text held back for a character that never became whole
        self._cost, self._decode_s, self._decoded = Prefill(), 0.0, 0
        self._first_s: float | None = None

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        with self._turn:
            piece = ""
            while not piece and not self._over:
                piece = self._step()
            if not piece:
                piece, self._rest = self._rest, ""
        if self._cancelled:
            self.cancel()  # it may have come too late for this step, and there need not be another
        if not piece:
            raise StopIteration
        return piece

    def __del__(self) -> None:
        self.close()

    def finish(self) -> Answer:
        """Runs to the end."""
        for _ in self:
            pass
        if self.answer is None:
            raise EyespotError("the answer was closed before it began")
        return self.answer

    def cancel(self) -> None:
        """Ends the answer, at once while it waits to be read, else at the engine's next block. From any thread."""
        self._cancelled = True
        if self._holds or self._model._looking:  # it may be waiting for a picture to be looked at
            self._model.engine.cancel()
        if self._turn.acquire(blocking=False):
            try:
                if self._holds:
                    self._end("cancelled")
            finally:
                self._turn.release()

    def close(self) -> None:
        """Ends the answer like cancel() and waits for that; one that has not begun never will."""
        self.cancel()
        with self._turn:
            if self._holds:
                self._end("cancelled")
            self._over = True

    def _step(self) -> str:
        """The text of one more token, "" where it has none yet or the answer ends."""
        try:
            if not self._holds:
                self._model.acquire(self)
                self._holds = True
                self._model.engine.cancel(False)  # a request that came too late for the answer before
            return self._token()
        except Cancelled:
            return self._end("cancelled")
        except BaseException:
            self._leave()
            raise

    def _token(self) -> str:
        cache, tokens, first = self._model.cache, self._tokens, not self._history
        started = time.perf_counter()
        if first:
            self._cost = cache.prefill(self._prompt, self._check)
            self._history = self._prompt.keys.tolist()
        elif len(tokens) == self._max_tokens:
            return self._end("length")
        elif cache.past == self._model.ctx_size:
            return self._end("context")
        else:
            self._check()
            cache.decode(tokens[-1])
            self._decoded += 1
        grammar = self._grammar
        token = self._sampler.pick(cache.engine, self._history, None if grammar is None else grammar.mask())
        if grammar is not None:
            grammar.take(token)
        ended, piece = token in self._stops, ""
        if not ended:
            tokens.append(token)
            self._history.append(token)
            piece = self._words.push(token)
            self._texts.append(piece)
        if first:
            self._first_s = time.perf_counter() - self._started
        else:
            self._decode_s += time.perf_counter() - started
        return self._end("stop") if ended else piece

    def _check(self) -> None:
        if self._cancelled:
            raise Cancelled("cancelled")

    def _end(self, reason: str) -> str:
        """Writes the answer down and lets the engine go."""
        self._rest = self._words.flush()
        timings = Timings(
            preprocess_s=self._preprocess_s + self._cost.preprocess_s,
            encode_s=self._cost.encode_s,
            prompt_tokens=len(self._prompt.ids),
            reused_tokens=self._cost.reused,
            prefill_s=self._cost.prefill_s,
            first_token_s=self._first_s,
            decode_tokens=self._decoded,
            decode_s=self._decode_s,
            total_s=time.perf_counter() - self._started,
        )
        text = "".join(self._texts) + self._rest
        found, faults = self._model.processor.boxes(text, self._prompt)
        self.answer = Answer(
            text, tuple(self._tokens), reason, self._sampler.seed, self._cost.images, timings, found, faults
        )
        self._leave()
        self._on_end(self.answer)
        return ""

    def _leave(self) -> None:
        self._over = True
        if self._holds:
            self._holds = False
            self._model.release()


def _available() -> float:
    """Bytes of memory that programs can still have; endless where the system does not tell."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            found = next(line for line in file if line.startswith("MemAvailable:"))
        return int(found.split()[1]) * 1024
    except (OSError, ValueError, StopIteration, IndexError):
        return float("inf")


class _Later:
    """A call running on its own thread."""

    def __init__(self, call: Callable[[], Processor]) -> None:
        self._call = call
        self._value: Processor | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._value = self._call()
        except BaseException as error:
            self._error = error

    def wait(self) -> None:
        self._thread.join()

    def result(self) -> Processor:
        """What the call returned; raises what it raised."""
        self.wait()
        if self._error is not None:
            raise self._error
        assert self._value is not None
        return self._value
