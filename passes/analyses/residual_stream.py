"""The residual stream: what all between an embedding and the output comes through.

They are the dominators of the output in the subgraph reached from the embedding, those of one type.
(On the whole graph masks and positions bypass the layers, and nothing dominates.) Between two
neighbours lies a segment; a layer is a segment that mixes tokens, with those after it that do not.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from elidir.ir import (
    Add,
    AddNorm,
    Attention,
    Conv,
    Cumsum,
    Layer,
    Module,
    Op,
    Region,
    Tensor,
    Value,
    structure,
)

EXIT = object()


@dataclass(frozen=True, eq=False)
class Segment:
    """The ops that lead from one value of the stream to the next, with the constants they read."""

    start: Value
    end: Value
    ops: tuple[Op, ...]
    mixes: bool

    def key(self) -> object:
        """Return a key that is equal for isomorphic segments."""
        return structure(Region((), self.ops, (self.end,)), self.params())

    def params(self) -> list[Value]:
        """The stream, then what else is read from outside, in order of use."""
        made = {r for o in self.ops for r in o.results}
        reads = [v for o in self.ops for v in o.operands() if v not in made]
        return list(dict.fromkeys([self.start, *reads]))


@dataclass(frozen=True)
class ResidualStream:
    """The layers of a function, in order, each with the stream before and after it."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, module: Module) -> "ResidualStream":
        """Read the layers of `@step`, or of `@forward` where there is no step."""
        name = "step" if "step" in module.functions else "forward"
        ops = module[name].region.ops
        return cls(tuple(o for o in ops if isinstance(o, Layer)))

    def before(self, index: int) -> Value:
        """Return the stream that enters a layer."""
        return self.layers[index].inputs[0]

    def after(self, index: int) -> Value:
        """Return the stream that leaves a layer."""
        return self.layers[index].results[0]


def stream_segments(region: Region, source: Value) -> list[Segment]:
    """Return the segments of the stream from `source`, in order; none if there is none."""
    chain = _dominators(region, source)
    kind = _stream_type(chain, region)
    stream = [v for v in chain if v.type == kind]
    producers = {r: o for o in region.ops for r in o.results}
    reached = _reached(region, source)
    return [_segment(a, b, producers, reached) for a, b in pairwise(stream)]


def group_layers(segments: Sequence[Segment]) -> list[Segment]:
    """Join segments to layers: each begins where tokens mix, and ends before they mix again."""
    groups: list[list[Segment]] = []
    for segment in segments:
        if segment.mixes:
            groups.append([segment])
        elif groups:
            groups[-1].append(segment)
    if groups:
        groups[-1] = _trim(groups)
    return [_join(g) for g in groups]


def _trim(groups: list[list[Segment]]) -> list[Segment]:
    """Cut off what follows the last layer (a final norm): it ends as others do, or at an add."""
    *others, last = groups
    known = {_join(g).key() for g in others}
    for size in range(len(last), 0, -1):
        if _join(last[:size]).key() in known:
            return last[:size]
    adds = [i for i, s in enumerate(last) if isinstance(s.ops[-1], Add | AddNorm)]
    return last[: adds[-1] + 1] if adds else last


def _join(group: Sequence[Segment]) -> Segment:
    ops = tuple(o for s in group for o in s.ops)
    return Segment(group[0].start, group[-1].end, ops, any(s.mixes for s in group))


def _dominators(region: Region, source: Value) -> list[Value]:
    import networkx as nx  # half a second, which a compiled model's second run does without

    graph = nx.DiGraph()
    graph.add_node(source)
    for op in region.ops:
        reads = [v for v in op.operands() if v in graph]
        graph.add_edges_from((v, r) for v in reads for r in op.results)
    graph.add_edges_from((v, EXIT) for v in region.results if v in graph)
    if EXIT not in graph:
        return []
    parents = nx.immediate_dominators(graph, source)
    chain, at = [], parents[EXIT]
    while at is not None and at != source:
        chain.append(at)
        at = parents[at]
    return [source, *chain[::-1]]


def _stream_type(chain: Sequence[Value], region: Region) -> object:
    """The type that residual adds of the chain have most often."""
    adds = {r for o in region.ops if isinstance(o, Add | AddNorm) for r in o.results}
    types = [v.type for v in chain if v in adds and isinstance(v.type, Tensor)]
    return max(types, key=types.count) if types else None


def _reached(region: Region, source: Value) -> set[Value]:
    reached = {source}
    for op in region.ops:
        if any(v in reached for v in op.operands()):
            reached.update(op.results)
    return reached


def _segment(
    start: Value, end: Value, producers: Mapping[Value, Op], reached: set[Value]
) -> Segment:
    ops: dict[Op, None] = {}
    todo = [end]
    while todo:
        value = todo.pop()
        op = producers.get(value)
        if value is start or op is None or op in ops:
            continue
        if value not in reached and any(op.operands()):
            continue
        ops[op] = None
        todo += op.operands()
    order = [o for o in dict.fromkeys(producers.values()) if o in ops]
    made = {r for o in order for r in o.results} | {start}
    return Segment(start, end, tuple(order), any(_mixes(o, made) for o in order))


def _mixes(op: Op, stream: set[Value]) -> bool:
    """Whether an op mixes the tokens of the stream with each other (not with another stream's)."""
    if isinstance(op, Attention):
        return op.k in stream
    return isinstance(op, Conv | Cumsum)
