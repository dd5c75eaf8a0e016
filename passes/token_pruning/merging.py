"""Rebuilds `@forward` so that tokens merge within its layers: the stream gets shorter as it goes.

Between attention and what follows it, each layer matches its tokens by their keys and merges pairs.
A later layer weighs each key by how many tokens it stands for. What is read behind the layers has
all its tokens again. Where tokens may merge is said by `mergeable.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from elidir.ir import (
    Attention,
    Body,
    Cast,
    Compare,
    DType,
    Full,
    Function,
    IRTypeError,
    Layer,
    MaskValid,
    Maximum,
    Op,
    Reduce,
    Region,
    Reshape,
    TokensMatch,
    TokensMerge,
    TokensTake,
    Unary,
    Value,
    make_body,
)
from elidir.passes.token_pruning.mergeable import MergingError, Site, protected, site_of


@dataclass(eq=False)
class _Stream:
    """A stream under way: its newest value, sizes, maps so far, and the mask that it came with."""

    value: Value
    sizes: Value
    mask: Value | None
    protect: int
    maps: list[Value] = field(default_factory=list)


@dataclass(eq=False)
class Merging:
    """Builds the function.

    Args:
        region: the region of `@forward`, whose layers are `layer` ops.
        share: the part of its tokens that goes into others in each layer.
        allowed: whether one more layer may change.
        missed: is told of each layer that stays as it was, and why.
    """

    region: Region
    share: float
    allowed: Callable[[Layer], bool]
    missed: Callable[[Layer, str], None]
    ops: list[Op] = field(default_factory=list)
    layers: int = 0

    def function(self, name: str) -> Function:
        """Return the function over merged tokens; `layers` then says in how many they merge."""
        self.values: dict[Value, Value] = {p: p for p in self.region.params}
        self.streams: dict[Value, _Stream] = {}
        self.bodies: dict[Any, Body] = {}
        self.made = {r: op for op in self.region.ops for r in op.results}
        for op in self.region.ops:
            if not (isinstance(op, Layer) and self._layer(op)):
                new = self._emit(op.clone(self.whole))
                self.values.update(zip(op.results, new.results, strict=True))
        results = tuple(self.whole(r) for r in self.region.results)
        return Function(name, Region(self.region.params, tuple(self.ops), results))

    def whole(self, old: Value) -> Value:
        """Return what stands for an old value with all its tokens."""
        if old not in self.values:
            stream = self.streams[old]
            into = reduce(lambda total, new: self._emit(TokensTake(new, total)).result, stream.maps)
            self.values[old] = self._emit(TokensTake(stream.value, into)).result
        return self.values[old]

    def _emit(self, op: Op) -> Op:
        self.ops.append(op)
        return op

    # ---- layers

    def _layer(self, op: Layer) -> bool:
        """Append a layer whose tokens merge, or say why they do not and append nothing."""
        mark = len(self.ops)
        try:
            site = site_of(op.body)
            mask = site.attention.mask
            given = None if mask is None else op.inputs[op.body.region.params.index(mask)]
            stream = self.streams.get(op.inputs[0]) or self._begin(op, given)
            if stream.mask is not given:
                raise MergingError("its mask is not that of the layers before")
            left = [v for v in op.inputs[1:] if v is not given or not stream.maps]
            inputs = (stream.value, *(self.whole(v) for v in left), stream.sizes)
            body = self._body(op, site, inputs, stream)
            if len(body.region.results) == 1 and not stream.maps:
                raise MergingError(f"it has too few tokens to merge {self.share:g} of them")
            if not self.allowed(op):
                raise MergingError("no fuel is left")
        except (MergingError, IRTypeError) as error:
            self._take_back(mark)
            self.missed(op, error.message)
            return False
        names = (op.results[0].name, "into", "sizes")
        new = self._emit(Layer(body, inputs, scope=op.scope, loc=op.loc, names=names))
        stream = replace(stream, value=new.results[0])
        if len(new.results) > 1:
            stream.maps, stream.sizes = [*stream.maps, new.results[1]], new.results[2]
            self.layers += 1
        self.streams[op.results[0]] = stream
        return True

    def _take_back(self, mark: int) -> None:
        """Remove the ops from a mark on, and what they stand for."""
        gone = {r for op in self.ops[mark:] for r in op.results}
        self.values = {old: new for old, new in self.values.items() if new not in gone}
        del self.ops[mark:]

    def _begin(self, op: Layer, mask: Value | None) -> _Stream:
        """Return the stream that enters the first layer that merges: each token is one."""
        dims, made = op.inputs[0].type.dims[:2], None if mask is None else self.made.get(mask)
        if mask is not None and not (isinstance(made, MaskValid) and made.valid.type.dims == dims):
            raise MergingError("its mask says more than which tokens are valid")
        protect = protected(self.region, op.inputs[0])
        if isinstance(made, MaskValid):
            sizes = self._emit(Cast(self.whole(made.valid), DType.I64)).result
        else:
            sizes = self._emit(Full(dims, 1, DType.I64)).result
        return _Stream(self.whole(op.inputs[0]), sizes, mask, protect)

    def _body(self, op: Layer, site: Site, inputs: Sequence[Value], stream: _Stream) -> Body:
        """Return the body over merged tokens, shared by layers whose inputs have one type."""
        key = (id(op.body), tuple(v.type for v in inputs), bool(stream.maps), stream.protect)
        if key not in self.bodies:
            kept = [
                p for p in op.body.region.params if p is not site.attention.mask or not stream.maps
            ]
            names = [*(p.name for p in kept), "sizes"]
            params = [Value(v.type, n) for v, n in zip(inputs, names, strict=True)]
            built = _Inner(dict(zip(kept, params, strict=False)), params[-1], bool(stream.maps))
            region = op.body.region
            results = built.run(region, site, self.share, stream.protect)
            name = f"{op.body.name}.{len(self.bodies)}"
            self.bodies[key] = make_body(name, Region(tuple(params), tuple(built.ops), results))
        return self.bodies[key]


@dataclass(eq=False)
class _Inner:
    """The inside of one layer; `weighed`: its tokens stand for several each."""

    values: dict[Value, Value]
    sizes: Value
    weighed: bool
    ops: list[Op] = field(default_factory=list)

    def run(self, region: Region, site: Site, share: float, protect: int) -> tuple[Value, ...]:
        """Append all ops and return the stream, the map and the new sizes."""
        extra: tuple[Value, ...] = ()
        for op in region.ops:
            changes = self._weights(op) if op is site.attention and self.weighed else {}
            new = self._emit(op.clone(lambda v: self.values.get(v, v), **changes))
            self.values.update(zip(op.results, new.results, strict=True))
            if site.cut in op.results:
                extra = self._merge(site.cut, site.attention.k, share, protect)
        return (self.values[region.results[0]], *extra)

    def _merge(self, cut: Value, keys: Value, share: float, protect: int) -> tuple[Value, ...]:
        """Append what merges at the cut; none if there are too few tokens to merge a part."""
        signal = Reduce(self.values[keys], "mean", (1,))
        match = TokensMatch(signal.result, self.sizes, share, protect, names=("into", "sizes"))
        into, merged = match.results
        if share and merged.type == self.sizes.type:
            return ()
        merge = TokensMerge(self.values[cut], self.sizes, into, merged)
        self.ops += [signal, match, merge]
        self.values[cut] = merge.result
        return into, merged

    def _weights(self, op: Attention) -> dict[str, Value]:
        """Each key counts as often as the tokens it stands for (proportional attention)."""
        many = self._emit(Maximum(self.sizes, 1)).results[0]
        logs = self._emit(Unary(many, "log")).results[0]
        batch, tokens = self.sizes.type.dims
        found = {"bias": self._emit(Reshape(logs, (batch, 1, 1, tokens))).results[0]}
        if op.mask is not None:
            valid = self._emit(Compare(self.sizes, 0, "gt")).results[0]
            found["mask"] = self._emit(MaskValid(valid)).results[0]
        return found

    def _emit(self, op: Op) -> Op:
        self.ops.append(op)
        return op
