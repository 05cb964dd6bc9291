"""Modules as files of torch.export, and as ONNX: networks, and whole samplers.

In ONNX a sampler is a `Scan` over the rows of its table, whose body is one step as torch traces it, with the weights
inside: onnxruntime prepares for its kernels only those that are a graph's own.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ancestral.sampling.table import Step, TableSampler

if TYPE_CHECKING:
    from onnx import ModelProto
    from onnxscript import ir

Inputs = Mapping[str, Tensor]
BATCHED = {"noise": 1, "states": 1}  # the axis of a batch, where it is not the first
CALL = "ancestral::Network"  # a node that stands for all of a network
BATCH = 2  # of the images that a module is traced with; any other works as well


def torch_bytes(module: nn.Module, inputs: Inputs) -> bytes:
    """A module as torch.export has it, a .pt2 file."""
    file = io.BytesIO()
    with _quiet():
        torch.export.save(_traced(module, inputs), file)
    return file.getvalue()


class OnnxWriter:
    """Modules as ONNX, their weights inside. A sampler comes after its networks, which are not traced again for it."""

    def __init__(self) -> None:
        self._networks: dict[nn.Module, ir.Model] = {}

    def __call__(self, module: nn.Module, inputs: Inputs) -> bytes:
        """The file of a module, traced with these inputs."""
        if isinstance(module, TableSampler):
            return _scanned(module, inputs, self._networks).SerializeToString()
        self._networks[module] = made = _onnx(module, inputs)
        return _as_proto(made).SerializeToString()


def _traced(module: nn.Module, inputs: Inputs, fixed: tuple[str, ...] = ()) -> torch.export.ExportedProgram:
    batch = torch.export.Dim("batch")
    shapes = {name: None if name in fixed else {BATCHED.get(name, 0): batch} for name in inputs}
    program = torch.export.export(module, (), dict(inputs), dynamic_shapes=shapes)
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)  # larger than the weights, with paths of this machine
    return program


@contextmanager
def _quiet() -> Iterator[None]:
    """Exporters warn of their own insides."""
    logger, level = logging.getLogger("torch.onnx"), logging.getLogger("torch.onnx").level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _onnx(module: nn.Module, inputs: Inputs, fixed: tuple[str, ...] = ()) -> ir.Model:
    from onnxscript import opset18, optimizer

    with _quiet():
        program = torch.onnx.export(
            _traced(module, inputs, fixed),
            input_names=list(inputs),
            output_names=["output"],
            dynamo=True,
            verbose=False,
            custom_translation_table={
                torch.ops.ancestral.quantize.default: lambda x, scale, zero: opset18.QuantizeLinear(x, scale, zero),
                torch.ops.ancestral.dequantize.default: lambda q, scale, zero: opset18.DequantizeLinear(
                    q, scale, zero, axis=0
                ),
            },
        )
    assert program is not None
    optimizer.remove_unused_nodes(program.model)  # onnxruntime warns of those that the exporter leaves
    return program.model


def _as_proto(model: ir.Model) -> ModelProto:
    from onnxscript import ir

    made = ir.to_proto(model)
    _take_in(made.graph)
    return made


class _Call(nn.Module):
    """Stands for a network whose nodes are known: one node, of these inputs and outputs."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        shape = graph.outputs[0].shape
        channels = None if shape is None else shape[1]
        assert isinstance(channels, int)
        self.names, self.channels = [str(one.name) for one in graph.inputs], channels

    def forward(self, **given: Tensor) -> Tensor:
        return _call([given[name] for name in self.names], self.channels)


@torch.compiler.allow_in_graph  # also within a branch that torch traces in its other way
def _call(inputs: list[Tensor], channels: int) -> Tensor:
    x = inputs[0]
    return torch.onnx.ops.symbolic(CALL, inputs, dtype=x.dtype, shape=(x.shape[0], channels, *x.shape[2:]))


def _with_network(step: ir.Model, graph: ir.Graph) -> None:
    """Put a network in the place of its calls; its graph is used up."""
    from onnxscript import ir
    from onnxscript.ir.passes import common

    domain, name = CALL.split("::")
    weights = [*graph.initializers.values()]
    for one in (*weights, *(one for node in graph for one in node.outputs)):
        one.name = f"network.{one.name}"  # which no value of the step is called
    held = [ir.Value(name=one.name, type=one.type, shape=one.shape, const_value=one.const_value) for one in weights]
    for one in held:
        step.graph.register_initializer(one)
    graph.initializers.clear()
    graph.inputs.extend(weights)  # it becomes a function, which has no others
    for node in [node for node in step.graph.all_nodes() if node.domain == domain]:
        call = ir.Node(domain, name, [*node.inputs, *held])
        assert node.graph is not None
        ir.convenience.replace_nodes_and_values(node.graph, node, [node], [call], node.outputs, call.outputs)
    step.functions[domain, name, ""] = ir.Function(domain, name, graph=graph, attributes=())
    common.InlinePass()(step)
    step.opset_imports.pop(domain)


def _type_of(tensor: Tensor) -> int:
    from onnx import helper

    return helper.np_dtype_to_tensor_dtype(tensor.numpy().dtype)


def _scanned(whole: TableSampler, inputs: Inputs, networks: Mapping[nn.Module, ir.Model]) -> ModelProto:
    """The sampler: from the noise to the states, a `Scan` for each of its networks, and x of the last states."""
    from onnx import helper, numpy_helper

    start, columns = whole.start(inputs["noise"]), whole.rows._asdict()
    row, states = {name: column[0] for name, column in columns.items()}, "states.0"
    copies = torch.tensor([len(start), *[1] * (start.ndim - 1)])
    constants = {"0": torch.tensor(0), "[0]": torch.tensor([0]), "[1]": torch.tensor([1]), "copies": copies}
    nodes = [
        helper.make_node("Slice", ["noise", "[0]", "[1]", "[0]"], ["x"]),
        helper.make_node("Cast", ["x"], ["x.double"], to=_type_of(start)),
        helper.make_node("Tile", ["x.double", "copies"], [states]),
    ]
    body, given = None, list[Any]()
    for number, (network, part) in enumerate(whole.phases(), 1):
        graph = networks[network].graph
        step = _onnx(Step(whole, _Call(graph)), {"states": start, **row, **inputs}, tuple(row))
        _with_network(step, graph)
        body = _as_proto(step)
        given = [one for one in body.graph.input if one.name in inputs]  # the whole sampler's, seen from inside
        for one in given:
            body.graph.input.remove(one)
        constants |= {f"{name}.{number}": column[part] for name, column in columns.items()}
        taken = [states, *(f"{name}.{number}" for name in columns)]
        states = f"states.{number}"
        nodes.append(helper.make_node("Scan", taken, [states], body=body.graph, num_scan_inputs=len(columns)))
    assert body is not None
    nodes.append(helper.make_node("Gather", [states, "0"], ["x.last"]))
    nodes.append(helper.make_node("Cast", ["x.last"], ["output"], to=_type_of(inputs["noise"])))
    shape = [one.dim_param or one.dim_value for one in given[0].type.tensor_type.shape.dim][1:]
    images = helper.make_tensor_value_info("output", _type_of(inputs["noise"]), shape)
    held = [numpy_helper.from_array(one.numpy(), name) for name, one in constants.items()]
    graph = helper.make_graph(nodes, "sampler", given, [images], held)
    return helper.make_model(graph, opset_imports=body.opset_import, ir_version=body.ir_version)


def _take_in(graph: Any) -> None:
    """Give each inner graph the 8-bit weights that its nodes use: onnxruntime computes in 8 bits with its own only."""
    outer = {one.name: one for one in graph.initializer}
    taken, kept = set[str](), {name for node in graph.node for name in node.input}

    def visit(inner: Any, place: str) -> None:
        own = dict[str, str]()
        for number, node in enumerate(inner.node):
            for index, name in enumerate(node.input):
                if name not in outer:
                    continue
                if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
                    kept.add(name)
                    continue
                if name not in own:
                    own[name] = f"{name}.{place}"
                    inner.initializer.add().CopyFrom(outer[name])
                    inner.initializer[-1].name = own[name]
                node.input[index] = own[name]
            for index, attribute in enumerate(node.attribute):
                if attribute.HasField("g"):
                    visit(attribute.g, f"{place}.{number}.{index}")
        taken.update(own)

    for number, node in enumerate(graph.node):
        for index, attribute in enumerate(node.attribute):
            if attribute.HasField("g"):
                visit(attribute.g, f"{number}.{index}")
    for one in [one for one in graph.initializer if one.name in taken - kept]:
        graph.initializer.remove(one)
