"""Stopping a training: it raises Stopped on request, or its process ends where it cannot check for requests.

A training checks many times a second whether it should stop. Inside a function of another library (which reads a large
file, loads PyTorch or exports a model) it cannot. Checkpoints hold everything that was learned by then, so the process
ends itself a moment after the request. Importing this loads no PyTorch.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

GRACE = 1.0  # s within which the training may notice a request itself
_EVERY = 0.1  # s between two checks


class Stopped(Exception):
    """The training was asked to stop; its checkpoint is written."""


def stopping(asked: Callable[[], bool]) -> Callable[[], None]:
    """A function that raises Stopped when `asked` returns True."""

    def look() -> None:
        if asked():
            raise Stopped

    return look


def interruptible(network: nn.Module, look: Callable[[], None]) -> nn.Module:
    """Call `look` between any two modules of a network, forward and backward; an exception ends the computation.

    A step of a large model takes half a minute on a processor, which is too long to wait for when someone stops it.
    """
    from torch import Tensor

    def after(module: nn.Module, inputs: object, output: object) -> None:
        look()
        if isinstance(output, Tensor) and output.requires_grad:
            output.register_hook(lambda gradient: look())

    for module in network.modules():
        module.register_forward_hook(after)
    return network


class StopSigns:
    """A context that notices requests to stop the training of this process.

    Args:
        signals: Signals that ask it to stop; a second Ctrl-C raises KeyboardInterrupt.
        leave: Ends the process; called from a thread if the training does not notice in time.
        look: Called many times a second; True asks to stop.
    """

    def __init__(
        self, signals: Sequence[int], leave: Callable[[], None], look: Callable[[], bool] = lambda: False
    ) -> None:
        self.learning = False
        """Whether something was learned that no checkpoint holds; the training itself must then stop."""
        self._signals, self._leave, self._look = signals, leave, look
        self._asked, self._over = threading.Event(), threading.Event()
        self._heard = 0
        self._handlers: dict[int, object] = {}

    def ask(self) -> None:
        """Ask the training to stop."""
        self._asked.set()

    @property
    def asked(self) -> bool:
        """Whether the training should stop."""
        return self._asked.is_set()

    def __enter__(self) -> StopSigns:
        self._reader, self._writer = socket.socketpair()
        self._reader.settimeout(_EVERY)
        self._writer.setblocking(False)
        try:
            for number in self._signals:
                self._handlers[number] = signal.signal(number, self._handle)
            # Python's handlers wait for the main thread to return from other libraries; this tells a thread at once.
            self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        except ValueError:  # signals can be caught in the main thread only
            pass
        threading.Thread(target=self._watch, name="samfinetune-stop", daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._handlers:
            signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: object) -> None:
        self._heard += 1
        if self._heard > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.ask()

    def _watch(self) -> None:
        since = None
        while not self._over.is_set():
            try:
                if set(self._reader.recv(64)) & set(self._signals):
                    self.ask()
            except TimeoutError:
                pass
            if not self.asked and self._look():
                self.ask()
            if not self.asked or self.learning:
                since = None
            elif since is None:
                since = time.monotonic()
            elif time.monotonic() - since > GRACE:
                self._leave()
                return
        self._reader.close()
        self._writer.close()
