"""Sessions of ONNX Runtime: opened when they are needed, run with what is known by name."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock, Thread
from typing import Any

from vqcodec.errors import InvalidModelError, first_line


class Later:
    """A session of ONNX Runtime that a thread of its own opens: from `begin` on, at the latest when it is asked for.

    Opening takes a tenth of a second and lets other Python code run meanwhile.
    """

    def __init__(self, opener: Callable[[], Any]):
        self._opener, self._lock, self._begun = opener, Lock(), False
        self._session: Future[Any] = Future()

    def begin(self) -> None:
        """Starts opening, once."""
        if self._begun:
            return
        import onnxruntime  # noqa: F401 - here, and not on the thread: signals must reach who imports, or it goes on regardless

        with self._lock:
            if not self._begun:
                Thread(target=self._open).start()
                self._begun = True  # now, as a signal may end either of the lines above: who asks later must not wait for ever

    def __call__(self) -> Any:
        """The session; raises what opening it raised."""
        self.begin()
        return self._session.result()

    def _open(self) -> None:
        try:
            self._session.set_result(self._opener())
        except BaseException as error:
            self._session.set_exception(error)


def refuse_as_memory(error: Exception) -> None:
    """Raises `MemoryError` where this error of ONNX Runtime says that there is too little, and the model is not to blame."""
    if any(said in str(error) for said in ("Failed to allocate memory", "bad_alloc")):
        raise MemoryError(str(error)) from error


def run(session: Any, known: dict[str, Any], last: bool, outputs: tuple[str, ...] | None = None) -> dict[str, Any]:
    """Runs a graph on those of its inputs that are known, and gives its outputs, all or some, by their names.

    A model whose graphs do not fit its configuration shows here. With the `last` tile the session gives memory back.
    """
    from onnxruntime import RunOptions

    options = RunOptions()
    options.log_severity_level = 4  # what goes wrong is raised
    if last:
        options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    try:
        inputs = {given.name: known[given.name] for given in session.get_inputs() if given.name in known}
        names = [output.name for output in session.get_outputs() if outputs is None or output.name in outputs]
        return dict(zip(names, session.run(names, inputs, options), strict=True)) if names else {}  # of no names it would give all
    except MemoryError:
        raise
    except Exception as error:  # ONNX Runtime has no exception class of its own
        refuse_as_memory(error)
        raise InvalidModelError(f"the model's graph fails: {first_line(error)}; export the model again") from error
