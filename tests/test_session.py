"""Sessions and streams: prefix reuse, rollback, limits, on an engine that shows what it was fed; then the real one."""

from __future__ import annotations

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

import eyespot
import models
from eyespot import images
from eyespot.errors import Cancelled, EyespotError, UsageError
from eyespot.run.model import Model
from eyespot.run.processor import load_processor
from eyespot.run.sequence import Features
from test_processor import IDS, fake_bundle, noise

VOCAB = models.vocab_size(images=True)
QUIET = {"max_tokens": 12, "temperature": 0.0}


class FakeEngine:
    """Logits are a hash of all that stands in the sequence, feature rows included: any slip of the cache shows."""

    def __init__(self, ctx_size: int = 512, never_stop: bool = False) -> None:
        self.info = {"ctx_size": ctx_size, "vocab_size": VOCAB, "image_token_id": IDS["<IMG_CONTEXT>"]}
        self.items: list[bytes] = []
        self.prefilled: list[int] = []
        self.encoded = 0
        self.never_stop = never_stop
        self.fail: Exception | None = None
        self.fail_after = -1
        self.closed = self.cancelled = False

    @property
    def past(self) -> int:
        return len(self.items)

    def encode(self, pixels: np.ndarray, *beside: None) -> np.ndarray:
        self.encoded += len(pixels)
        flat = pixels.reshape(len(pixels) * 4, -1)  # four rows a tile
        return np.stack([flat.mean(1), flat.std(1), flat[:, 0]], 1).astype(np.float32)

    def _add(self, token: int, row: np.ndarray | None) -> None:
        self.items.append(b"%d" % token if row is None else row.tobytes())

    def _logits(self) -> np.ndarray:
        if self.cancelled:
            self.cancelled = False
            raise Cancelled("cancelled")
        if self.fail is not None:
            self.fail_after -= 1
            if self.fail_after < 0:
                raise self.fail
        seed = int.from_bytes(hashlib.sha256(b"|".join(self.items)).digest()[:8])
        out = np.random.default_rng(seed).standard_normal(VOCAB).astype(np.float32)
        out[IDS["<|im_end|>"]] = -99 if self.never_stop else out[IDS["<|im_end|>"]] + 2.2
        return out

    def feed(self, tokens: npt.ArrayLike, features: np.ndarray | None = None, positions: None = None) -> None:
        tokens = np.asarray(tokens)
        assert 0 < len(tokens) <= self.info["ctx_size"] - self.past
        seen = [i for i, t in enumerate(tokens) if t == IDS["<IMG_CONTEXT>"]]
        assert len(seen) == (0 if features is None else len(features))
        kept = len(self.items)
        for i, token in enumerate(tokens.tolist()):
            self._add(token, features[seen.index(i)] if i in seen else None)
        try:
            self.row = self._logits()
        except Exception:
            del self.items[kept + (len(tokens) // 2 if isinstance(self.fail, Cancelled) else 0) :]
            raise
        self.prefilled.append(len(tokens))

    def logits(self) -> np.ndarray:
        return self.row

    def top(self, k: int) -> tuple[np.ndarray, np.ndarray]:
        ids = np.argsort(-self.row, kind="stable")[:k].astype(np.int32)
        return ids, self.row[ids]

    def truncate(self, n: int) -> None:
        assert n <= self.past
        del self.items[n:]

    def cancel(self, on: bool = True) -> None:
        self.cancelled = on

    def close(self) -> None:
        self.closed = True


def fake_model(directory: Path, **options: Any) -> Model:
    bundle = fake_bundle(directory)
    return Model(bundle, FakeEngine(**options), load_processor(bundle))


@pytest.fixture
def model(tmp_path: Path) -> Model:
    return fake_model(tmp_path)


def test_a_stream_sums_up_to_its_answer(model: Model) -> None:
    stream = model.stream("Hello", **QUIET)
    pieces = list(stream)
    answer = stream.answer
    assert answer is not None
    assert "".join(pieces) == answer.text
    again = model.generate("Hello", **QUIET)
    assert (again.text, again.tokens) == (answer.text, answer.tokens)
    assert again.timings.reused_tokens == again.timings.prompt_tokens - 1  # one is always left to prefill
    assert answer.timings.first_token_s is not None
    assert answer.timings.decode_tokens == len(answer.tokens) - (answer.stop_reason == "length")


class Listening(Model):
    """Notes the prompts it is given."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.prompts: list[Any] = []

    def answer(self, prompt: Any, *rest: Any) -> Any:
        self.prompts.append(prompt)
        return super().answer(prompt, *rest)


@pytest.mark.parametrize("seed", range(3))
def test_a_conversation_says_what_a_fresh_model_would(seed: int, tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path)
    model = Listening(bundle, FakeEngine(), load_processor(bundle))
    session = model.chat("Be brief.")
    for turn in range(5):
        picture = [noise(200, 120, seed + turn % 2)] if turn in (0, 2, 3) else []
        answer = session.send(f"turn {turn}?", picture, seed=seed, max_tokens=20)
        fresh = fake_model(tmp_path).answer(model.prompts[-1], 0.0, {"seed": seed, "max_tokens": 20}).finish()
        assert fresh.tokens == answer.tokens
        if turn:
            assert answer.timings.reused_tokens >= len(model.prompts[-2].keys) - 1
    tiles = model.processor.cut(images.load(noise(200, 120))).tiles
    assert model.engine.encoded == 2 * tiles  # the picture of turns 0 and 2 is the same


def test_two_pictures_do_not_match_though_their_tokens_do(model: Model) -> None:
    one, two = (model.generate("What?", [noise(90, 90, seed)], **QUIET) for seed in (0, 1))
    assert one.tokens != two.tokens
    again = model.generate("What?", [noise(90, 90, 0)], **QUIET)
    assert again.tokens == one.tokens
    assert again.images[0].encoded is False
    assert model.engine.encoded == 2 * one.images[0].tiles


def test_the_common_prefix_may_end_inside_a_picture(model: Model) -> None:
    first = model.generate("What?", [noise(200, 120)], **QUIET)
    placed = model.processor.chat(model.processor.messages("What?", [noise(200, 120)])).pictures[0]
    model.cache.keys = model.cache.keys[: placed.start + 5]
    model.engine.truncate(placed.start + 5)
    again = model.generate("What?", [noise(200, 120)], **QUIET)
    assert again.timings.reused_tokens == placed.start + 5
    assert again.tokens == first.tokens


def test_sessions_take_turns_on_one_engine(model: Model) -> None:
    one, two = model.chat(), model.chat("You are two.")
    alone = fake_model(model.bundle.path).chat()
    for turn in range(3):
        assert one.send(f"{turn}", **QUIET).tokens == alone.send(f"{turn}", **QUIET).tokens
        two.send("something else", **QUIET)


def test_a_failed_turn_leaves_nothing(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    session = model.chat()
    session.send("one", **QUIET)
    before = [m.text for m in session.messages]
    model.engine.fail = EyespotError("logits are not finite")
    for after in (0, 2):
        model.engine.fail_after = after
        with pytest.raises(EyespotError, match="not finite"):
            session.send("two", **QUIET)
        assert [m.text for m in session.messages] == before
    model.engine.fail = None
    clean = fake_model(tmp_path, never_stop=True).chat()
    clean.send("one", **QUIET)
    assert session.send("two", **QUIET).tokens == clean.send("two", **QUIET).tokens


def test_a_cancelled_prefill_takes_the_turn_back(model: Model) -> None:
    session = model.chat()
    session.send("one", **QUIET)
    model.engine.fail, model.engine.fail_after = Cancelled("cancelled"), 0
    answer = session.send("two " * 20, **QUIET)
    assert (answer.stop_reason, answer.tokens) == ("cancelled", ())
    assert len(session.messages) == 2
    assert model.cache.past == model.engine.past
    model.engine.fail = None
    clean = fake_model(model.bundle.path).chat()
    clean.send("one", **QUIET)
    assert session.send("two " * 20, **QUIET).tokens == clean.send("two " * 20, **QUIET).tokens


def test_a_cancelled_answer_stays_as_far_as_it_came(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    session = model.chat()
    stream = session.stream("go on", max_tokens=100)
    pieces = [next(stream), next(stream)]
    stream.cancel()
    pieces += list(stream)
    assert stream.answer is not None
    assert stream.answer.stop_reason == "cancelled"
    assert 2 <= len(stream.answer.tokens) < 100
    assert session.messages[-1].text == "".join(pieces) == stream.answer.text
    follow = session.send("and?", **QUIET)
    assert follow.timings.reused_tokens >= stream.answer.timings.prompt_tokens + len(stream.answer.tokens) - 1


def test_a_cancel_that_came_too_late_is_taken_back(model: Model) -> None:
    wanted = model.generate("one", **QUIET).tokens
    model.engine.cancel()  # in the last block of the last token
    assert model.generate("one", **QUIET).tokens == wanted


def test_a_stream_let_go_frees_the_model(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    session = model.chat()
    for _piece in session.stream("one", max_tokens=50):
        break
    assert not model._lock.locked()
    assert [m.role for m in session.messages] == ["user", "assistant"]  # its words were kept
    with pytest.raises(ZeroDivisionError):
        for _piece in model.stream("x", max_tokens=50):
            raise ZeroDivisionError
    found: list[Any] = []
    other = threading.Thread(target=lambda: found.append(model.generate("y", **QUIET)), daemon=True)
    other.start()
    other.join(10)
    assert found[0].stop_reason == "length"


def test_the_next_answer_of_a_thread_ends_the_one_it_left(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    left = model.stream("x", max_tokens=50)
    first = next(left)
    assert model.generate("y", **QUIET).tokens == fake_model(tmp_path, never_stop=True).generate("y", **QUIET).tokens
    assert left.answer is not None
    assert left.answer.stop_reason == "cancelled"
    assert left.answer.text == first + "".join(left)


def test_cancel_frees_a_model_that_another_thread_left(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    left: list[Any] = []

    def leave() -> None:
        left.append(model.stream("x", max_tokens=50))
        next(left[0])

    thread = threading.Thread(target=leave)
    thread.start()
    thread.join()
    model.cancel()
    assert not model._lock.locked()
    assert left[0].answer.stop_reason == "cancelled"


def test_an_answer_may_not_be_asked_for_inside_another(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    feed = model.engine.feed

    def nested(*tokens: Any) -> None:
        with pytest.raises(UsageError, match="another answer"):
            model.generate("y", **QUIET)
        feed(*tokens)

    model.engine.feed = nested
    model.generate("x", **QUIET)
    assert not model._lock.locked()


def test_a_program_may_end_in_the_middle_of_an_answer(tmp_path: Path) -> None:
    import subprocess
    import sys

    models.tiny_qwen2(tmp_path / "hf")
    bundle = compiled(tmp_path / "hf", tmp_path / "bundle")
    code = f"""import eyespot
model = eyespot.load({str(bundle)!r})
stream = model.stream("x", max_tokens=400, temperature=1.0, seed=1)
next(stream)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == ""


def test_a_model_closes_though_an_answer_is_half_read(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    with model:
        stream = model.stream("x", max_tokens=50)
        next(stream)
    assert model.engine.closed
    assert stream.answer is not None
    assert stream.answer.stop_reason == "cancelled"


def test_threads_take_turns(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    expected = {text: fake_model(tmp_path).generate(text, **QUIET).tokens for text in ("a", "b", "c")}
    found: dict[str, Any] = {}
    threads = [
        threading.Thread(target=lambda t=t: found.update({t: model.generate(t, **QUIET).tokens})) for t in expected
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == expected


def test_stop_reasons(tmp_path: Path) -> None:
    endless = fake_model(tmp_path, never_stop=True, ctx_size=40)
    prompt = endless.processor.chat(endless.processor.messages("hi"))
    full = endless.generate("hi", max_tokens=1000)
    assert full.stop_reason == "context"
    assert len(prompt.ids) + len(full.tokens) == 41  # the last token needs no room of its own
    assert endless.generate("hi", max_tokens=3).stop_reason == "length"
    stopped = [fake_model(tmp_path).generate(f"{i}", max_tokens=200) for i in range(3)]
    assert {a.stop_reason for a in stopped} == {"stop"}
    assert all(IDS["<|im_end|>"] not in a.tokens for a in stopped)
    assert all(IDS["<IMG_CONTEXT>"] not in a.tokens for a in (full, *stopped))


def test_a_prompt_too_long_is_told_before_any_work(tmp_path: Path) -> None:
    model = fake_model(tmp_path, ctx_size=50)
    prompt = model.processor.chat(model.processor.messages("hi", [noise(800, 600)]))
    with pytest.raises(EyespotError) as caught:
        model.generate("hi", [noise(800, 600)])
    text = len(prompt.ids) - 52
    assert f"found {len(prompt.ids)} tokens (52 for 1 picture, {text} of text)" in str(caught.value)
    assert "expected at most 50" in str(caught.value)
    assert (model.engine.encoded, model.engine.prefilled) == (0, [])


def test_drop_and_reset(model: Model) -> None:
    session = model.chat()
    session.send("one", **QUIET)
    kept = session.tokens
    first = session.send("two", **QUIET)
    assert session.drop()
    assert session.tokens == kept
    assert session.send("two", **QUIET).tokens == first.tokens
    session.reset()
    assert (session.messages, session.tokens, session.drop()) == ([], 0, False)
    for forget in (session.drop, session.reset):  # in the middle of an answer
        stream = session.stream("three", **QUIET)
        next(stream)
        forget()
        assert list(stream) == []
        assert session.messages == []


def test_answers_that_a_template_changes_are_encoded_anew(tmp_path: Path) -> None:
    template = models.CHATML.replace("message['content']", "message['content'] | upper")
    bundle = fake_bundle(tmp_path, template)
    model = Model(bundle, FakeEngine(), load_processor(bundle))
    session = model.chat()
    session.send("one", **QUIET)
    answer = session.send("two", **QUIET)
    fresh = model.processor.chat(session.messages[:-1])
    assert answer.timings.prompt_tokens == len(fresh.ids)


def test_options_are_checked(model: Model) -> None:
    wrong = {"max_tokens": 0, "temperatur": 1.0, "top_p": 2.0, "seed": -1, "top_k": np.float32(4), "min_p": True}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=name):
            model.generate("x", **{name: value})
    with pytest.raises(UsageError, match="raw prompt"):
        model.generate([{"role": "user", "content": "x"}], raw=True)


def test_numbers_may_be_numpys_and_none_is_the_default(model: Model) -> None:
    plain = model.generate("x", max_tokens=8, temperature=0.5, top_k=7, seed=3)
    same = model.generate(
        "x", max_tokens=np.int64(8), temperature=np.float32(0.5), top_k=np.int32(7), seed=np.uint8(3), min_p=None
    )
    assert same.tokens == plain.tokens
    assert (same.seed, type(same.seed)) == (3, int)
    full = model.generate("x", max_tokens=None, temperature=0.0)
    assert full.tokens == model.generate("x", max_tokens=256, temperature=0.0).tokens


def test_max_tiles_cuts_pictures_into_fewer(tmp_path: Path) -> None:
    model = fake_model(tmp_path)
    with pytest.raises(EyespotError, match="--image-tokens"):
        model.generate("hi", [noise(800, 600)] * 10)  # 13 tiles each, four tokens a tile
    answer = model.generate("hi", [noise(800, 600)] * 10, max_tiles=4, **QUIET)
    assert [image.tiles for image in answer.images] == [5] * 10
    assert model.generate("hi", [noise(800, 600)], raw=True, max_tiles=1, **QUIET).image_tokens == 4
    session = model.chat()
    assert session.send("one", [noise(800, 600)], max_tiles=4, **QUIET).image_tokens == 20
    assert session.send("two", [noise(800, 600, 1)], max_tiles=1, **QUIET).image_tokens == 24  # the first stays as cut
    for wrong in (0, 1000, "4"):
        with pytest.raises(UsageError, match="max_tiles"):
            model.generate("hi", [noise(9, 9)], max_tiles=wrong)


def test_a_full_conversation_says_what_helps(tmp_path: Path) -> None:
    model = fake_model(tmp_path, never_stop=True)
    session = model.chat()
    assert session.send("one", max_tokens=1000).stop_reason == "context"
    assert session.tokens == model.ctx_size
    with pytest.raises(EyespotError, match=r"\(/drop, /reset\)"):
        session.send("two")
    session.reset()
    with pytest.raises(EyespotError, match="shorten it"):
        session.send("word " * 600)


def test_arguments_of_load_are_checked(tmp_path: Path) -> None:
    models.tiny_qwen2(tmp_path / "hf")
    bundle = compiled(tmp_path / "hf", tmp_path / "bundle")
    wrong = {"threads": "2", "ctx_size": 1.5, "isa": None, "verify": "yes", "path": 5}
    for name, value in wrong.items():
        with pytest.raises(UsageError, match=name):
            eyespot.load(**{"path": bundle, name: value})
    with pytest.raises(UsageError, match="UTF-8"):
        eyespot.load(bundle.rename(os.fsdecode(os.fsencode(tmp_path) + b"/\xff")))


def test_a_broken_template_leaves_raw_text(tmp_path: Path) -> None:
    bundle = fake_bundle(tmp_path, "{% if")
    model = Model(bundle, FakeEngine(), load_processor(bundle))
    assert model.generate("x", raw=True, **QUIET).tokens
    with pytest.raises(EyespotError, match="chat template cannot be compiled"):
        model.generate("x", **QUIET)


def test_features_are_forgotten_by_size() -> None:
    from eyespot.resolution import Fixed

    pictures = [images.load(noise(8, 8, seed)) for seed in range(3)]
    cut = Fixed(8, 10).cut(8, 8)
    features = Features(limit=2 * 400)
    rows = np.zeros((10, 10), np.float32)
    features.put(pictures[0], cut, rows)
    features.put(pictures[1], cut, rows)
    assert features.get(pictures[0], cut) is rows
    features.put(pictures[2], cut, rows)
    assert features.get(pictures[1], cut) is None  # the least recently used
    assert features.get(pictures[0], cut) is rows
    assert features.bytes == 800


def test_import_is_light() -> None:
    import subprocess
    import sys

    code = "import eyespot, sys; print(sorted({'numpy', 'PIL', 'jinja2', 'tokenizers', 'typer'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
    assert "load" in eyespot.__all__
    assert all(getattr(eyespot, name) is not None for name in eyespot.__all__)
    with pytest.raises(AttributeError):
        eyespot.nothing  # noqa: B018


def test_version_is_the_packages() -> None:
    import tomllib

    text = (Path(__file__).parent.parent / "pyproject.toml").read_text()
    assert tomllib.loads(text)["project"]["version"] == eyespot.__version__


# The real engine, against transformers


def compiled(checkpoint: Path, out: Path, **options: Any) -> Path:
    from eyespot.checkpoint import open_checkpoint
    from eyespot.compile import Options, compile_model

    given = {"scheme": "f32", "vision_scheme": "f32", "kv_cache": "f32", "ctx_size": 512, **options}
    compile_model(open_checkpoint(str(checkpoint)), out, Options(**given))
    return out


def greedy(hf: Any, ids: list[int], count: int, stops: set[int], **inputs: Any) -> list[int]:
    """Tokens of transformers' own model, by argmax, the image token left out as eyespot does."""
    import torch

    out, sequence = [], torch.tensor([ids])
    with torch.no_grad():
        while len(out) < count:
            logits = hf(input_ids=sequence, **inputs).logits[0, -1]
            if IDS["<IMG_CONTEXT>"] < len(logits):
                logits[IDS["<IMG_CONTEXT>"]] = -torch.inf
            token = int(logits.argmax())
            if token in stops:
                break
            out.append(token)
            sequence = torch.cat([sequence, torch.tensor([[token]])], 1)
    return out


@pytest.mark.parametrize("seed", range(2))
def test_text_answers_are_those_of_transformers(seed: int, tmp_path: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    hf = models.tiny_qwen2(tmp_path / "hf", seed=seed)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tmp_path / "hf")
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is a list?"}]
    with eyespot.load(compiled(tmp_path / "hf", tmp_path / "b")) as model:
        stops = set(model.bundle.settings.stop_tokens)
        answer = model.generate(turns, max_tokens=32)
        ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
        assert list(answer.tokens) == greedy(hf, ids, 32, stops)
        assert answer.text == tokenizer.decode(list(answer.tokens), skip_special_tokens=True)
        turns += [{"role": "assistant", "content": answer.text}, {"role": "user", "content": "And a dict?"}]
        session = model.chat("Be brief.")
        assert session.send("What is a list?", max_tokens=32).tokens == answer.tokens
        follow = session.send("And a dict?", max_tokens=32)
        tail = tokenizer.encode("<|im_end|>\n<|im_start|>user\nAnd a dict?<|im_end|>\n<|im_start|>assistant\n")
        assert list(follow.tokens) == greedy(hf, [*ids, *answer.tokens, *tail], 32, stops)
        assert follow.timings.reused_tokens >= len(ids) + len(answer.tokens) - 1


@pytest.mark.parametrize("kind", ["internvl", "internvl_hf"])
def test_picture_answers_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    import torch
    from transformers import PreTrainedTokenizerFast
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    hf = getattr(models, f"tiny_{kind}")(tmp_path / "hf", seed=1)
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(tmp_path / "hf" / "tokenizer.json"))
    processor = GotOcr2ImageProcessorPil(
        size={"height": 56, "width": 56}, crop_to_patches=True, max_patches=12, image_mean=models.MEAN,
        image_std=models.STD,
    )  # fmt: skip
    pictures = [noise(200, 120), noise(60, 50, seed=1)]
    with eyespot.load(compiled(tmp_path / "hf", tmp_path / "b")) as model:
        stops = set(model.bundle.settings.stop_tokens)
        for shown in (pictures[:1], pictures):
            prompt = model.processor.chat(model.processor.messages("What is it?", shown))
            values = [processor(p, return_tensors="pt")["pixel_values"] for p in shown]
            words = prompt.text.split(model.bundle.settings.image.placeholder)
            runs = [f"<img>{'<IMG_CONTEXT>' * (4 * len(tiles))}</img>" for tiles in values]
            text = words[0] + "".join(run + word for run, word in zip(runs, words[1:], strict=True))
            ids = tokenizer.encode(text, add_special_tokens=False)
            assert prompt.ids.tolist() == ids
            answer = model.generate("What is it?", shown, max_tokens=24)
            expected = greedy(hf, ids, 24, stops, pixel_values=torch.cat([torch.as_tensor(v) for v in values]))
            assert list(answer.tokens) == expected
            assert answer.image_tokens == ids.count(IDS["<IMG_CONTEXT>"])
        assert [i.encoded for i in answer.images] == [False, True]
