"""A program over embeddings, from one over token ids: for what stands among words and is no word.

The features of a picture come in the place of some words' embeddings. The table is then read apart,
and all behind it stays as it was, whatever passes made of it.
"""

from elidir.ir import DType, ElidirError, Embed, Function, Region, Tensor, Value, symbol


def over_embeddings(function: Function) -> Function:
    """Return a function whose first parameter is embeddings f[B, N, D] instead of ids i64[B, N].

    Raises:
        ElidirError: ids are read by more than one table.
    """
    region = function.region
    lookup = _lookup(function)
    embeds = Value(lookup.result.type, "embeds")
    mapped = {lookup.result: embeds} | {p: p for p in region.params[1:]}
    ops = []
    for op in region.ops:
        if op is lookup:
            continue
        ops.append(op.clone(mapped.__getitem__))
        mapped.update(zip(op.results, ops[-1].results, strict=True))
    results = tuple(mapped[r] for r in region.results)
    return Function(function.name, Region((embeds, *region.params[1:]), tuple(ops), results))


def embedding_of(function: Function) -> Function:
    """Return the function from ids i64[B, N] to their embeddings that a function begins with."""
    lookup = _lookup(function)
    batch = function.region.params[0].type.dims[0]
    ids = Value(Tensor((batch, symbol("N")), DType.I64), "ids")
    new = Embed(ids, lookup.table)
    return Function("embed", Region((ids,), (new,), (new.result,)))


def _lookup(function: Function) -> Embed:
    """Return the op that alone reads the ids."""
    ids = function.region.params[0]
    readers = [op for op in function.region.ops if ids in op.operands()]
    if len(readers) != 1 or not isinstance(readers[0], Embed):
        kinds = ", ".join(op.kind for op in readers)
        raise ElidirError(
            f"@{function.name} reads its token ids by {kinds or 'nothing'}, not by one table of "
            "embeddings; embeddings cannot be given in their place"
        )
    return readers[0]
