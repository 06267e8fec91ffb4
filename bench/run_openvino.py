"""openvino-genai's LLMPipeline, timed by its own counters: time to first token, and the time of each token after it.

Usage: run_openvino.py MODEL_FOLDER THREADS. Logits come from the same compiled network without the pipeline.
"""

from __future__ import annotations

import sys

import numpy as np
import openvino as ov
import openvino_genai as genai

from worker import serve, tokens


class Contestant:
    def __init__(self, path: str, threads: int) -> None:
        self.path = path
        self.properties = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
        self.pipeline: genai.LLMPipeline | None = None

    def generate(self, ids: list[int], n: int) -> genai.PerfMetrics:
        if self.pipeline is None:
            scheduler = genai.SchedulerConfig()
            scheduler.enable_prefix_caching = False  # or the second prefill of a prompt would be free
            scheduler.max_num_batched_tokens = 2048  # a prompt in one go
            self.pipeline = genai.LLMPipeline(self.path, "CPU", scheduler_config=scheduler, **self.properties)
        rows = np.array([ids], np.int64)
        inputs = genai.TokenizedInputs(ov.Tensor(rows), ov.Tensor(np.ones_like(rows)))
        config = genai.GenerationConfig(max_new_tokens=n, ignore_eos=True, do_sample=False)
        return self.pipeline.generate(inputs, config)

    def first(self, n: int) -> int:
        return int(self.generate(tokens(n), 1).tokens[0][0])

    def prefill(self, n: int) -> float:
        return self.generate(tokens(n), 1).perf_metrics.raw_metrics.m_times_to_first_token[0] / 1e6

    def decode(self, n: int, depth: int = 0) -> float:
        steps = self.generate(tokens(max(depth, 1)), n + 1).perf_metrics.raw_metrics.token_infer_durations
        return sum(steps[-n:]) / 1e6

    def logits(self, ids: list[int], out: str) -> None:
        network = ov.Core().compile_model(f"{self.path}/openvino_model.xml", "CPU", self.properties)
        rows = np.array([ids], np.int64)
        given = {"input_ids": rows, "attention_mask": np.ones_like(rows), "beam_idx": np.zeros(1, np.int32)}
        given["position_ids"] = np.arange(len(ids))[None]
        names = {name for port in network.inputs for name in port.names}
        np.save(out, network({k: v for k, v in given.items() if k in names})["logits"][0])


if __name__ == "__main__":
    me = Contestant(sys.argv[1], int(sys.argv[2]))
    serve({name: getattr(me, name) for name in ("first", "prefill", "decode", "logits")})
