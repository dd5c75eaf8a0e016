"""The bundled text opens as a conversation where the tokenizer knows one."""

from types import SimpleNamespace

import torch

from elidir.frontends.calibration.feeds import bundled_data, bundled_text


def _encode(text: str) -> list[int]:
    return [ord(c) % 251 for c in text]


def test_half_of_the_windows_open_as_a_chat_does() -> None:
    tokenizer = SimpleNamespace(
        template="{{ messages }}", encode=_encode, encode_chat=lambda text: [7, 8, 9]
    )
    windows = bundled_data(tokenizer, positions=64)
    count = len(windows) // 2
    assert windows.shape == (2 * count, 64)
    assert windows[:count, :3].tolist() == [[7, 8, 9]] * count
    assert torch.equal(windows[:count, 3:], windows[count:, :-3])


def test_without_a_template_it_is_the_text() -> None:
    assert bundled_data(None) == bundled_text()
