"""Pictures of coloured digits with questions about one of them, for a small vision-language model.

A picture of 48 x 48 pixels has four to eight digits of distinct colours, most of them in one or two
of its quarters. It is read as LLaVA-NeXT reads: the whole at half the size, then its quarters. The
digits are those of scikit-learn (UCI, 1,797 of 8 x 8 pixels); the last 297 are held out.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

RED, GREEN, BLUE = [1, 0.15, 0.15], [0.15, 1, 0.15], [0.25, 0.35, 1]
YELLOW, PINK, CYAN, ORANGE = [1, 1, 0.1], [1, 0.2, 1], [0.1, 1, 1], [1, 0.6, 0.1]
COLOURS = torch.tensor([RED, GREEN, BLUE, YELLOW, PINK, CYAN, ORANGE, [1, 1, 1]])
SIDE, CELL, PART, PATCH = 48, 8, 24, 4
MOST, LEAST = 8, 4
HELD_OUT = 1500
BOS, IMAGE, DIGIT, COLOUR = 1, 2, 3, 13
"""Token ids: the first of ten digits, the first of eight colours; 0 is padding."""
WORDS = COLOUR + len(COLOURS)


@dataclass(frozen=True, eq=False)
class Pictures:
    """Some pictures: partitions [B, 5, 3, 24, 24], colours and digits of what they show [B, 8].

    `parts` says in which of the quarters 1 to 4 each stands. Of the eight places, those behind a
    picture's `count` say what is not in it.
    """

    pixels: Tensor
    colours: Tensor
    digits: Tensor
    parts: Tensor
    count: Tensor


def digits() -> tuple[Tensor, Tensor]:
    """Return scikit-learn's digits f32[1797, 8, 8] in [0, 1] and what they are, i64[1797]."""
    spec = importlib.util.find_spec("sklearn")
    if spec is None or spec.origin is None:
        raise SystemExit("the digits are scikit-learn's: pip install --no-deps scikit-learn")
    path = Path(spec.origin).parent / "datasets" / "data" / "digits.csv.gz"
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    return table[:, :-1].view(-1, CELL, CELL) / 16, table[:, -1].long()


class Painter:
    """Paints pictures of digits that training may see, or of held-out ones."""

    def __init__(self, seed: int, *, held_out: bool = False) -> None:
        shapes, names = digits()
        part = slice(HELD_OUT, None) if held_out else slice(HELD_OUT)
        self.shapes, self.names = shapes[part], names[part]
        self.random = torch.Generator().manual_seed(seed)

    def paint(self, batch: int) -> Pictures:
        """Return so many new pictures."""
        cells, rows = self._cells(batch), torch.arange(batch)[:, None]
        chosen = torch.randint(len(self.names), (batch, MOST), generator=self.random)
        colours = self._rand(batch, len(COLOURS)).argsort(1)[:, :MOST]
        count = torch.randint(LEAST, MOST + 1, (batch,), generator=self.random)
        shown = (torch.arange(MOST) < count[:, None]).float()
        ink = self.shapes[chosen][:, :, None] * COLOURS[colours][..., None, None]
        side = SIDE // CELL
        grid = torch.zeros(batch, side * side, 3, CELL, CELL)
        grid[rows, cells] = ink * shown[..., None, None, None]
        canvas = grid.view(batch, side, side, 3, CELL, CELL).permute(0, 3, 1, 4, 2, 5)
        canvas = canvas.reshape(batch, 3, SIDE, SIDE)
        canvas = canvas + 0.1 * torch.randn(canvas.shape, generator=self.random)
        parts = 1 + _quarter(side)[cells]
        return Pictures(partitions(canvas), colours, self.names[chosen], parts, count)

    def paint_partitions(self, batch: int) -> tuple[Tensor, Tensor]:
        """Return partitions [B, 3, 24, 24] and the digit of each colour in it, 10 for none [B, 8].

        A digit that is half the size, in the whole picture, counts as well.
        """
        pictures = self.paint(batch)
        part = torch.randint(5, (batch,), generator=self.random)
        shown = torch.arange(MOST) < pictures.count[:, None]
        shown &= (part[:, None] == 0) | (pictures.parts == part[:, None])
        wanted = torch.full((batch, len(COLOURS)), 10)
        wanted.scatter_(1, pictures.colours, pictures.digits.where(shown, torch.tensor(10)))
        return pictures.pixels[torch.arange(batch), part], wanted

    def _rand(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.random)

    def _cells(self, batch: int) -> Tensor:
        """Return distinct cells [B, 8], drawn so that quarters are unlike in what they hold."""
        side = SIDE // CELL
        weight = self._rand(batch, 4).log().neg() ** 2 + 0.01
        keys = self._rand(batch, side * side).log() / weight[:, _quarter(side)]
        return keys.topk(MOST, 1).indices


def _quarter(side: int) -> Tensor:
    """Return in which quarter of the picture each cell lies, 0 to 3."""
    at = torch.arange(side * side)
    return (at // side >= side // 2) * 2 + (at % side >= side // 2)


def partitions(canvas: Tensor) -> Tensor:
    """Return the whole at half the size and the four quarters: [B, 5, 3, 24, 24]."""
    quarters = canvas.unflatten(3, (2, PART)).unflatten(2, (2, PART)).permute(0, 2, 4, 1, 3, 5)
    return torch.cat((avg_pool2d(canvas, 2)[:, None], quarters.flatten(1, 2)), 1)


def questions(pictures: Pictures) -> Tensor:
    """Return colour and digit in turn, i64[B, 16]: a question, its answer, the next question."""
    pairs = torch.stack((COLOUR + pictures.colours, DIGIT + pictures.digits), 2)
    return pairs.flatten(1)
