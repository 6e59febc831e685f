"""SIGTERM arrives once, as an exception that no handler of errors catches."""

import os
import signal
import threading

import pytest

from cryodrgn_metric.termination import Terminated, raise_if_terminated, terminable


def test_sigterm_is_an_exception_in_the_block_and_its_old_self_after_it():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated), terminable():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_sigterm_does_not_disturb_the_clean_up():
    cleaned = False
    with pytest.raises(Terminated), terminable():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            os.kill(os.getpid(), signal.SIGTERM)
            cleaned = True
    assert cleaned


def test_it_is_no_exception_that_handlers_catch():
    assert not issubclass(Terminated, Exception)


def test_other_threads_get_no_signals_and_change_none():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with terminable():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_signal_that_python_swallowed_is_raised_between_pieces_of_work():
    """What is raised within __del__ is lost."""

    class Swallows:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGTERM)

    with terminable():
        thing = Swallows()
        del thing
        with pytest.raises(Terminated):
            raise_if_terminated()
    raise_if_terminated()  # it is over
