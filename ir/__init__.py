"""The intermediate representation: types, symbols, ops, regions, modules, and their text.

Everything here is immutable data and plain functions over it; nothing here imports torch. Change a
module with `rewrite`, print it with `format_module`, check it with `verify`.
"""

from elidir.ir.decompose import DECOMPOSITIONS, Emitter, decompose, parts_of
from elidir.ir.errors import ElidirError, IRTypeError, ParseError, VerifyError, nearest
from elidir.ir.module import (
    DERIVATIONS,
    Derived,
    Entry,
    Function,
    Module,
    Stage,
    resolve,
)
from elidir.ir.op import (
    OPS,
    Body,
    Field,
    Kind,
    Op,
    Operand,
    Region,
    Scalar,
    Value,
    Weight,
    fields_of,
    op,
)
from elidir.ir.ops import *  # noqa: F403 - the dialect is public as a whole
from elidir.ir.ops import __all__ as _dialect
from elidir.ir.parser import parse_attribute, parse_module, parse_type, split
from elidir.ir.places import cache_folder
from elidir.ir.printer import Printer, fold_module, format_attribute, format_module
from elidir.ir.rewriter import (
    Builder,
    Fuel,
    Rewriter,
    Rule,
    count_uses,
    flatten,
    make_body,
    prune_weights,
    rewrite,
    split_bodies,
    structure,
)
from elidir.ir.symbols import (
    Dim,
    Symbol,
    as_dim,
    ceildiv,
    evaluate,
    format_dim,
    free_symbols,
    parse_dim,
    product,
    symbol,
)
from elidir.ir.types import KV, DType, Mask, Tensor, TokenSet, Type, broadcast, promote
from elidir.ir.verifier import verify

__all__ = [
    "DECOMPOSITIONS",
    "DERIVATIONS",
    "KV",
    "OPS",
    "Body",
    "Builder",
    "DType",
    "Derived",
    "Dim",
    "ElidirError",
    "Emitter",
    "Entry",
    "Field",
    "Fuel",
    "Function",
    "IRTypeError",
    "Kind",
    "Mask",
    "Module",
    "Op",
    "Operand",
    "ParseError",
    "Printer",
    "Region",
    "Rewriter",
    "Rule",
    "Scalar",
    "Stage",
    "Symbol",
    "Tensor",
    "TokenSet",
    "Type",
    "Value",
    "VerifyError",
    "Weight",
    "as_dim",
    "broadcast",
    "cache_folder",
    "ceildiv",
    "count_uses",
    "decompose",
    "evaluate",
    "fields_of",
    "flatten",
    "fold_module",
    "format_attribute",
    "format_dim",
    "format_module",
    "free_symbols",
    "make_body",
    "nearest",
    "op",
    "parse_attribute",
    "parse_dim",
    "parse_module",
    "parse_type",
    "parts_of",
    "product",
    "promote",
    "prune_weights",
    "resolve",
    "rewrite",
    "split",
    "split_bodies",
    "structure",
    "symbol",
    "verify",
    *_dialect,
]
