"""onnxruntime on the vision part: one picture of 448 x 448 a call.

Usage: run_onnxruntime.py MODEL.onnx THREADS. vit_onnx.py makes the model.
"""

from __future__ import annotations

import sys

import numpy as np
import onnxruntime as ort

from worker import pixels, serve, timed


class Contestant:
    def __init__(self, path: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        self.session = ort.InferenceSession(path, options, ["CPUExecutionProvider"])

    def run(self) -> np.ndarray:
        return self.session.run(None, {"pixels": pixels()})[0]

    def encode(self) -> float:
        return timed(self.run)

    def features(self, out: str) -> None:
        np.save(out, self.run())


if __name__ == "__main__":
    me = Contestant(sys.argv[1], int(sys.argv[2]))
    serve({name: getattr(me, name) for name in ("encode", "features")})
