"""Class activation maps (Zhou et al. 2016) as one more output of a network's OpenVINO graph.

Every architecture ends in the same frame (training/ml/architectures.py): feature maps -> mean over their cells ->
dense head -> softmax. A mean and a dense layer may change places: the head on each cell alone gives what the cell
contributes to each class's logit, and the mean of these contributions, plus the bias, is the logit.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registry.openvino_runtime import load_openvino

_WINDOWS = ("Convolution", "GroupConvolution", "MaxPool", "AvgPool")


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map lie on the network's input, in pixels, the same down and across.

    first: the place that the first cell looks at, counted from the picture's edge (the middle of the first pixel is
    0.5). step: from one cell to the next. Where a network pads on one side only, cells look up to half a step beside
    the tile of the picture that they seem to stand for.
    """

    first: float
    step: float


def contrast(contributions: NDArray[Any], class_index: int | NDArray[np.int64]) -> NDArray[np.float32]:
    """Class activation maps float32 (N, h, w) of one class, or of one an image (N,).

    contributions: (N, C, h, w), what each cell adds to each class's logit.

    Softmax only sees differences of logits, so a cell counts for a class by what it adds to the class's logit less
    the mean of what it adds to the others': of two classes the difference of both, and the map of one is the
    negative of the other's. Above zero speaks for the class. The mean of the map and a constant of the version,
    its biases, is log p of the class less the mean log p of the others, before the temperature.
    """
    count, classes = contributions.shape[:2]
    chosen = contributions[np.arange(count), np.broadcast_to(class_index, count)].astype(np.float64)
    others = (contributions.sum(axis=1, dtype=np.float64) - chosen) / (classes - 1)
    return np.asarray(chosen - others, np.float32)


def add_map_output(graph: Any) -> Grid | None:
    """Give a graph a second output, float32 (N, C, h, w): what each cell contributes to each class's logit.

    Returns where the cells lie; None, and leaves the graph as it is, when it does not end in the frame of the
    catalogue with a mean over both directions directly before the head: such a network has no class activation map.
    """
    try:
        features, channel_axis, kernel = _frame(graph)
    except LookupError:
        return None
    load_openvino()
    from openvino import opset13 as operators

    grid = _grid(features)
    if channel_axis == 3:
        features = operators.transpose(features, np.array([0, 3, 1, 2])).output(0)
    contributions = operators.convolution(features, kernel.T[:, :, None, None], [1, 1], [0, 0], [0, 0], [1, 1])
    graph.add_outputs([contributions.output(0)])
    return grid


def add_features_output(graph: Any) -> int | None:
    """Give a graph one more output, float32 (N, D): its pooled features, the mean over the cells before the head.

    They come from the same forward pass as the probabilities and cost nothing but their copy. Returns D; None, and
    leaves the graph as it is, exactly where `add_map_output` does. The frame is found from the first output alone, so
    that the two may be called in any order.
    """
    try:
        pooling = _pooling(_product(graph))
        _frame(graph)
    except LookupError:
        return None
    graph.add_outputs([pooling.output(0)])
    return int(pooling.get_output_partial_shape(0)[1].get_length())


def _frame(graph: Any) -> tuple[Any, int, NDArray[np.float32]]:
    """The feature maps, the axis of their channels and the kernel (channels, C) of the head. Raises LookupError."""
    product = _product(graph)
    kernel = np.asarray(_source(product, "Constant").get_data(), np.float32)
    pooling = _pooling(product)
    features = pooling.input_value(0)
    directions = sorted(int(axis) for axis in _source(pooling, "Constant").get_data())
    if features.get_partial_shape().rank.get_length() != 4 or directions not in ([1, 2], [2, 3]):
        raise LookupError("The mean is not one over the two directions of a picture.")
    return features, 6 - sum(directions), kernel.T if product.get_attributes()["transpose_b"] else kernel


def _product(graph: Any) -> Any:
    """The head's product of pooled features and kernel. Raises LookupError."""
    softmax = _source(graph.outputs[0].get_node(), "Softmax")
    # A head whose bias is zero is saved without it.
    head = _source(softmax, "Add", "MatMul")
    return _source(head, "MatMul") if head.get_type_name() == "Add" else head


def _pooling(product: Any) -> Any:
    """The mean over the cells that feeds the head. Raises LookupError."""
    return _source(product, "ReduceMean")


def _source(node: Any, *kinds: str) -> Any:
    """The first node of these kinds that feeds `node`. Raises LookupError."""
    for value in node.input_values():
        if value.get_node().get_type_name() in kinds:
            return value.get_node()
    raise LookupError(f"No {' or '.join(kinds)} before {node.get_type_name()}.")


def _grid(features: Any) -> Grid:
    """Centre of the receptive field of each cell (Araujo, Norris and Sim 2019), walking back to the radiograph."""
    node, first, step = features.get_node(), 0.0, 1.0
    while node.get_type_name() != "Parameter":
        if node.get_type_name() in _WINDOWS:
            stride, reach = _window(node)
            first, step = first * stride + reach, step * stride
        elif node.get_type_name() == "Pad":
            first -= float(node.input_value(1).get_node().get_data()[-1])
        node = _before(node)
    return Grid(first + 0.5, step)


def _window(node: Any) -> tuple[int, float]:
    """Stride of a convolution or pooling, and from the first input to the middle of the first window, in inputs."""
    attributes = node.get_attributes()
    size = attributes["kernel"][-1] if "kernel" in attributes else node.input(1).get_shape()[-1]
    size = (size - 1) * attributes.get("dilations", [1])[-1] + 1
    stride = attributes["strides"][-1]
    padding = attributes["pads_begin"][-1]
    if attributes["auto_pad"] in ("same_upper", "same_lower"):
        inputs, outputs = node.input(0).get_partial_shape()[3], node.get_output_partial_shape(0)[3]
        total = max((outputs.get_length() - 1) * stride + size - inputs.get_length(), 0)
        padding = total // 2 if attributes["auto_pad"] == "same_upper" else total - total // 2
    return stride, (size - 1) / 2 - padding


def _before(node: Any) -> Any:
    """The node whose picture `node` works on; of a gate, whose other input is one value a channel, not the gate."""
    pictures = [value for value in node.input_values() if value.get_partial_shape().rank.get_length() == 4]
    moving = [value for value in pictures if value.get_node().get_type_name() != "Constant"]
    alike = [value for value in moving if value.get_partial_shape() == node.get_output_partial_shape(0)]
    return (alike or moving)[0].get_node()
