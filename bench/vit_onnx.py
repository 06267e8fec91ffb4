"""InternViT and its projector as ONNX: float32, and the dynamic int8 that onnxruntime's own quantizer makes of it.

Usage: vit_onnx.py CHECKPOINT OUT.onnx float|int8|int8-channel. The graph is spelled out by hand with the fused ops that
onnxruntime has for such a network (LayerNormalization, MultiHeadAttention, Gelu), so it gets the best it can run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from eyespot.tensorfile import TensorFile, bf16_to_f32

CONTRIB = "com.microsoft"


class Graph:
    """Nodes in order, and the weights they name; each call returns the name of its value."""

    def __init__(self, checkpoint: Path) -> None:
        self.file = TensorFile(checkpoint / "model.safetensors")
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def op(self, kind: str, *inputs: str, domain: str = "", outputs: int = 1, **attrs: object) -> str:
        names = [f"v{len(self.nodes)}.{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **attrs))
        return names[0]

    def constant(self, values: np.ndarray, name: str = "") -> str:
        name = name or f"c{len(self.weights)}"
        self.weights.append(numpy_helper.from_array(np.ascontiguousarray(values), name))
        return name

    def read(self, name: str) -> np.ndarray:
        return bf16_to_f32(self.file.raw(name))

    def weight(self, name: str) -> str:
        return self.constant(self.read(name), name)

    def linear(self, x: str, name: str) -> str:
        product = self.op("MatMul", x, self.constant(self.read(f"{name}.weight").T, f"{name}.weight"))
        return self.op("Add", product, self.weight(f"{name}.bias"))

    def norm(self, x: str, name: str, epsilon: float) -> str:
        weights = self.weight(f"{name}.weight"), self.weight(f"{name}.bias")
        return self.op("LayerNormalization", x, *weights, axis=-1, epsilon=epsilon)

    def reshape(self, x: str, *shape: int) -> str:
        return self.op("Reshape", x, self.constant(np.array(shape, np.int64)))


def internvit(checkpoint: Path) -> onnx.ModelProto:
    """pixels [1, 3, size, size] -> features [1, tokens, llm_width]."""
    config = json.loads((checkpoint / "config.json").read_text())
    vision = config["vision_config"]
    size, patch, d = vision["image_size"], vision["patch_size"], vision["hidden_size"]
    side, heads, eps = size // patch, vision["num_attention_heads"], vision["layer_norm_eps"]
    g = Graph(checkpoint)
    at = "vision_model.embeddings."
    kernel = g.weight(f"{at}patch_embedding.weight"), g.weight(f"{at}patch_embedding.bias")
    x = g.op("Conv", "pixels", *kernel, kernel_shape=[patch, patch], strides=[patch, patch])
    x = g.op("Transpose", g.reshape(x, 1, d, side * side), perm=[0, 2, 1])
    x = g.op("Concat", g.weight(f"{at}class_embedding"), x, axis=1)
    x = g.op("Add", x, g.weight(f"{at}position_embedding"))
    for i in range(vision["num_hidden_layers"]):
        at = f"vision_model.encoder.layers.{i}."
        qkv = g.linear(g.norm(x, f"{at}norm1", eps), f"{at}attn.qkv")
        q = g.op("Split", qkv, outputs=3, axis=-1, num_outputs=3)
        k, v = (q.removesuffix("0") + str(j) for j in (1, 2))
        y = g.linear(g.op("MultiHeadAttention", q, k, v, domain=CONTRIB, num_heads=heads), f"{at}attn.proj")
        x = g.op("Add", x, g.op("Mul", y, g.weight(f"{at}ls1")))
        y = g.linear(g.norm(x, f"{at}norm2", eps), f"{at}mlp.fc1")
        y = g.linear(g.op("Gelu", y, domain=CONTRIB), f"{at}mlp.fc2")
        x = g.op("Add", x, g.op("Mul", y, g.weight(f"{at}ls2")))
    one, end = g.constant(np.array([1])), g.constant(np.array([side * side + 1]))
    x = g.op("Slice", x, one, end, one)
    half = side // 2  # pixel shuffle v2: a 2 x 2 square of patches becomes one row, (dy, dx, channel) inside it
    x = g.op("Transpose", g.reshape(x, half, 2, half, 2, d), perm=[0, 2, 1, 3, 4])
    x = g.norm(g.reshape(x, 1, half * half, 4 * d), "mlp1.0", 1e-5)
    x = g.linear(g.op("Gelu", g.linear(x, "mlp1.1"), domain=CONTRIB), "mlp1.3")
    g.op("Identity", x)
    g.nodes[-1].output[0] = "features"
    inputs = [helper.make_tensor_value_info("pixels", TensorProto.FLOAT, [1, 3, size, size])]
    outputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, None)]
    graph = helper.make_graph(g.nodes, "internvit", inputs, outputs, g.weights)
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def main(checkpoint: str, out: str, form: str) -> None:
    made = internvit(Path(checkpoint))
    if form == "float":
        onnx.save(made, out)
    else:
        quantize_dynamic(
            made,
            out,
            op_types_to_quantize=["MatMul"],
            per_channel=form == "int8-channel",
            weight_type=QuantType.QInt8,
            extra_options={"DefaultTensorType": TensorProto.FLOAT},  # past the ops that shape inference does not know
        )


if __name__ == "__main__":
    main(*sys.argv[1:])
