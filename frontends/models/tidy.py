"""Turn an exported program into a flat, functional graph of ATen calls.

What export wraps around the model's own arithmetic is taken away here: regions that switch
gradients or autocast off, assertions, copies of constants, dropout that does nothing, in-place
writes. No arithmetic is changed and nothing is decomposed; recognising it is the raiser's work.
"""

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.fx import Graph, GraphModule, Node

aten = torch.ops.aten

COPIES = {
    aten.lift_fresh_copy.default,
    aten.detach.default,
    aten.detach_.default,
    aten.alias.default,
}
DROPOUTS = {aten.dropout.default, aten.feature_dropout.default, aten.alpha_dropout.default}

# Composite ops that may return a view of their operand; their schemas do not say so.
VIEWS = {
    "reshape", "contiguous", "to", "flatten", "unflatten", "expand_as", "view_as", "reshape_as",
    "chunk", "split", "narrow", "unbind", "movedim", "swapaxes", "swapdims", "type_as",
    "tensor_split", "squeeze", "unsqueeze", "conj", "real", "imag", "__getitem__",
}  # fmt: skip


def without_writes(program: ExportedProgram) -> ExportedProgram:
    """Turn in-place ops into functional ones; what was written to inputs becomes more outputs.

    The program is used up: the easy cases are changed in its graph, for the rest torch makes a
    new one, with a signature of its own.
    """
    return program if _functional(program.graph_module) else program.run_decompositions({})


def tidy(module: GraphModule) -> GraphModule:
    """Flatten a program's graph in place, and leave out what computes nothing."""
    _inline(module)
    for node in list(module.graph.nodes):
        _drop_assertion(module.graph, node)
    for node in list(module.graph.nodes):
        _skip_copy(module.graph, node)
    _eliminate(module.graph)
    for node in module.graph.nodes:
        node.meta["path"] = _path(node)
    module.graph.lint()
    module.recompile()
    return module


def _path(node: Node) -> str:
    """The dotted path of the module that made a node."""
    stack = node.meta.get("nn_module_stack") or {}
    innermost = list(stack.values())[-1:]
    return innermost[0][0] if innermost else ""


def _is_higher_order(node: Node) -> bool:
    """Whether a node calls a sub-graph."""
    return isinstance(node.target, torch._ops.HigherOrderOperator)


# regions


def _inline(module: GraphModule) -> None:
    """Put the bodies of regions that change no arithmetic in the place of their calls."""
    for node in list(module.graph.nodes):
        body = _region(module, node)
        if body is None:
            continue
        region, operands = body
        _inline(region)
        _splice(module, node, region, operands)


def _region(module: GraphModule, node: Node) -> tuple[GraphModule, tuple[Any, ...]] | None:
    """The sub-graph and operands of a region that may be inlined."""
    if not _is_higher_order(node):
        return None
    name = str(node.target)
    if name == "wrap_with_set_grad_enabled":
        body, operands = node.args[1], node.args[2:]
    elif name == "wrap_with_autocast" and not node.args[2]:
        body, operands = node.args[4], node.args[5:]
    else:
        return None
    return getattr(module, str(body.target)), operands


def _splice(module: GraphModule, call: Node, region: GraphModule, operands: Any) -> None:
    """Copy a region's nodes before its call, and read its results instead of the call's."""
    graph = module.graph
    inner = [node for node in region.graph.nodes if node.op == "placeholder"]
    values: dict[Node, Any] = dict(zip(inner, operands, strict=True))
    with graph.inserting_before(call):
        results = graph.graph_copy(region.graph, values)
    for node in region.graph.nodes:
        if node.op == "get_attr" and not hasattr(module, node.target):
            setattr(module, node.target, getattr(region, node.target))
    for user in list(call.users):
        if user.target is operator.getitem:
            user.replace_all_uses_with(results[user.args[1]])
            graph.erase_node(user)
    if call.users:
        call.replace_all_uses_with(results)
    graph.erase_node(call)


# in-place ops


def _mutates(node: Node) -> bool:
    """Whether a node writes to an operand."""
    schema = getattr(node.target, "_schema", None)
    return node.op == "call_function" and schema is not None and schema.is_mutable


def _functional(module: GraphModule) -> bool:
    """Replace in-place ops whose operand nobody else sees; False if one is left."""
    order = {node: i for i, node in enumerate(module.graph.nodes)}
    nodes = [node for node in module.graph.nodes if _mutates(node)]
    replaced = [_replace_mutation(module.graph, node, order) for node in nodes]
    inner = all(_functional(m) for m in module.children() if isinstance(m, GraphModule))
    return all(replaced) and inner


def _replace_mutation(graph: Graph, node: Node, order: dict[Node, int]) -> bool:
    """Turn `x.add_(y)` into `x.add(y)`, later readers of x reading the result."""
    if node.target in COPIES:
        return True
    written, target = node.args[0], _out_of_place(node.target)
    if target is None or not isinstance(written, Node) or _seen_elsewhere(written, node, order):
        return False
    with graph.inserting_before(node):
        result = graph.call_function(target, node.args, node.kwargs)
    result.meta = dict(node.meta)
    order[result] = order[node]
    node.replace_all_uses_with(result)
    written.replace_all_uses_with(result, lambda user: order[user] > order[node])
    graph.erase_node(node)
    return True


def _out_of_place(target: Any) -> Any:
    """The overload that returns what this one writes: `add_.Tensor` gives `add.Tensor`."""
    namespace, _, packet = target._schema.name.partition("::")
    if not packet.endswith("_"):
        return None
    plain = getattr(getattr(torch.ops, namespace), packet[:-1], None)
    return getattr(plain, target._overloadname, None)


def _seen_elsewhere(written: Node, by: Node, order: dict[Node, int]) -> bool:
    """Whether a write shows through another name: a view read later, an input, a weight."""
    family = set(_aliases(written, by))
    if any(node.op in ("placeholder", "get_attr") for node in family):
        return True
    return any(order[user] > order[by] for node in family - {written} for user in node.users)


def _aliases(node: Node, by: Node) -> Iterator[Node]:
    """Nodes that may share memory with a node, but for those that follow from the write."""
    seen: set[Node] = {by}
    todo = [node]
    while todo:
        current = todo.pop()
        if current in seen:
            continue
        seen.add(current)
        yield current
        if _is_view(current):
            todo += list(current.all_input_nodes[:1])
        todo += [user for user in current.users if _is_view(user)]


def _is_view(node: Node) -> bool:
    """Whether a node's result may be a view of its first operand."""
    if node.op != "call_function":
        return False
    if node.target is operator.getitem:
        return isinstance(node.args[0], Node) and _is_view(node.args[0])
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return False
    declared = any(result.alias_info is not None for result in schema.returns)
    return declared or schema.name.partition("::")[2] in VIEWS


# what does nothing


def _drop_assertion(graph: Graph, node: Node) -> None:
    """Erase a check that export left in."""
    name = getattr(node.target, "__name__", "")
    checks = name.startswith(("_assert", "sym_constrain"))
    if node.op == "call_function" and checks and not node.users:
        graph.erase_node(node)


def _skip_copy(graph: Graph, node: Node) -> None:
    """Read the operand of a copy, or of a dropout outside training, in its place."""
    idle = node.target in DROPOUTS and node.args[2] is False
    if node.op == "call_function" and (idle or node.target in COPIES):
        node.replace_all_uses_with(node.args[0])
        graph.erase_node(node)


def _eliminate(graph: Graph) -> None:
    """Erase nodes that nobody reads; inputs stay."""
    for node in reversed(list(graph.nodes)):
        if node.users or node.op in ("placeholder", "output") or _mutates(node):
            continue
        graph.erase_node(node)
