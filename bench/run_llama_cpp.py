"""llama.cpp through its C API: prompts in one ubatch, tokens one llama_decode at a time, no sampling in the clock.

Usage: run_llama_cpp.py MODEL.gguf THREADS. Runs in its own environment (llama-cpp-python); knows nothing of eyespot.
"""

from __future__ import annotations

import sys

import llama_cpp as ll
import numpy as np

from worker import serve, timed, tokens

CONTEXT, UBATCH = 2048, 1024


class Sequence:
    """One context: a KV cache and the tokens in it."""

    def __init__(self, model: ll.llama_model_p, threads: int) -> None:
        params = ll.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = CONTEXT, UBATCH, UBATCH
        params.n_threads = params.n_threads_batch = threads
        self.context = ll.llama_init_from_model(model, params)
        self.batch = ll.llama_batch_init(UBATCH, 0, 1)
        self.past = 0

    def append(self, ids: list[int], every: bool = False) -> None:
        """Runs `ids` as one batch, with logits of the last or of every token."""
        b = self.batch
        b.n_tokens = len(ids)
        for i, token in enumerate(ids):
            b.token[i], b.pos[i], b.n_seq_id[i], b.seq_id[i][0] = token, self.past + i, 1, 0
            b.logits[i] = every or i == len(ids) - 1
        if ll.llama_decode(self.context, b) != 0:
            raise RuntimeError("llama_decode failed")
        ll.llama_synchronize(self.context)
        self.past += len(ids)

    def truncate(self, n: int) -> None:
        ll.llama_memory_seq_rm(ll.llama_get_memory(self.context), 0, n, -1)
        self.past = n


class Contestant:
    def __init__(self, path: str, threads: int) -> None:
        ll.llama_backend_init()
        self.model = ll.llama_model_load_from_file(path.encode(), ll.llama_model_default_params())
        if not self.model:
            raise RuntimeError(f"{path} did not load")
        self.threads = threads
        self.vocab = ll.llama_vocab_n_tokens(ll.llama_model_get_vocab(self.model))
        self.shallow = Sequence(self.model, threads)
        self.deep: Sequence | None = None

    def first(self, n: int) -> int:
        self.shallow.truncate(0)
        self.shallow.append(tokens(n))
        return int(self.row(-1).argmax())

    def row(self, i: int) -> np.ndarray:
        return np.ctypeslib.as_array(ll.llama_get_logits_ith(self.shallow.context, i), (self.vocab,))

    def prefill(self, n: int) -> float:
        self.shallow.truncate(0)
        return timed(self.shallow.append, tokens(n))

    def decode(self, n: int, depth: int = 0) -> float:
        sequence = self.shallow
        if depth:
            sequence = self.deep = self.deep or Sequence(self.model, self.threads)
            if sequence.past < depth:
                sequence.truncate(0)
                sequence.append(tokens(depth))
        sequence.truncate(depth)
        return timed(lambda: [sequence.append([t]) for t in tokens(n, depth)])

    def logits(self, ids: list[int], out: str) -> None:
        self.shallow.truncate(0)
        self.shallow.append(ids, every=True)
        np.save(out, np.stack([self.row(i) for i in range(len(ids))]))

    def system(self) -> str:
        return ll.llama_print_system_info().decode()


if __name__ == "__main__":
    me = Contestant(sys.argv[1], int(sys.argv[2]))
    serve({name: getattr(me, name) for name in ("first", "prefill", "decode", "logits", "system")})
