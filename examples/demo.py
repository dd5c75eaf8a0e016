"""SmolLM2-135M through the whole compiler: what was found and done, text, int8, predicted cost.

Run by `make demo`. Every figure printed is measured here, in this run: so the model is compiled
anew each time, not taken from the cache on disk. The cost report at the end is a prediction, and
says what it rests on.
"""

import tempfile
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import elidir
from elidir.backends.cpu import write_host
from elidir.cost_models import Report, measured_file
from elidir.frontends import load

QUESTIONS = ("What is the capital of France?", "Why is the sky blue? Answer in one sentence.")
PROMPT = "The history of the Roman Empire begins with"
NEW = 32
TARGETS = ("p40", "a100", "m2", "npu")
SMALL = "lossless, extract-outliers"
TEXT = Path(__file__).parents[1] / "LICENSE"
REPORT = Path("build") / "demo-report.html"

console = Console(width=100, highlight=False)


def heading(text: str) -> None:
    """Print a heading."""
    console.print(f"\n[bold]{text}[/bold]\n{'-' * len(text)}")


class Printer:
    """A streamer that prints the text of new tokens as they come."""

    def __init__(self, tokenizer: object) -> None:
        self.tokenizer, self.tokens, self.shown = tokenizer, [], ""
        self.prompt = True

    def put(self, value: torch.Tensor) -> None:
        """Print what the tokens of a step add to the text; the prompt is not shown."""
        if self.prompt:
            self.prompt = False
            return
        self.tokens += value.tolist()
        text = self.tokenizer.decode(self.tokens, skip_special_tokens=True)
        console.print(text[len(self.shown) :], end="", markup=False)
        self.shown = text

    def end(self) -> None:
        """End the line."""
        console.print()


def ask(fast: elidir.Compiled, tokenizer: object, question: str) -> None:
    """Print a question and the model's answer."""
    messages = [{"role": "user", "content": question}]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(text, return_tensors="pt").input_ids
    console.print(f"\n> {question}", markup=False)
    fast.generate(ids, max_new_tokens=60, do_sample=False, streamer=Printer(tokenizer))


def timed(model: object, ids: torch.Tensor) -> tuple[torch.Tensor, float]:
    """Return greedy tokens, and new tokens in a second."""
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False}
    model.generate(ids, max_new_tokens=2, **options)
    started = time.perf_counter()
    out = model.generate(ids, max_new_tokens=NEW, min_new_tokens=NEW, **options)
    return out, NEW / (time.perf_counter() - started)


def _first(found: torch.Tensor, wanted: torch.Tensor) -> str:
    """Say where tokens begin to differ from transformers'."""
    at = int((found != wanted).int().argmax())
    return f"token {at} is {int(found[0, at])}, and transformers' {int(wanted[0, at])}"


def compare(model: object, fast: elidir.Compiled, tokenizer: object) -> None:
    """Print whether tokens are those of transformers, and the speed of both."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    wanted, eager = timed(model, ids)
    found, ours = timed(fast, ids)
    same = "identical to transformers'" if torch.equal(found, wanted) else _first(found, wanted)
    console.print(f"{NEW} greedy tokens after {PROMPT!r}: {same}", markup=False)
    ratio = f"x{ours / eager:.2f}"
    console.print(f"transformers {eager:.1f} tokens/s, elidir {ours:.1f} tokens/s, {ratio}")


def save_and_load(fast: elidir.Compiled, tokenizer: object) -> None:
    """Print the size of the saved model, the time to load it, and whether it answers the same."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    with tempfile.TemporaryDirectory() as place:
        fast.save(Path(place) / "model", tokenizer=tokenizer)
        size = sum(p.stat().st_size for p in (Path(place) / "model").iterdir())
        started = time.perf_counter()
        again = elidir.load(Path(place) / "model")
        seconds = time.perf_counter() - started
        same = torch.equal(again(ids).logits, fast(ids).logits)
    told = "the same to the bit" if same else "NOT the same"
    console.print(f"{size / 1e6:.0f} MB on disk, loaded in {seconds:.2f} s; logits: {told}")


def cost_table(dense: Report, small: Report) -> Table:
    """Return what two programs are predicted to take on each target, and what bounds them."""
    table = Table("target", "phase", "dense", "int8", "ratio", "bound", "confidence")
    for one, other in zip(dense.targets, small.targets, strict=True):
        for a, b in zip(one.phases, other.phases, strict=True):
            times = (f"{x.seconds * 1e3:.2f} ms" for x in (a, b))
            words = (x.name.lower() for x in (b.bound, b.confidence))
            table.add_row(one.target, a.name, *times, f"x{b.seconds / a.seconds:.2f}", *words)
    return table


def dense_against_int8(dense: elidir.Compiled, tokenizer: object) -> Report:
    """Print speed and quality of int8 with outliers apart, and its cost; returns its report."""
    small = elidir.compile("smollm2", pipeline=SMALL)
    console.print(small.quality(TEXT, most=2).to_text(), markup=False)
    ask(small, tokenizer, QUESTIONS[0])
    request = {"targets": TARGETS, "prompt": 512, "new": 128}
    report = small.report(**request)
    console.print()
    console.print(cost_table(dense.report(**request), report))
    return report


def measure() -> None:
    """Measure this host, once: a pass is left out where its cost model says that it cannot pay."""
    if not measured_file("cpu").exists():
        heading("This host, measured once")
        console.print(f"written to {write_host()}", markup=False)


def main() -> None:
    """Run the demo."""
    measure()
    heading("Load and compile SmolLM2-135M-Instruct (float32)")
    loaded = load("smollm2")
    console.print(f"loaded in {loaded.seconds:.1f} s")
    fast = elidir.compile(loaded.model)
    for stage, seconds in fast.stats["seconds"].items():
        console.print(f"{stage:<16}{seconds:6.2f} s")
    heading("The program as raised: thirty layers are one body")
    text = fast.history[0][1]
    console.print(text[text.index("  body @") :], markup=False, soft_wrap=True)
    heading("Text")
    for question in QUESTIONS:
        ask(fast, loaded.tokenizer, question)
    heading("Beside transformers, in this run")
    compare(loaded.model, fast, loaded.tokenizer)
    heading("Saved and loaded")
    save_and_load(fast, loaded.tokenizer)
    heading("Dense against int8 with its outliers extracted, on the text of the licence")
    small = dense_against_int8(fast, loaded.tokenizer)
    heading("What each pass did")
    console.print(fast.explain(), markup=False, soft_wrap=True)
    heading("Predicted cost")
    report = fast.report(TARGETS, prompt=512, new=128).to_text()
    console.print(report, markup=False, soft_wrap=True)
    REPORT.parent.mkdir(exist_ok=True)
    REPORT.write_text(small.to_html(), encoding="utf-8")
    console.print(f"The int8 program's report as a page: {REPORT}")


if __name__ == "__main__":
    main()
