"""The tests are tested: each rule that is switched off makes a point of the campaign fail."""

from __future__ import annotations

import pytest

from tests.crash import shim
from tests.crash.conftest import launch
from tests.crash.mutants import CAUGHT_BY

pytestmark = pytest.mark.crash


# Every fourth; all of them are row 11 of the task `campaign`.
@pytest.mark.parametrize("mutant", sorted(CAUGHT_BY)[::4])
def test_the_campaign_notices(mutant):
    if why := shim.missing():
        pytest.skip(f"SKIPPED: {why}")
    status, said = launch(
        *CAUGHT_BY[mutant], "--mutant", mutant, "--first", "--sample", "60", "--minutes", "4"
    )
    assert status == 1, f"nothing noticed {mutant}:\n{said}"
    assert "BAD" in said, said
