"""Rebuilds the program that makes a picture's features so that only some of its tokens come out.

Attention is read beside the layers that decide. The choice is then made as far forward as may be:
from the features back to the attention of the last layer, past whatever works token by token. Which
tokens are chosen is the pass's affair, where the tower is that of `tower.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from elidir.ir import (
    Attention,
    Function,
    IRTypeError,
    Layer,
    Op,
    Opaque,
    Region,
    Reshape,
    Slice,
    TokensIndex,
    TokensTake,
    Value,
    Weight,
    as_dim,
    emit,
    make_body,
    resolve,
)
from elidir.passes.analyses.token_axis import TokenAxis, token_axes
from elidir.passes.token_pruning.scorers import received
from elidir.passes.token_pruning.tower import Tower, VisualError, cuts_patches

# Makes what is chosen of the scores of two layers, each [images, parts, patches]: a set of all of
# the patches of a picture. Its ops go to the list.
Choose = Callable[[Value, Value, list[Op]], Value]


@dataclass(eq=False)
class Dropping:
    """Builds the function over chosen tokens.

    Args:
        region: the region of the function.
        tower: what was found in it.
        deciding: the layers whose attention is read.
        by_class: whether that of the class token is, or of all tokens.
        choose: chooses.
    """

    region: Region
    tower: Tower
    deciding: tuple[int, int]
    by_class: bool
    choose: Choose
    ops: list[Op] = field(default_factory=list)
    behind: int = 0
    pulled: dict[Value, Value] = field(default_factory=dict)
    sources: list[Value] = field(default_factory=list)

    def function(self, name: str) -> Function:
        """Return the function; its last result is where the tokens stood, i64[images, K]."""
        self.values: dict[Value, Value] = {p: p for p in self.region.params}
        self.scores: dict[int, Value] = {}
        for op in self.region.ops:
            if op is self.tower.layers[-1]:
                self._inlined(op)
            elif isinstance(op, Layer) and self.tower.layers.index(op) in self.deciding:
                self._scored(op, self.tower.layers.index(op))
            else:
                self._note(op.results, self._emit(op.clone(self.values.__getitem__)).results)
        self.axes = self._analyses()
        self.made = {r: op for op in self.ops for r in op.results}
        first, late = (self._by_picture(self.scores[i]) for i in self.deciding)
        self.chosen = self.choose(first, late, self.ops)
        features = self._pulled(self.values[self.tower.features])
        index = self._emit(TokensIndex(self.chosen)).results[0]
        rest = (self.values[r] for r in self.region.results[1:])
        results = (features, *rest, index)
        return Function(name, Region(self.region.params, tuple(self.ops), results))

    def blocker(self) -> str:
        """Return what keeps the choice behind what follows the tower, "" if nothing does."""
        behind = self.ops[self.behind :]
        late = [v for v in self.sources if any(v in op.results for op in behind)]
        mixers = (m for m in self.axes[-1].mixers if any(m.op is op for op in behind))
        reasons = [f"{m.op.kind}: {m.reason}" for m in mixers] or ["its shape is fixed"]
        return reasons[0] if late else ""

    def _emit(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    def _note(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        self.values.update(zip(old, new, strict=True))

    # ---- scores

    def _scored(self, op: Layer, number: int) -> None:
        """Append a layer that also yields what its attention says of each patch."""
        region = op.body.region
        extra: list[Op] = []
        score = self._read(region.ops, number, extra)
        results = (*region.results, score)
        body = make_body(
            f"{op.body.name}.scored", Region(region.params, (*region.ops, *extra), results)
        )
        inputs = tuple(self.values[v] for v in op.inputs)
        names = (*(r.name for r in op.results), "scores")
        new = self._emit(Layer(body, inputs, scope=op.scope, loc=op.loc, names=names))
        self._note(op.results, new.results[:-1])
        self.scores[number] = new.results[-1]

    def _inlined(self, op: Layer) -> None:
        """Append the ops of the last layer: some of them are for the chosen tokens alone."""
        region, number = op.body.region, len(self.tower.layers) - 1
        self._note(region.params, [self.values[v] for v in op.inputs])
        start = len(self.ops)
        for inner in region.ops:
            new = inner.clone(
                self.values.__getitem__, lambda w: Weight(resolve(op.scope, w.name), w.type)
            )
            self._note(inner.results, self._emit(new).results)
        self._note(op.results, [self.values[r] for r in region.results])
        if number in self.deciding:
            self.scores[number] = self._read(self.ops[start:], number, self.ops)
        self.behind = len(self.ops)

    def _read(self, ops: Sequence[Op], number: int, out: list[Op]) -> Value:
        """Append what the class token looks at, or what all look at: f32[rows, patches]."""
        found = [op for op in ops if isinstance(op, Attention)]
        scope = self.tower.layers[number].scope
        if len(found) != 1 or found[0].k.type.dims[2] != self.tower.stream:
            raise VisualError(
                f"{scope} has {len(found)} attentions; which one decides is not known"
            )
        op = found[0]
        if self.by_class and (op.mask is not None or op.bias is not None):
            raise VisualError(f"{scope}: its attention has a mask or a bias")
        if self.by_class:
            op = replace(op, q=emit(out, Slice(op.q, 2, 0, 1)))
        scores = received(op, out, shared=True)
        if not self.tower.front:
            return scores
        return emit(out, Slice(scores, 1, self.tower.front, self.tower.stream))

    def _by_picture(self, scores: Value) -> Value:
        shape = (self.tower.images, self.tower.parts, self.tower.tokens)
        return self._emit(Reshape(scores, shape)).results[0]

    # ---- as early as may be

    def _analyses(self) -> tuple[TokenAxis, TokenAxis]:
        """Follow tokens through the last layer, and from the patches through what is behind it."""
        stream = self.values[self.tower.layers[-1].inputs[0]]
        start = next((i for i, op in enumerate(self.ops) if stream in op.results), -1) + 1
        ops = tuple(self.ops[start:])
        cuts = [op for op in ops if cuts_patches(op, self.tower.stream, self.tower.tokens)]
        inside = token_axes(Region((stream,), ops, ()), {stream: 1})
        if not cuts:
            return inside, inside
        patches = {op.results[0]: 1 for op in cuts}
        behind = ops[max(map(ops.index, cuts)) + 1 :]
        return inside, token_axes(Region(tuple(patches), behind, ()), patches)

    def _pulled(self, value: Value) -> Value:
        """Return the chosen tokens of a value: by making only these, or else by taking them."""
        op = self.made.get(value)
        if op is not None and cuts_patches(op, self.tower.stream, self.tower.tokens):
            assert isinstance(op, Slice)
            return self._pulled(op.x)
        if value not in self.pulled:
            self.pulled[value] = self._made_early(op, value) or self._taken(value)
        return self.pulled[value]

    def _tokenwise(self, op: Op, value: Value) -> bool:
        """Whether an op needs, for a token of its result, that token of its operands alone."""
        known = next((a for a in self.axes if value in a.axis), None)
        if known is None or (known.axis[value], known.rows[value]) != (1, 1):
            return False
        if any(m.op is op for m in known.mixers) or isinstance(op, Layer | Opaque | Reshape):
            return False
        others = (v.type.dims for v in op.operands() if v not in known.axis)
        return len(op.results) == 1 and all(len(d) < 2 or d[-2] == 1 for d in others)

    def _made_early(self, op: Op | None, value: Value) -> Value | None:
        """Return a value made of the chosen tokens of what it is made from, if that may be."""
        if op is None or not self._tokenwise(op, value):
            return None
        marks = len(self.ops), len(self.sources), dict(self.pulled)
        try:
            return self._remade(op, value)
        except IRTypeError:
            del self.ops[marks[0] :], self.sources[marks[1] :]
            self.pulled = marks[2]
            return None

    def _remade(self, op: Op, value: Value) -> Value:
        known = next(a for a in self.axes if value in a.axis)
        new = op.clone(lambda v: self._pulled(v) if v in known.axis else v)
        wanted = (*self.chosen.type.dims[:2], *value.type.dims[2:])
        if new.results[0].type.dims != wanted:
            raise IRTypeError(f"{new.kind} gives {new.results[0].type}")
        return self._emit(new).results[0]

    def _taken(self, value: Value) -> Value:
        self.sources.append(value)
        tower, (_, length, *width) = self.tower, value.type.dims
        if length == tower.stream != tower.tokens:
            value = self._emit(Slice(value, 1, tower.front, tower.stream)).results[0]
        shape = (tower.images, as_dim(tower.parts * tower.tokens), *width)
        whole = self._emit(Reshape(value, shape)).results[0]
        return self._emit(TokensTake(whole, self.chosen)).results[0]
