from __future__ import annotations

import platform

import pytest

from casckpt.native import kernels


def test_the_best_available_kernel_can_be_chosen_back():
    before = kernels.active()
    assert before in kernels.available()
    for name in kernels.available():
        kernels.use(name)
        assert kernels.active() == name
    kernels.use(before)


def test_portable_is_always_there():
    assert kernels.available()[0] == "portable"


def test_a_kernel_of_another_machine_is_refused_and_nothing_changes():
    before = kernels.active()
    foreign = "neon" if platform.machine() == "x86_64" else "avx2"
    with pytest.raises(ValueError, match="no such kernel"):
        kernels.use(foreign)
    with pytest.raises(ValueError, match="no kernel 'mmx'"):
        kernels.use("mmx")
    assert kernels.active() == before
