"""Signals: raised at once, or after the work that must not be cut."""

import os
import signal
import threading

import pytest

from recbole_multdpo.runtime.interruption import Interrupted, SignalHandler


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_outside_of_deferred_work_a_signal_is_raised_at_once(number, status):
    with pytest.raises(Interrupted, match=number.name) as caught, SignalHandler():
        send(number)
    assert caught.value.exit_status == status


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_deferred_work_goes_on_until_it_looks(number):
    done = []
    with SignalHandler() as signals, pytest.raises(Interrupted):
        with signals.deferred():
            send(number)
            done.append("the step")
            assert signals.requested == number
            done.append("the checkpoint")
            signals.stop()
    assert done == ["the step", "the checkpoint"]


def test_deferred_work_that_does_not_look_is_stopped_at_its_end():
    done = []
    with SignalHandler() as signals, pytest.raises(Interrupted):
        with signals.deferred():
            send(signal.SIGTERM)
            done.append("all of it")
    assert done == ["all of it"]


def test_a_second_ctrl_c_is_raised_at_once_and_a_second_sigterm_is_not():
    with SignalHandler() as signals, pytest.raises(Interrupted, match="SIGINT"):
        with signals.deferred():
            send(signal.SIGTERM)
            send(signal.SIGTERM)
            send(signal.SIGINT)
            raise AssertionError("not reached")


def test_the_handlers_of_before_are_back_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with SignalHandler():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_another_thread_may_not_install_handlers_and_works_without():
    before, inside = signal.getsignal(signal.SIGTERM), []

    def work() -> None:
        with SignalHandler():
            inside.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert inside == [before]
