"""A request to stop: at once where that may be, with the signal's exit code, and a second one leaves."""

import os
import signal

import pytest

from ultraflash_cli.errors import Interrupted
from ultraflash_cli.jobs.running.stop import Stop, StopNow, stopping_on_signals


def test_a_stop_keeps_signal_and_exit_code_together() -> None:
    stop = Stop()
    assert not stop.requested
    stop.request(15)
    assert stop.requested
    error = stop.interruption("stopped")
    assert isinstance(error, Interrupted)
    assert error.exit_code == 143


def test_a_request_inside_a_block_that_may_be_dropped_is_obeyed_at_once() -> None:
    stop = Stop()
    with pytest.raises(StopNow), stop.at_once():
        stop.request()
    with pytest.raises(StopNow), stop.at_once():
        pytest.fail("a stop that was requested before is obeyed, too")
    stop.request()


def test_a_second_signal_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    monkeypatch.setattr("os._exit", left.append)
    before = signal.getsignal(signal.SIGTERM)
    with stopping_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.requested
        assert left == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert left == [143]
    assert signal.getsignal(signal.SIGTERM) is before
