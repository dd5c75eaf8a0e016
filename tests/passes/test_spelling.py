"""Pipelines as text, YAML and Python objects: each spelling gives the others back.

What cannot be read or is out of range is refused when the pipeline is made, with the nearest name
and the options there are.
"""

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from elidir.passes import Fixpoint, Pass, Pipeline, PipelineError
from elidir.passes.exact import Canonicalize, Cse, Dce
from tests.passes.samples import Picky, Prune, Scorer, registered


@pytest.fixture(autouse=True, scope="module")
def samples() -> Iterator[None]:
    with registered():
        yield


PRUNES = st.builds(
    Prune,
    keep=st.floats(0, 1),
    at=st.lists(st.integers()).map(tuple) | st.just("calibrated"),
    scorer=st.sampled_from(Scorer),
    title=st.text()
    | st.sampled_from(["true", "None", "1", "1e5", "inf", "nan", 'a "b" \\', "{a}"]),
    revive=st.booleans(),
    limit=st.integers(1) | st.none(),
)
PASSES: st.SearchStrategy[Pass] = PRUNES | st.sampled_from([Cse(), Dce(), Picky(layer=3)])
STEPS = st.recursive(
    PASSES,
    lambda inner: st.builds(Fixpoint, st.integers(1, 9), st.lists(inner, min_size=1).map(tuple)),
    max_leaves=5,
)
PIPELINES = st.lists(STEPS).map(lambda steps: Pipeline(tuple(steps)))


@settings(max_examples=50)
@given(PIPELINES)
def test_the_three_spellings_round_trip(pipeline: Pipeline) -> None:
    text, yaml = str(pipeline), pipeline.to_yaml()
    assert Pipeline.parse(text) == pipeline == Pipeline.from_yaml(yaml)
    assert str(Pipeline.from_yaml(yaml)) == text
    assert Pipeline.parse(text).to_yaml() == yaml


def test_text_shows_only_what_differs_from_the_defaults() -> None:
    step = Prune(keep=0.5, at=(15, 20, 25), scorer=Scorer.KEY_NORM, title="two words", limit=None)
    assert str(step) == 'prune{keep=0.5 at=(15, 20, 25) scorer="key norm" title="two words"}'
    assert (
        str(Pipeline((Fixpoint(4, (Canonicalize(), Cse())),))) == "fixpoint[4](canonicalize, cse)"
    )


def test_options_are_converted_to_their_types() -> None:
    (step,) = Pipeline.parse("prune{keep=1 at=(3) scorer=last-row limit=none revive=false}").steps
    assert step == Prune(keep=1.0, at=(3,), scorer=Scorer.LAST_ROW, revive=False)
    assert isinstance(step, Prune)
    assert type(step.keep) is float


def test_yaml_extends_a_preset() -> None:
    lossless = Pipeline.of("lossless")
    listed = Pipeline.from_yaml("- extends: lossless\n- prune: {keep: 0.5}\n")
    mapped = Pipeline.from_yaml("extends: lossless\npasses: [{prune: {keep: 0.5}}]\n")
    assert listed == mapped == Pipeline((*lossless.steps, Prune(keep=0.5)))
    assert Pipeline.of("lossless, prune{keep=0.5}") == listed


def test_a_pipeline_comes_from_many_things(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("- cse\n- dce\n")
    wanted = Pipeline((Cse(), Dce()))
    for spec in ("cse, dce", file, [Cse(), "dce"], ["cse", {"dce": None}], wanted):
        assert Pipeline.of(spec) == wanted
    assert Pipeline.of(Cse()) == Pipeline((Cse(),))


WRONG = {
    "prun": "no pass or preset 'prun'; did you mean 'prune'",
    "loosless": "did you mean 'lossless'",
    "prune{kep=0.5}": "no option 'kep'; did you mean 'keep'? its options are keep: float in [0, 1]",
    "prune{keep=1.5}": "'keep' of pass 'prune' is 1.5, which is not in [0, 1]; give keep: float",
    "prune{keep=much}": "is 'much', which is not a number",
    "prune{keep=true}": "is True, which is not a number",
    "prune{keep=nan}": "is nan, which is not a number",
    "prune{limit=0}": "which is not",
    "prune{limit=2.5}": "is 2.5",
    "prune{scorer=last_row}": "did you mean 'last-row'",
    "prune{at=calibrate}": "did you mean 'calibrated'",
    "prune{at=(1, x)}": "give at: (int, ..) | calibrated",
    "prune{revive=1}": "is 1, which is not bool",
    "prune{title=1}": "is 1, which is not str",
    "prune{keep}": "write option=value",
    'prune{title="open}': "has no end; close it with a quote",
    "picky": "needs the option 'layer'",
    "cse{keep=1}": "no option 'keep'; it takes none",
    "lossless{keep=1}": "takes no options",
    "cse,": "cannot read ''",
    "cse dce": "cannot read 'cse dce'",
    "fixpoint(cse)": "cannot read",
    "fixpoint[0](cse)": "at least one pass at least once",
    "fixpoint[2]()": "at least one pass at least once",
    "aggresive": "did you mean 'aggressive'?",
}


@pytest.mark.parametrize("text", WRONG)
def test_a_mistake_is_refused_with_the_remedy(text: str) -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline.parse(text)
    assert WRONG[text] in str(error.value)


WRONG_YAML = {
    "cse": "is a list of passes",
    "- [cse]": "cannot read ['cse']",
    "- {cse: 1}": "the options of 'cse' are 1",
    "- {fixpoint: {passes: [cse]}}": "{limit: 4, passes: [..]}",
    "- {fixpoint: {limit: two, passes: [cse]}}": "give a whole number",
    "- {prune: {keep: [0.5]}}": "is [0.5], which is not a number",
    "- {": "is not YAML",
    "extend: lossless": "is a list of passes",
    "extends: losless": "did you mean 'lossless'",
}


@pytest.mark.parametrize("text", WRONG_YAML)
def test_a_mistake_in_yaml_is_refused(text: str) -> None:
    with pytest.raises(PipelineError) as error:
        Pipeline.from_yaml(text)
    assert WRONG_YAML[text] in str(error.value)


def test_python_objects_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="which is not in"):
        Prune(keep=2.0)
    with pytest.raises(PipelineError, match="no step of a pipeline"):
        Pipeline((Cse,))  # type: ignore[arg-type]
    with pytest.raises(PipelineError, match="name a YAML file"):
        Pipeline.of(tmp_path / "none.yaml")


def test_fingerprints_tell_options_and_order_apart() -> None:
    texts = ("cse, dce", "dce, cse", "cse", "prune", "prune{keep=0.5}", "fixpoint[2](cse, dce)")
    prints = [Pipeline.parse(t).fingerprint() for t in texts]
    assert len(set(prints)) == len(prints)
    assert Pipeline.parse("cse, dce").fingerprint() == prints[0]
