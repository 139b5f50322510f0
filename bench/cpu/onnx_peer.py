"""ONNX Runtime's MatMulBnb4 over the same codes: x Wᵀ in fp32, W NF4 with fp32 absmax (no double quantisation)."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable

import torch

from lorafam.weights import quantize_nf4

MISSING = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]


def make(weight: torch.Tensor, x: torch.Tensor, block_size: int = 64) -> Callable[[], object]:
    """The product of fp32 x [M, K] with `weight` [N, K], quantised here, on torch's number of threads."""
    import onnx
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    rows, columns = weight.shape
    packed = quantize_nf4(weight, block_size, double_quant=False)
    codes, absmax = packed.storage().data, packed.storage().scales[0]
    node = helper.make_node(
        "MatMulBnb4",
        ["x", "codes", "absmax"],
        ["y"],
        domain="com.microsoft",
        K=columns,
        N=rows,
        block_size=block_size,
        # NF4
        quant_type=1,
    )
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["M", columns])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["M", rows])],
        [
            numpy_helper.from_array(codes.reshape(-1).numpy(), "codes"),
            numpy_helper.from_array(absmax.reshape(-1).numpy(), "absmax"),
        ],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # threads that wait spinning would slow down whoever comes next
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    given = {"x": x.detach().numpy()}
    return lambda: session.run(None, given)[0]
