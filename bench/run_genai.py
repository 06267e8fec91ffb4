"""onnxruntime-genai through its Generator: append_tokens is the prefill, generate_next_token (greedy) the decode.

Usage: run_genai.py MODEL_FOLDER THREADS. Its argmax over the vocabulary cannot be taken out of the clock.
"""

from __future__ import annotations

import json
import sys

import numpy as np
import onnxruntime_genai as og

from worker import serve, timed, tokens

CONTEXT = 2048


class Contestant:
    def __init__(self, path: str, threads: int) -> None:
        config = og.Config(path)
        session = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": session}}}))
        self.model = og.Model(config)
        self.shallow = self.sequence()
        self.deep: og.Generator | None = None

    def sequence(self) -> og.Generator:
        params = og.GeneratorParams(self.model)
        params.set_search_options(do_sample=False, max_length=CONTEXT, min_length=CONTEXT)  # no early end
        return og.Generator(self.model, params)

    def restart(self, ids: list[int]) -> float:
        """Seconds of a prefill of `ids` into an empty sequence."""
        if self.shallow.token_count():
            self.shallow.rewind_to(0)
        return timed(self.shallow.append_tokens, ids)

    def first(self, n: int) -> int:
        self.restart(tokens(n))
        self.shallow.generate_next_token()
        return int(self.shallow.get_sequence(0)[-1])

    def prefill(self, n: int) -> float:
        return self.restart(tokens(n))

    def decode(self, n: int, depth: int = 0) -> float:
        # A step is: run the last chosen token, choose the next. One token is there to begin with, and chosen from.
        self.deep = self.deep or self.sequence()
        if self.deep.token_count() >= depth + 1:
            self.deep.rewind_to(depth)
            self.deep.append_tokens(tokens(1, depth))
        else:
            self.deep.append_tokens(tokens(depth + 1 - self.deep.token_count(), self.deep.token_count()))
        self.deep.generate_next_token()
        return timed(lambda: [self.deep.generate_next_token() for _ in range(n)])

    def logits(self, ids: list[int], out: str) -> None:
        self.restart(ids)
        np.save(out, self.shallow.get_output("logits")[0].astype(np.float32))


if __name__ == "__main__":
    me = Contestant(sys.argv[1], int(sys.argv[2]))
    serve({name: getattr(me, name) for name in ("first", "prefill", "decode", "logits")})
