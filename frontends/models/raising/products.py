"""Einstein sums over two operands: `linear` where one is a weight, `matmul` where none is.

Operands are permuted and reshaped so that one matrix product computes the sum, then back. A sum
that is no such product gives None, and its op stays opaque.
"""

from elidir.frontends.raising.importer import Importer
from elidir.ir import Dim, Linear, MatMul, Permute, Reshape, Value, Weight, product


def linear_einsum(
    m: Importer, x: Value, left: str, weight: Weight, right: str, out: str
) -> Value | None:
    """Return x * weight as one linear map, or None if they share a batch label."""
    shared = [c for c in left if c in right]
    if any(c in out for c in shared) or len(set(left)) < len(left) or len(set(right)) < len(right):
        return None
    rows = [c for c in left if c not in right]
    cols = [c for c in right if c not in left]
    if not rows or set(out) != {*rows, *cols}:
        return None
    size = dict(zip(left, x.type.dims, strict=True)) | dict(
        zip(right, weight.type.dims, strict=True)
    )
    arranged = _arranged_weight(m, weight, right, cols, shared)
    flat = _arrange(m, x, left, [*rows, *shared], (*(size[c] for c in rows), _total(size, shared)))
    y = m.emit(Linear(flat, arranged))
    y = m.emit(Reshape(y, shape=tuple(size[c] for c in (*rows, *cols))))
    return _permuted(m, y, [*rows, *cols], out)


def _arranged_weight(
    m: Importer, weight: Weight, labels: str, cols: list[str], shared: list[str]
) -> Weight:
    """Return the weight as [outputs, inputs]; the same weight if it is so already."""
    order = [labels.index(c) for c in (*cols, *shared)]
    if order == list(range(len(labels))) and len(cols) == len(shared) == 1:
        return weight
    tensor = m.fetch(weight).permute(order)
    rows = 1
    for c in cols:
        rows *= tensor.shape[cols.index(c)]
    return m.add_weight(f"{weight.name}.linear", tensor.reshape(rows, -1).contiguous())


def matrix_einsum(m: Importer, a: Value, b: Value, left: str, right: str, out: str) -> Value | None:
    """Return a * b as a batched matrix product, or None if it is none."""
    batch = [c for c in left if c in right and c in out]
    inner = [c for c in left if c in right and c not in out]
    rows = [c for c in left if c not in right]
    cols = [c for c in right if c not in left]
    if not inner or set(out) != {*batch, *rows, *cols}:
        return None
    size = dict(zip(left, a.type.dims, strict=True)) | dict(zip(right, b.type.dims, strict=True))
    lead = tuple(size[c] for c in batch)
    x = _arrange(
        m, a, left, [*batch, *rows, *inner], (*lead, _total(size, rows), _total(size, inner))
    )
    y = _arrange(
        m, b, right, [*batch, *inner, *cols], (*lead, _total(size, inner), _total(size, cols))
    )
    z = m.emit(MatMul(x, y))
    z = m.emit(Reshape(z, shape=tuple(size[c] for c in (*batch, *rows, *cols))))
    return _permuted(m, z, [*batch, *rows, *cols], out)


def _total(size: dict[str, Dim], labels: list[str]) -> Dim:
    return product(tuple(size[c] for c in labels))


def _arrange(m: Importer, x: Value, labels: str, order: list[str], shape: tuple[Dim, ...]) -> Value:
    return m.emit(Reshape(_permuted(m, x, list(labels), "".join(order)), shape=shape))


def _permuted(m: Importer, x: Value, labels: list[str], out: str) -> Value:
    order = tuple(labels.index(c) for c in out)
    return x if order == tuple(range(len(order))) else m.emit(Permute(x, order=order))
