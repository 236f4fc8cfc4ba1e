"""ONNX: the traced program of a network for ONNX Runtime, and whatever else reads it."""

import json
from pathlib import Path

import numpy as np

from pujax.exporters.function import NORMALISED, PIXELS, input_dtype, make_function
from pujax.exporters.onnx_graph import trace
from pujax.exporters.onnx_passes import clipped, folded, without_dead
from pujax.networks import Network, describe

OPSET, _IR_VERSION = 18, 8  # which belong together, and which runtimes of several years read
LOADER = """
import json
import onnxruntime
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = threads
session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
run = lambda images: session.run(None, {"images": images})[0]
told = json.loads(session.get_modelmeta().custom_metadata_map.get("network", "{}"))
"""


def export_onnx(network: Network, path: Path, *, preprocessing: bool = True) -> None:
    """Write a network as ONNX, for every batch size: input "images" [B, H, W, C], output "logits" float32 [B, K].

    Args:
        network: what is written; its weights are arrays.
        path: of the file.
        preprocessing: True takes uint8 images, False takes them float32 and normalised.

    Raises:
        UserError: the network has an operation that is not known here; the message names it.
    """
    import onnx
    from onnx import helper, numpy_helper

    dtype, shape = input_dtype(preprocessing), network.preprocessing.image_shape
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph, output = trace(make_function(network, preprocessing=preprocessing), shape, dtype)
    nodes = without_dead(clipped(folded(graph.nodes, graph.constants), graph.constants), output)
    nodes[-1].output = "logits"
    used = {name for node in nodes for name in node.inputs}
    model = helper.make_model(
        helper.make_graph(
            [helper.make_node(node.op, node.inputs, [node.output], **node.attributes) for node in nodes],
            network.model,
            [helper.make_tensor_value_info("images", kind, ["batch", *shape])],
            [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["batch", network.num_classes])],
            [numpy_helper.from_array(value, name) for name, value in graph.constants.items() if name in used],
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="pujax",
    )
    told = describe(network) | {"takes": PIXELS if preprocessing else NORMALISED}
    helper.set_model_props(model, {"network": json.dumps(told)})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
