"""The forms of a report: goldens, well-formed HTML without a network, the same figures in all."""

import csv
import io
import json
import re
from collections.abc import Iterator
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import pytest

from elidir.cost_models import Description, Measured, Report, describe, report, snapshot

GOLDEN = Path(__file__).parent / "golden"
VOID = {"meta", "br", "link", "img", "input", "hr"}
TARGETS = ["p40", "a100", "m2", "npu", "cpu"]


def compare(name: str, text: str, update: bool) -> None:
    file = GOLDEN / name
    if update:
        file.write_text(text)
    assert file.read_text() == text


@pytest.fixture
def small(tiny: Description) -> Report:
    """A report with all that a report can have."""
    module = describe(tiny)
    steps = [snapshot(name, module, "p40", prompt=64) for name in ("input", "fuse")]
    seen = [Measured("p40", "decode", 4e-4, 3e-4, 9e-4, 5, "made up")]
    return report(module, "p40", prompt=64, new=16, waterfall=steps, measured=seen)


def page_without_style(text: str) -> str:
    """Return a page without what is the same in all of them."""
    return re.sub(r"<(style|script)>.*?</\1>", r"<\1></\1>", text, flags=re.DOTALL)


@pytest.mark.parametrize("form", ["html", "markdown", "csv"])
def test_forms_are_golden(small: Report, form: str, request: pytest.FixtureRequest) -> None:
    text = page_without_style(getattr(small, f"to_{form}")())
    compare(f"tiny-p40.{form}", text, request.config.getoption("update"))


class Page(HTMLParser):
    """Checks that tags are balanced, and keeps attributes and the words of each table."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.ids: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value or "" for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.rows and self.rows[-1] and {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data


@pytest.fixture(params=["many", "alone", "large", "bare", "small"])
def any_report(request: pytest.FixtureRequest, small: Report, tiny: Description) -> Report:
    if request.param == "bare":
        return report(describe(tiny), ["npu", "p40"], prompt=1, new=0)
    return small if request.param == "small" else shipped(request.param)


@cache
def shipped(kind: str) -> Report:
    """A report of a model and of targets that ship, made once for all tests."""
    if kind == "alone":
        return report("llama-3-8b", "a100", prompt=4096, batch=4, dtype="i8")
    return report({"many": "smollm2-135m", "large": "llama-3-70b"}[kind], TARGETS)


def test_pages_are_well_formed_and_need_no_network(any_report: Report) -> None:
    text = any_report.to_html()
    page = Page(text)
    assert not page.open
    assert len(page.ids) == len(set(page.ids))
    linked = [v for _, name, v in page.attributes if name in ("src", "href", "xlink:href")]
    assert linked
    assert {v.removeprefix("#") for v in linked} == set(page.ids)
    assert not re.search(r"(https?:)?//\w|@import|url\(", page_without_style(text).lower())
    style = "".join(re.findall(r"<style>(.*?)</style>", text, re.DOTALL))
    assert not re.search(r"https?:|@import|url\(|@font-face", style)
    assert "nan" not in re.findall(r'"([^"]*)"', text.lower())
    assert not re.search(r'[="\s](nan|inf|-inf)[",\s]', text.lower())


def test_shapes_stay_in_their_picture(any_report: Report) -> None:
    for view, inside in re.findall(r'viewBox="0 0 ([\d. ]+)"(.*?)</svg>', any_report.to_html()):
        width, height = map(float, view.split())
        for x in re.findall(r' (?:x|x1|x2|cx)="([\d.-]+)"', inside):
            assert 0 <= float(x) <= width
        for y in re.findall(r' (?:y|y1|y2|cy)="([\d.-]+)"', inside):
            assert 0 <= float(y) <= height


def test_colours_come_from_the_theme(small: Report) -> None:
    text = small.to_html()
    style = text[text.index("<style>") : text.index("</style>")]
    light, _, dark = style.partition("prefers-color-scheme: dark")
    names = set(re.findall(r"(--[\w-]+):", light))
    assert names
    assert names == set(re.findall(r"(--[\w-]+):", dark))
    assert set(re.findall(r"var\((--[\w-]+)\)", style)) <= names
    assert not re.search(r'(fill|stroke|color)="', text)


def test_every_row_of_times_has_bound_and_confidence(any_report: Report) -> None:
    head: list[str] = []
    times = 0
    for row in Page(any_report.to_html()).rows:
        if not any(re.match(r"[\d.]+ (s|ms|us|ns)$", cell) for cell in row):
            head = row if "bound" in row else head
            continue
        cells = dict(zip(head, row, strict=True))
        assert cells["bound"] in ("compute", "memory", "launch", "transfer")
        assert cells["confidence"] in ("low", "medium", "high")
        times += 1
    assert times > 10


def seconds_of(item: object) -> Iterator[tuple[float, str, str]]:
    """Yield every time of a report's data, with its bound and its confidence."""
    if isinstance(item, list):
        for inner in item:
            yield from seconds_of(inner)
    if isinstance(item, dict):
        if "seconds" in item:
            yield item["seconds"], item["bound"], item["confidence"]
        for inner in item.values():
            yield from seconds_of(inner)


def test_csv_has_every_time_of_the_json(any_report: Report) -> None:
    wanted = set(seconds_of(json.loads(any_report.to_json())))
    rows = list(csv.DictReader(io.StringIO(any_report.to_csv())))
    timed = [r for r in rows if r["seconds"]]
    found = {(float(f"{float(r['seconds']):.6g}"), r["bound"], r["confidence"]) for r in timed}
    assert wanted == found


def test_csv_has_every_number_that_costs_rest_on(small: Report) -> None:
    rows = csv.DictReader(io.StringIO(small.to_csv()))
    found = {r["field"]: r for r in rows if r["table"] == "numbers"}
    assert found["agents.gpu.dram_gb_per_s"]["value"] == "346"
    assert found["agents.gpu.dram_gb_per_s"]["unit"] == "GB/s"
    assert found["power.memory_bound_w"]["value"] == ""
    assert all(r["kind"] and r["source"] for r in found.values())


def test_markdown_tables_are_rectangular(any_report: Report) -> None:
    width = 0
    for line in any_report.to_markdown().splitlines():
        cells = len(re.findall(r"(?<!\\)\|", line))
        assert not (cells and width) or cells == width
        width = cells


def test_names_are_escaped(tiny: Description) -> None:
    odd = report(describe(tiny), {"base": "p40", "title": "<b>|x|</b>"}, prompt=64, new=2)
    assert "<b>|x|" not in odd.to_html() + odd._repr_html_()
    assert "&lt;b&gt;|x|" in odd.to_html()
    assert "\\<b>\\|x\\|" in odd.to_markdown()


def test_a_notebook_shows_the_main_figures(small: Report) -> None:
    page = Page(small._repr_html_())
    assert [row[:2] for row in page.rows[1:]] == [
        ["p40", "prefill"],
        ["p40", "decode"],
        ["p40", "answer"],
    ]


def test_measured_stands_beside_predicted(small: Report) -> None:
    (found,) = small.targets[0].measured
    decode = small.targets[0].phases[1]
    assert (found.seconds, found.bound) == (decode.seconds, decode.bound)
    assert found.ratio == pytest.approx(decode.seconds / 4e-4)
    assert "measured" in small.to_text()


def test_the_timeline_ends_where_the_answer_does(any_report: Report) -> None:
    for t in any_report.targets:
        assert t.timeline[-1].seconds == pytest.approx(t.total.seconds)
        assert max(m.memory.total for m in t.timeline) == t.total.peak_bytes
        assert [m.tokens for m in t.timeline] == sorted({m.tokens for m in t.timeline})
        assert [m.memory.kv for m in t.timeline] == sorted(m.memory.kv for m in t.timeline)
