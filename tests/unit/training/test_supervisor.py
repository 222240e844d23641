from __future__ import annotations

import signal

import pytest

from casckpt.training.programs.supervisor import delay_s, judge


def verdict(code, *, told=None, asked=False, restarts=0, max_restarts=3):
    return judge(code, told=told, asked=asked, restarts=restarts, max_restarts=max_restarts)


@pytest.mark.parametrize("code", [1, 3, 16, 139, -signal.SIGKILL, -signal.SIGSEGV, -signal.SIGBUS])
def test_crashes_are_started_again(code):
    assert verdict(code).restart


@pytest.mark.parametrize("code", [0, 75, 130, 2, 10, 11, 14, 126, 127, -signal.SIGTERM])
def test_ends_wishes_and_hopeless_cases_are_not(code):
    assert not verdict(code).restart


@pytest.mark.parametrize(("told", "again"), [(2, False), (11, False), (13, True), (16, True)])
def test_of_an_exception_the_error_decides_and_not_pythons_exit_code(told, again):
    assert verdict(1, told=told).restart is again


def test_a_crash_after_a_request_to_end_is_an_end():
    assert not verdict(-signal.SIGKILL, asked=True).restart


def test_the_limit_is_over_all():
    assert verdict(1, restarts=2).restart
    assert verdict(1, restarts=3).text == "it failed with exit code 1, after 3 restarts"
    assert "restarts are off" in verdict(1, max_restarts=0).text


def test_the_wait_grows_to_a_minute():
    assert [delay_s(crashes) for crashes in (1, 2, 3, 6, 7, 100)] == [1, 2, 4, 32, 60, 60]
