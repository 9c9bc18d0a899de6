"""Programs of a folder at work: compiled side by side, inputs drawn, outputs kept while others need them."""

import concurrent.futures
import os
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp

from tools.hardware.draws import Draw, drawn
from tools.hardware.folder import Entry, Folder


class Session:
    """What is compiled, and what was computed until `forget`."""

    def __init__(self, folder: Folder):
        self.folder = folder
        self._compiled: dict[str, Any] = {}  # or the exception
        self._outputs: dict[str, list[jax.Array]] = {}

    def prepare(self, entries: Iterable[Entry]) -> None:
        """Compiles programs and those that they need, as many at once as there are cores."""
        names = [name for name in self._needed(entries) if name not in self._compiled]
        with concurrent.futures.ThreadPoolExecutor(min(12, os.cpu_count() or 1)) as pool:
            self._compiled |= zip(names, pool.map(self._compile, names), strict=True)

    def _needed(self, entries: Iterable[Entry]) -> list[str]:
        names = [entry.name for entry in entries]
        for name in names:  # grows
            names += [x for x in self._sources(name) if x not in names]
        return names

    def _sources(self, name: str) -> list[str]:
        entry = self.folder.entries[name]
        sources = dict.fromkeys(draw.source for draw in entry.inputs if draw.kind == "output")
        return [*sources, *([entry.against] if entry.against in self.folder.entries else [])]

    def _compile(self, name: str) -> Any:
        entry = self.folder.entries[name]
        shapes = [jax.ShapeDtypeStruct(draw.shape, draw.dtype) for draw in entry.inputs]
        try:
            call = self.folder.program(name).call
            return jax.jit(call, donate_argnums=entry.carried).lower(*shapes).compile()
        except Exception as reason:  # noqa: BLE001  whatever it is, it is reported and the other programs go on
            return reason

    def compiled(self, entry: Entry) -> Any:
        """The program, ready to be called with its arrays; raises why it could not be compiled."""
        self.prepare([entry])
        program = self._compiled[entry.name]
        if isinstance(program, Exception):
            raise program
        return program

    def inputs(self, entry: Entry, number: int = 0) -> list[jax.Array]:
        """The arrays of a program; another ``number`` gives others of the same kind. Carried ones are the caller's."""
        arrays = [self._input(draw, number) for draw in entry.inputs]
        return [jnp.copy(x) if place in entry.carried else x for place, x in enumerate(arrays)]

    def _input(self, draw: Draw, number: int) -> jax.Array:
        if draw.kind == "stored":
            return jnp.asarray(self.folder.arrays[draw.source])
        if draw.kind == "output":
            return self.outputs(self.folder.entries[draw.source])[draw.place]
        return drawn(draw.moved_to(1000 * number))

    def outputs(self, entry: Entry) -> list[jax.Array]:
        """What a program gives for its inputs, computed once."""
        if entry.name not in self._outputs:
            self._outputs[entry.name] = list(self.compiled(entry)(*self.inputs(entry)))
        return self._outputs[entry.name]

    def right(self, entry: Entry) -> list[jax.Array]:
        """What it should give: stored, or what another program gives for the same inputs in its own dtypes."""
        if entry.against == "stored":
            return [jnp.asarray(self.folder.arrays[f"{entry.name}/{name}"]) for name in entry.outputs]
        other = self.folder.entries[entry.against]
        given = zip(other.inputs, self.inputs(entry), strict=True)
        results = self.compiled(other)(*(x.astype(draw.dtype) for draw, x in given))
        by_name = dict(zip(other.outputs, results, strict=True))
        return [by_name[name] for name in entry.outputs]

    def forget(self) -> None:
        """Lets go of the outputs."""
        self._outputs.clear()
