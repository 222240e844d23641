"""What all tests have in common: none of them writes to the home of whoever runs them."""

from __future__ import annotations

import signal

import pytest
from hypothesis import settings

# The same examples each time, so that what lands is judged by what it changes. The task `property`
# draws others, and more of them. How long an example takes says how busy the machine is.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("other", deadline=None, max_examples=1000)
settings.load_profile("same")

# What is started in the background ignores Ctrl+C, and so would all that the tests start.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def _state_home(tmp_path_factory: pytest.TempPathFactory):
    """Put the recorded commands of runs into a folder of the tests."""
    patch = pytest.MonkeyPatch()
    patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
    yield
    patch.undo()
