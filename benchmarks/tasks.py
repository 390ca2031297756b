"""What a peer's process can be told to do; worker.py calls it by name. Results are plain JSON."""

from __future__ import annotations

import contextlib
import importlib.metadata
from typing import Any

import crowds
import method
from probes import Prober
from turns import Turns


class Tasks:
    """One variant of one peer."""

    def __init__(self, adapter: Any, label: str) -> None:
        self._adapter, self._options = adapter, adapter.VARIANTS[label]
        self._turns: Turns | None = None
        self._prober: Prober | None = None

    def versions(self) -> dict[str, str]:
        found = {}
        for name in self._adapter.DISTRIBUTIONS:
            with contextlib.suppress(importlib.metadata.PackageNotFoundError):
                found[name] = importlib.metadata.version(name)
        return found

    # One thread

    def begin(self, kind: str, arguments: dict[str, Any], seconds: float) -> None:
        self.end()
        self._turns = Turns(self._adapter, self._options, arguments, kind)
        if seconds:
            self._turns.calibrate(seconds)

    def round(self) -> dict[str, float]:
        assert self._turns is not None
        return self._turns.round()

    def repeat(self, times: int) -> None:
        assert self._turns is not None
        self._turns.repeat(times)

    def end(self) -> None:
        if self._turns is not None:
            self._turns.close()
            self._turns = None

    # Many threads, openings, memory

    def windows(self, **given: Any) -> Any:
        return method.plain(crowds.windows(self._adapter, self._options, **given))

    def spike(self, **given: Any) -> Any:
        return crowds.spike(self._adapter, self._options, **given)

    def cold(self, **given: Any) -> Any:
        return crowds.cold(self._adapter, self._options, **given)

    def memory(self, **given: Any) -> Any:
        return crowds.memory(self._adapter, self._options, **given)

    # Correctness

    def probe(self, name: str, arguments: dict[str, Any], step: int = 0) -> Any:
        if step == 0:
            self._prober = Prober(self._adapter, self._options, arguments)
        assert self._prober is not None
        return method.plain(self._prober.run(name, step))
