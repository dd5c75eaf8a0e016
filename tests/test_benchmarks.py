"""The benchmark's clockwork, on peers whose speed is known: what is timed, compared and reported.

A wrong ratio would go unnoticed in a table of real peers. No peer's library is loaded here: the
peers are made up, and the one worker that is started is asked for a module that does not exist.
"""

import time
from collections.abc import Iterator

import pytest

from benchmarks.bench import Row, Run, agreement, baseline, speed_ups, table
from benchmarks.model import STRIDE, prompt
from benchmarks.peers import Entry
from benchmarks.protocol import Request, measure
from benchmarks.session import PeerError, Session, start

EAGER = Entry("transformers_eager", "float32")
FAST = Entry("made_up", "float32")


class Clockwork:
    """A peer that takes 20 ms for a prompt and 5 ms for each token after the first."""

    def prefill(self, prompt: list[int]) -> None:
        time.sleep(0.02)

    def tokens(self, prompt: list[int], new: int) -> Iterator[int]:
        self.prefill(prompt)
        for token in range(new):
            yield token
            time.sleep(0.005)


def rows(entry: Entry, seconds: list[float], tokens: list[int]) -> list[Row]:
    return [Row(entry.name, "decode-64", i, s, tokens) for i, s in enumerate(seconds)]


def test_prefill_is_timed_whole() -> None:
    assert measure(Clockwork(), Request([1, 2])).seconds >= 0.02


def test_decode_is_timed_from_its_first_token() -> None:
    sample = measure(Clockwork(), Request([1, 2], new=11))
    assert sample.tokens == list(range(11))
    assert sample.seconds >= 0.05
    assert sample.rate == pytest.approx(10 / sample.seconds)


def test_a_decode_of_one_token_is_refused() -> None:
    with pytest.raises(RuntimeError, match="asked for 1 tokens, got 1"):
        measure(Clockwork(), Request([1], new=1))


def test_ratios_are_taken_within_a_repeat() -> None:
    data = rows(EAGER, [1.0, 4.0], [1]) + rows(FAST, [0.5, 1.0], [1])
    assert speed_ups(data, FAST, "decode-64") == [2.0, 4.0]


def test_agreement_counts_tokens_before_the_first_difference() -> None:
    data = rows(EAGER, [1.0], [1, 2, 3, 4]) + rows(FAST, [1.0], [1, 9, 3, 4])
    assert agreement(data, FAST) == "25%"
    assert agreement(data, EAGER) == "100%"


@pytest.mark.parametrize(
    ("format", "dtype"), [("float32", "float32"), ("bf16", "bfloat16"), ("q4_1", "float32")]
)
def test_a_row_is_compared_with_eager_of_its_dtype(format: str, dtype: str) -> None:
    assert baseline(Entry("llama_cpp", format)) == f"transformers-eager/{dtype}"


def test_a_table_without_the_baseline_has_figures_and_no_ratios(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from rich.console import Console

    run = Run([Session(FAST, None)], {}, rows(FAST, [0.1], [1]))
    Console(width=160).print(table(run))
    assert "10.0 tok/s │" in capsys.readouterr().out


def test_prompts_start_elsewhere_in_each_repeat(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.model.prose", lambda gguf: tuple(range(200)))
    assert prompt("", 3, 0) == [0, 1, 2]
    assert prompt("", 3, 2) == [2 * STRIDE, 2 * STRIDE + 1, 2 * STRIDE + 2]
    with pytest.raises(ValueError, match="has 200 in all"):
        prompt("", 201, 0)


def test_a_peer_without_an_environment_says_how_to_get_one() -> None:
    with pytest.raises(PeerError, match="make bench"):
        start(Entry("made_up", "float32", ".venv-nowhere"), "", 1)


def test_a_peer_that_cannot_be_imported_says_so() -> None:
    with pytest.raises(PeerError, match="No module named 'benchmarks"):
        start(FAST, "", 1)
