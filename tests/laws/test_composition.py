"""Every pair of passes that act on `@step`, in both orders: it composes, or says why not.

What composes keeps the law of independent rows. That the pass of int8 composes with each other one
is in `tests/frontends/test_outliers.py`.
"""

from itertools import permutations

import pytest
import torch

from elidir.backends.runtime import Rows
from elidir.passes import Applied, Pass, Pipeline, Verify, passes
from tests.frontends.families import family
from tests.laws.test_laws import IDS, PROMPT, ROWS, SHORT, answers, session, tokens

MODELS = ("llama", "mistral", "bloom")
PAIRS = [pair for pair in permutations(range(len(ROWS)), 2) if len({ROWS[i][0] for i in pair}) == 2]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: " then ".join(IDS[i] for i in pair))
@pytest.mark.parametrize("model", MODELS)
def test_a_pair_composes_or_says_why_not(model: str, pair: tuple[int, int]) -> None:
    known, names = family(model), [ROWS[i][0] for i in pair]
    steps: list[Pass] = [passes()[ROWS[i][0]](**ROWS[i][1]) for i in pair]
    found = Pipeline(tuple(steps)).run(known.stepped.module, instruments=[Verify()])
    applied = {r.by for r in found.remarks if isinstance(r, Applied)}
    refused = {r.by: r.reason for r in found.missed}
    assert names[0] in applied
    assert names[1] in applied or refused[names[1]]
    ids, valid = tokens(2, PROMPT), torch.ones(2, PROMPT, dtype=torch.bool)
    valid[1, : PROMPT - SHORT] = False
    both = answers(session(known, found.module, 2), ids, valid)
    alone = session(known, found.module)
    one = [alone.feed(ids[1:, PROMPT - SHORT :], rows=Rows.LAST)]
    one += [alone.feed(tokens(2, 1, seed=i)[1:]) for i in range(3)]
    torch.testing.assert_close(both[1:, :4], torch.cat(one, 1), atol=1e-5, rtol=1e-5)
