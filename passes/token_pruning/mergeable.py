"""Where tokens may merge: in which layers, at which value of each, and which tokens must not.

A layer takes part if attention over its own tokens is all that mixes them and if nothing in it says
where a token stands: of two that are one from there on, neither place would be right.
"""

from dataclasses import dataclass

from elidir.ir import Attention, Body, ElidirError, Opaque, Region, Slice, Tensor, Value
from elidir.passes.analyses.residual_stream import stream_segments
from elidir.passes.analyses.token_axis import token_axes


class MergingError(ElidirError):
    """Why the tokens of a layer cannot merge."""


@dataclass(frozen=True, eq=False)
class Site:
    """Where tokens merge in a body: by the keys of its attention, at a value of the stream."""

    attention: Attention
    cut: Value


def site_of(body: Body) -> Site:
    """Return where the tokens of a layer can merge; raises `MergingError` if they cannot."""
    region, stream = body.region, body.region.params[0]
    if (
        not isinstance(stream.type, Tensor)
        or len(stream.type.dims) != 3
        or len(region.results) != 1
    ):
        raise MergingError("it is more than one stream of tokens")
    attention = _attention(region, stream)
    tokens = stream.type.dims[1]
    for value in region.params[1:]:
        if value is not attention.mask and tokens in value.type.dims:
            raise MergingError(f"{value!r} has a number for each token, which two would not share")
    if opaque := next((op for op in region.ops if isinstance(op, Opaque)), None):
        raise MergingError(f"{opaque.target} may be given a shape, which would change")
    return Site(attention, next(s.end for s in stream_segments(region, stream) if s.mixes))


def _attention(region: Region, stream: Value) -> Attention:
    """Return the attention that alone mixes the tokens of a stream."""
    found = token_axes(region, {stream: 1})
    for mixer in found.mixers:
        if not isinstance(mixer.op, Attention):
            raise MergingError(f"{mixer.op.kind}: {mixer.reason}")
    mixers = [m.op for m in found.mixers if isinstance(m.op, Attention)]
    if len(mixers) != 1:
        raise MergingError(f"it has {len(mixers)} attentions over its tokens")
    (op,) = mixers
    if any(found.axis.get(v) != 2 for v in (op.q, op.k, op.v)):
        raise MergingError("its keys are not the tokens of its own stream")
    if op.bias is not None:
        raise MergingError("its attention adds a bias, which two tokens would not share")
    if op.mask not in (None, *region.params):
        raise MergingError("its mask is made inside of the layer")
    return op


def protected(region: Region, stream: Value) -> int:
    """Return how many tokens at the front must not merge: one behind them is read by itself.

    Raises `MergingError` if the place of such a token is not known.
    """
    behind = next((i + 1 for i, op in enumerate(region.ops) if stream in op.results), 0)
    ops = region.ops[behind:]
    axes = token_axes(Region((stream,), ops, region.results), {stream: 1}).axis
    slices = [op for op in ops if isinstance(op, Slice) and op.axis == axes.get(op.x)]
    alone = [op for op in slices if op.stop - op.start == 1]
    if lost := next((op for op in alone if not isinstance(op.start, int)), None):
        raise MergingError(f"{lost.loc or lost.kind} reads a token whose place is not known")
    return max((op.start + 1 for op in alone if isinstance(op.start, int)), default=0)
