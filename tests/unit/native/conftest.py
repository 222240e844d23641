"""Run a test under each kernel this processor can run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from casckpt.native import kernels

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["portable", "sse41", "avx2", "avx512", "neon"])
def kernel(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param not in kernels.available():
        pytest.skip(f"this processor cannot run {request.param}")
    before = kernels.active()
    kernels.use(request.param)
    yield request.param
    kernels.use(before)
