"""Vision-language models in two parts: from pixels to features, and a language model over both.

`Pictured.of` takes a model of transformers apart, by what its parts are called there: tower,
projector, language model. What becomes of features between the two, padding that is cut off and
rows that end in a newline, is asked of the model itself, with numbers in the place of features.
"""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from elidir.frontends.signature import CaptureError
from elidir.frontends.untouched import is_hugging_face, untouched

PARTS = ("vision_tower", "multi_modal_projector", "language_model")
NEWLINE = -1
"""Stands in a layout for what the model puts at the end of a row."""


class Vision(nn.Module):
    """From pixels [images, partitions, C, H, W] to features [images * partitions, N, D]."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.vision_tower, self.multi_modal_projector = (
            inner.vision_tower,
            inner.multi_modal_projector,
        )
        layers = inner.config.vision_feature_layer
        self.layers = [layers] if isinstance(layers, int) else list(layers)
        self.first = 1 if inner.config.vision_feature_select_strategy == "default" else 0

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the features of every partition."""
        found = self.vision_tower(pixels.flatten(0, 1), output_hidden_states=True, return_dict=True)
        states = [found.hidden_states[layer][:, self.first :] for layer in self.layers]
        whole = states[0] if len(states) == 1 else torch.cat(states, dim=-1)
        features: Tensor = self.multi_modal_projector(whole)
        return features


@dataclass(frozen=True)
class Shape:
    """How a picture is cut: rows and columns of sub-images; None if it has none."""

    grid: tuple[int, int] | None

    @property
    def partitions(self) -> int:
        """The whole picture, and its sub-images."""
        return 1 if self.grid is None else 1 + self.grid[0] * self.grid[1]


@dataclass(frozen=True, eq=False)
class Pictured:
    """A vision-language model taken apart.

    Args:
        language: a causal language model of transformers, which shares the model's weights.
        vision: see `Vision`.
        image: the token id that stands for a feature in a prompt.
        side: pixels of a partition, down and across, and channels.
        newline: what ends a row of features [D], None where nothing does.
        output: makes the model's own output of logits and the features in the prompt.
        anyres: shape and layout of a picture, None for a model of one partition a picture.
    """

    language: Any
    vision: Vision
    image: int
    side: tuple[int, int, int]
    newline: Tensor | None
    output: Callable[[Tensor, Tensor], Any]
    anyres: "Anyres | None"

    @classmethod
    def of(cls, model: Any) -> "Pictured | None":
        """Take a model apart; None if it is of another kind.

        That it is not is found out: features are made of a random picture here and by the model.
        """
        inner = getattr(model, "model", None)
        if not is_hugging_face(model) or not all(hasattr(inner, name) for name in PARTS):
            return None
        vision = getattr(model.config, "vision_config", None)
        size = getattr(vision, "image_size", None)
        if size is None or not hasattr(model.config, "vision_feature_layer"):
            return None
        down, across = (size, size) if isinstance(size, int) else size
        found = cls(
            _language(model),
            Vision(inner),
            int(model.config.image_token_id),
            (getattr(vision, "num_channels", 3), down, across),
            getattr(inner, "image_newline", None),
            _output(model),
            Anyres.of(inner),
        )
        return found if _plain_words(model) and found.fits(inner) else None

    @property
    def usual(self) -> tuple[int, int]:
        """Pixels down and across of a picture as the model may be given."""
        if self.anyres is None:
            return self.side[1:]
        down, across = self.anyres.inner.config.image_grid_pinpoints[0]
        return down, across

    def fits(self, inner: Any) -> bool:
        """Whether the model makes the same features, in the same order, of a random picture."""
        size = torch.tensor([self.usual])
        (shape,) = self.shapes(size, 1)
        pixels = torch.rand(self.example(shape)[:1].shape).to(self.example(shape))
        given = {} if self.anyres is None else {"image_sizes": size}
        own = pixels if self.anyres is not None else pixels[:, 0]
        with untouched(inner), torch.no_grad():
            try:
                wanted = inner.get_image_features(own, return_dict=True, **given).pooler_output[0]
                features = self.vision(pixels)
                layout = self.layout(shape, self.usual, features.shape[1])
            except (AttributeError, RuntimeError, TypeError, ValueError):
                return False
        rows = features.flatten(0, 1)
        if self.newline is not None:
            rows = torch.cat((rows, self.newline.detach()[None]))
        return wanted.shape == rows[layout].shape and torch.allclose(
            wanted, rows[layout], rtol=1e-3, atol=1e-4
        )

    def shapes(self, sizes: Tensor | None, count: int) -> list[Shape]:
        """Return the shape of each of so many pictures, of these sizes i64[count, 2]."""
        if self.anyres is None:
            return [Shape(None)] * count
        if sizes is None or len(sizes) != count:
            raise CaptureError(f"give image_sizes= of each of the {count} pictures")
        return [self.anyres.shape(size) for size in torch.as_tensor(sizes).tolist()]

    def layout(self, shape: Shape, size: Any, tokens: int) -> Tensor:
        """Return which token stands at each place that a picture has in a prompt, or `NEWLINE`."""
        if self.anyres is None:
            return torch.arange(tokens)
        return self.anyres.layout(shape, size, tokens)

    def example(self, shape: Shape) -> Tensor:
        """Return pixels of two pictures."""
        dtype = next(self.vision.parameters()).dtype
        return torch.zeros(2, shape.partitions, *self.side, dtype=dtype)


@dataclass(frozen=True, eq=False)
class Anyres:
    """Pictures of any resolution, as LLaVA-NeXT cuts them."""

    inner: Any
    module: Any

    @classmethod
    def of(cls, inner: Any) -> "Anyres | None":
        """Return how a model cuts pictures, None if it does not."""
        if not hasattr(inner.config, "image_grid_pinpoints"):
            return None
        return cls(inner, sys.modules[type(inner).__module__])

    def shape(self, size: Sequence[int]) -> Shape:
        """Return how a picture of so many pixels, down and across, is cut."""
        config = self.inner.config
        part = config.vision_config.image_size
        grid = self.module.get_anyres_image_grid_shape(
            tuple(size), config.image_grid_pinpoints, part
        )
        return Shape((int(grid[0]), int(grid[1])))

    def layout(self, shape: Shape, size: Any, tokens: int) -> Tensor:
        """Return the layout of a picture, from what the model makes of numbers."""
        count = shape.partitions * tokens
        numbers = torch.arange(count, dtype=torch.float64).view(shape.partitions, tokens, 1)
        packed, _ = self.inner.pack_image_features(
            [numbers],
            torch.as_tensor(size)[None],
            vision_feature_select_strategy=self.inner.config.vision_feature_select_strategy,
            image_newline=torch.tensor([float(NEWLINE)], dtype=torch.float64),
        )
        return packed[0][:, 0].long()


def _plain_words(model: Any) -> bool:
    """Whether embeddings are the rows of a table as they are: else features would not fit there."""
    words = model.get_input_embeddings()
    ids = torch.arange(2, device=words.weight.device)
    with torch.no_grad():
        return torch.equal(words(ids), words.weight[ids])


def _language(model: Any) -> Any:
    """Return the causal language model of transformers that holds a model's own modules."""
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        language = AutoModelForCausalLM.from_config(model.config.get_text_config())
    setattr(language, language.base_model_prefix, model.model.language_model)
    language.lm_head = model.lm_head
    language.generation_config = model.generation_config
    return language.train(model.training)


def _output(model: Any) -> Callable[[Tensor, Tensor], Any]:
    """Return what makes the model's own output; a tuple of logits where its kind is not known."""
    module = sys.modules[type(model).__module__]
    name = type(model).__name__.replace("ForConditionalGeneration", "CausalLMOutputWithPast")
    kind = getattr(module, name, None)
    if kind is None:
        return lambda logits, features: (logits,)
    return lambda logits, features: kind(logits=logits, image_hidden_states=features)
