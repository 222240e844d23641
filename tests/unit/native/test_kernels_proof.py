"""A kernel that gives wrong bytes is left before it names anything."""

from __future__ import annotations

import pytest

from casckpt.native import kernels


def test_the_active_kernel_is_kept_when_it_agrees() -> None:
    before = kernels.active()
    assert kernels.prove() == before


def test_a_kernel_that_differs_is_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before = kernels.active()
    if before == "portable":
        pytest.skip("this processor has only the portable kernel")
    honest = kernels._sample
    monkeypatch.setattr(
        kernels, "_sample", lambda: [b"wrong"] if kernels.active() == before else honest()
    )
    try:
        assert kernels.prove() != before
        assert f"the {before} kernel gives wrong bytes" in caplog.text
    finally:
        kernels.use(before)
