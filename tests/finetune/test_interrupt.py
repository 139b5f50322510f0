import os
import signal
import threading

import pytest

from lorafam.finetune.interrupt import termination_interrupts


def test_sigterm_interrupts_meanwhile() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), termination_interrupts():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before


def test_other_threads_may_train() -> None:
    done = []

    def work() -> None:
        with termination_interrupts():
            done.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert done == [True]
