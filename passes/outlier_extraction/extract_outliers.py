"""extract-outliers: linear maps run in int8, and the few channels that would spoil it apart.

The grid of a whole input has one static step, so one channel of large values makes it coarse for
all others. mllm-NPU computes such outliers beside the int8 product and adds them (arXiv 2407.05858,
its shadow outlier execution). Which channels leave is decided over the model by calibrated error.
"""

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import Annotated, ClassVar

from elidir.ir import FfnExperts, Layer, Module, Op, resolve, split_bodies
from elidir.passes.base import Context, Invariant, Pass, PassResult
from elidir.passes.exact.dce import sweep
from elidir.passes.exact.fuse_projections import projections_rule
from elidir.passes.exact.fuse_quantize import fuse_quantize
from elidir.passes.observed import LINEAR_INPUTS
from elidir.passes.options import Range, Ratio
from elidir.passes.outlier_extraction.gain import why_not
from elidir.passes.outlier_extraction.plan import MAPS, Wish, make_plan
from elidir.passes.outlier_extraction.rules import ToInt8, take_apart
from elidir.passes.registry import register


@register
@dataclass(frozen=True)
class ExtractOutliers(Pass):
    """Run linear maps in int8, and compute `fraction` of all input channels apart.

    Before::

        %y = linear %x, @w : f32[B, T, 64]

    After (in the table `@w.in_scale: f32[] = literal(0.02)`, `@w.in_columns: i64[2] = literal(3,
    17)`, `@w.apart = columns(@w, @w.in_columns)`, `@w.int8 = quantize(@w, @w.in_columns)`,
    `@w.scales = quantize_scale(@w, @w.in_columns)`)::

        %q, %o = quantize %x, @w.in_scale, columns=@w.in_columns : u8[B, T, 32], f32[B, T, 2]
        %s = linear %o, @w.apart : f32[B, T, 64]
        %y = linear.int8 %q, @w.int8, @w.scales, @w.in_scale, plus=%s : f32[B, T, 64]

    `fraction=none` changes nothing; `fraction=0` is int8 without extraction. A grid ends at `clip`
    times the greatest value that calibration saw beside the outliers; none decides by how much text
    that was. `exclude` takes patterns of module paths or weight names, `head=false` leaves what is
    behind the last layer, `force=true` applies the pass where the cost model sees no gain.
    """

    name = "extract-outliers"
    invariant = Invariant.QUALITY
    needs: ClassVar[tuple[str, ...]] = (LINEAR_INPUTS,)
    neutral: ClassVar = {"fraction": None}

    fraction: Ratio | None = 0.03
    clip: Annotated[float, Range(ge=0.1, le=4)] | None = None
    exclude: tuple[str, ...] = ()
    head: bool = True
    force: bool = False

    def needed(self) -> tuple[str, ...]:
        """Return what calibration must have seen: nothing if nothing is to be done."""
        return () if self.fraction is None else self.needs

    def run(self, module: Module, cx: Context) -> PassResult:
        """Plan over the whole module, rewrite it, and keep that if it can pay."""
        if self.fraction is None:
            return cx.unchanged()
        stay = _made(module) | (frozenset() if self.head else _head(module))
        wanted = _Wanted(self.exclude, stay)
        for op in module.ops():
            if isinstance(op, FfnExperts):
                cx.missed(op, "tokens choose among the experts, whose products stay in floats")
        apart = cx.rewrite(module, take_apart(wanted))
        stacked = cx.rewrite(apart, projections_rule(wanted))
        wish = Wish(self.fraction, self.clip, wanted)
        plan = make_plan(stacked, cx.observation(LINEAR_INPUTS), wish, cx)
        if not plan.choices:
            return PassResult(module, remarks=tuple(cx.remarks))
        new = cx.rewrite(split_bodies(stacked, plan.signature), ToInt8(plan))
        new = fuse_quantize(sweep(new), cx)
        if not self.force and cx.target and (reason := why_not(module, new, cx.target)):
            cx.missed("", reason, remedy="force=true runs it all the same")
            return PassResult(module, remarks=tuple(cx.remarks))
        cx.applied("", plan.summary())
        return cx.result(new)


MATRICES = ("weight", "gate", "up", "down")


@dataclass(frozen=True)
class _Wanted:
    """Which ops may go to int8: none that matches a pattern or reads a weight that stays."""

    exclude: tuple[str, ...]
    stay: frozenset[str]

    def __call__(self, op: Op) -> bool:
        """Return whether one of the op's maps may."""
        maps = (getattr(op, name) for name in MATRICES if hasattr(op, name))
        return not self._excludes(op.loc) and any(not self._stays(w.name) for w in maps)

    def _stays(self, name: str) -> bool:
        return name in self.stay or self._excludes(name)

    def _excludes(self, name: str) -> bool:
        return any(fnmatch(name, pattern) for pattern in self.exclude)


def _made(module: Module) -> frozenset[str]:
    """Return the weights that this pass made for products beside the grid."""
    within = ((layer.scope, w.name) for layer in module.layers() for w in layer.body.weights)
    names = [*within, *(("", name) for name in module.weights)]
    exprs = {name: module.weights[resolve(scope, name)].expr for scope, name in names}
    return frozenset(name for name, expr in exprs.items() if expr and expr.fn == "columns")


def _head(module: Module) -> frozenset[str]:
    """Return the weights of the linear maps behind the last layer, or of the last without one."""
    names: set[str] = set()
    for function in module.functions.values():
        ops, results = function.region.ops, set(function.region.results)
        last = max((i for i, op in enumerate(ops) if isinstance(op, Layer)), default=None)
        behind = [o for o in ops if o.results and o.results[0] in results]
        behind = behind if last is None else list(ops[last + 1 :])
        names.update(w.name for op in behind if isinstance(op, MAPS) for w in op.weights())
    return frozenset(names)
