"""Reading pickles without running anything that is in them.

A pickle is a program: it names functions by module and calls them. Here it can call only those that the reader of a
container gives, all of them ours; whatever else it names becomes an ``Inert`` that does nothing when it is called,
filled or given a state. Large texts and byte strings are not read but noted as places in the file.

The interpreter is pickle's own in Python, whose opcodes are an allow-list here. pickle's in C cannot be told to leave
large values where they are, and grows its memory to whatever size a file names.
"""

from __future__ import annotations

import io
import pickle
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from sightbridge.checkpoints.sources.stored import FilePart, LatinText
from sightbridge.errors import CheckpointError

MAX_BYTES = 8 << 20
"""Of a pickle without its large values: 50 times what a model of 70 billion weights needs."""
MAX_READS = 2_500_000
"""Of opcodes and their arguments, 50 for a tensor; a pickle of as many takes a few seconds and some 200 MB."""
SMALL = 1024
"""Texts and byte strings of fewer bytes are read at once: names, settings, tiny tensors."""
MAX_LINE = 4096
HOSTILE_MODULES = {"os", "posix", "nt", "subprocess", "sys", "shutil", "socket", "runpy", "pty", "importlib", "ctypes"}
HOSTILE = {f"{module}.{name}" for module in ("builtins", "__builtin__") for name in ("eval", "exec", "open")}
HOSTILE |= {"builtins.compile", "builtins.__import__", "__builtin__.execfile", "__builtin__.__import__"}
"""What no file of weights has a reason to name; it would not be called anyway."""
PLAIN = (str, int, float, bool, bytes, type(None))


@dataclass(frozen=True, eq=False)
class Inert:
    """Something that is not known here, by its name in Python; it was not made and nothing of it has run."""

    what: str


@dataclass(frozen=True, eq=False)
class Known:
    """A function of ours in place of the one that the pickle names."""

    call: Callable[..., Any]


def plain_dict(pairs: Any = (), *rest: Any) -> dict[str | int, Any]:
    """A table of pairs; keys must be texts or numbers, for the hash of nested tuples can take for ever."""
    if not all(isinstance(key, str | int) for key, _ in pairs):
        raise TypeError
    return dict(pairs)


ORDERED_DICT = Known(plain_dict)
"""For ``collections.OrderedDict``, which is given its pairs by Python 2 and is filled later by Python 3."""


class Stateful:
    """Something of ours that a pickle may give a state."""

    def set_state(self, state: Any) -> None:
        """Take the state."""
        raise NotImplementedError


class Stream:
    """A file from where it is, of which a pickle reads only so much at once and in all."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.file = file
        self.path = path
        self.end = file.seek(0, io.SEEK_END)
        self.bytes_left = MAX_BYTES
        self.reads_left = MAX_READS
        file.seek(0)

    def read(self, size: int) -> bytes:
        """Exactly ``size`` bytes; raises ``CheckpointError`` if there are fewer, or too many were read before."""
        self.reads_left -= 1
        self.bytes_left -= size
        if self.bytes_left < 0 or self.reads_left < 0:
            raise CheckpointError(
                f"{self.path}: holds more names and values beside its tensors than any model does; not read further."
            )
        data = self.file.read(size)
        if len(data) < size:
            raise self.cut_off()
        return data

    def readline(self) -> bytes:
        """A line, which must not be long."""
        line = self.file.readline(MAX_LINE)
        if not line.endswith(b"\n"):
            raise pickle.UnpicklingError("a line does not end")
        self.read(0)
        self.bytes_left -= len(line)
        return line

    def skip(self, size: int) -> FilePart:
        """Leave ``size`` bytes where they are; raises ``CheckpointError`` if there are fewer."""
        offset = self.file.tell()
        if size > self.end - offset:
            raise self.cut_off()
        self.file.seek(size, io.SEEK_CUR)
        return FilePart(self.path, offset, size)

    def cut_off(self) -> CheckpointError:
        """The error for a file that should go on."""
        return CheckpointError(f"{self.path}: damaged: it ends too early. Was it cut off while it was copied?")


class Unpickler(pickle._Unpickler):
    """The interpreter.

    Args:
        stream: where the pickle begins.
        known: by full name, what the pickle may name: functions as ``Known``, or any value.
        persistent: makes something of a reference to what lies outside the pickle.
        strict: raise for what is not known instead of leaving it inert.
    """

    stack: list[Any]
    append: Callable[[Any], None]
    read: Callable[[int], bytes]
    pop_mark: Callable[[], list[Any]]

    def __init__(
        self,
        stream: Stream,
        known: Mapping[str, Any],
        persistent: Callable[[Any], Any] | None = None,
        strict: bool = False,
    ) -> None:
        super().__init__(stream, encoding="latin1")  # pyright: ignore[reportArgumentType]
        self.stream = stream
        self.known = known
        self.persistent = persistent
        self.strict = strict

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a name."""
        full = f"{module}.{name}"
        if full in self.known:
            return self.known[full]
        if self.strict or module.partition(".")[0] in HOSTILE_MODULES or full in HOSTILE:
            raise CheckpointError(
                f"{self.stream.path}: names {full[:100]!r}, which no file of weights needs. It may be hostile: nothing "
                "in it was run, and nothing is read from it."
            )
        return Inert(full[:200])

    def persistent_load(self, pid: Any) -> Any:
        """A reference to what lies outside."""
        if self.persistent is None:
            raise pickle.UnpicklingError("it refers to what is not there")
        return self.persistent(pid)

    def reduce(self) -> None:
        """Call what is known; anything else becomes inert."""
        args, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, Known) and isinstance(args, tuple):
            self.append(function.call(*args))
        else:
            self.append(function if isinstance(function, Inert) else Inert(type(function).__name__))

    def reduce_with_names(self) -> None:
        """The same of a call with named arguments, which no file of weights has: they are left away."""
        self.stack.pop()
        self.reduce()

    def build(self) -> None:
        """Hand its state to what takes one; any other state is left away."""
        state = self.stack.pop()
        if isinstance(self.stack[-1], Stateful):
            self.stack[-1].set_state(state)

    def extend(self, items: list[Any]) -> None:
        """Add to a list; what was to grow but is inert stays as it is."""
        if isinstance(self.stack[-1], list):
            self.stack[-1].extend(items)

    def update(self, items: list[Any]) -> None:
        """Keys that are not plain, whose hash could take for ever, become inert."""
        if isinstance(target := self.stack[-1], dict):
            for key, value in zip(items[::2], items[1::2], strict=True):
                target[key if isinstance(key, PLAIN) else Inert(type(key).__name__)] = value

    def make_set(self) -> None:
        """Sets hold no weights."""
        self.append(Inert("set"))

    def add_to_set(self) -> None:
        """What belongs to a set is left away."""
        self.pop_mark()

    def set_item(self) -> None:
        """One key and its value."""
        value, key = self.stack.pop(), self.stack.pop()
        self.update([key, value])

    def skip_frame(self) -> None:
        """The size of a frame, a hint on how much to read at once."""
        self.read(8)

    def large_bytes(self, format: str) -> None:
        """Bytes behind a length; where many lie in the file, if they are many."""
        size = self.number(format)
        self.append(self.read(size) if size < SMALL else self.stream.skip(size))

    def large_text(self, format: str) -> None:
        """The same of text."""
        size = self.number(format)
        self.append(self.read(size).decode("utf-8") if size < SMALL else LatinText(self.stream.skip(size)))

    def number(self, format: str) -> int:
        """A number that is stored as ``format`` of ``struct`` says."""
        return struct.unpack(format, self.read(struct.calcsize(format)))[0]

    @staticmethod
    def opcodes() -> dict[int, Callable[[Any], None]]:
        """The allow-list: what pickle itself does with opcodes that only move plain values, and what we do else."""
        plain = (
            "PROTO NONE NEWFALSE NEWTRUE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT SHORT_BINSTRING "
            "BINSTRING UNICODE SHORT_BINUNICODE SHORT_BINBYTES TUPLE EMPTY_TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_LIST "
            "EMPTY_DICT LIST POP POP_MARK DUP GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE MARK STOP GLOBAL "
            "STACK_GLOBAL BINPERSID"
        )
        taken = {
            getattr(pickle, name)[0]: pickle._Unpickler.dispatch[getattr(pickle, name)[0]] for name in plain.split()
        }
        ours: dict[bytes, Callable[[Any], None]] = {
            pickle.REDUCE: Unpickler.reduce,
            pickle.NEWOBJ: Unpickler.reduce,
            pickle.NEWOBJ_EX: Unpickler.reduce_with_names,
            pickle.BUILD: Unpickler.build,
            pickle.APPEND: lambda self: self.extend([self.stack.pop()]),
            pickle.APPENDS: lambda self: self.extend(self.pop_mark()),
            pickle.SETITEM: Unpickler.set_item,
            pickle.SETITEMS: lambda self: self.update(self.pop_mark()),
            pickle.EMPTY_SET: Unpickler.make_set,
            pickle.FROZENSET: lambda self: (self.pop_mark(), self.make_set())[1],
            pickle.ADDITEMS: Unpickler.add_to_set,
            pickle.FRAME: Unpickler.skip_frame,
            pickle.BINBYTES: lambda self: self.large_bytes("<I"),
            pickle.BINBYTES8: lambda self: self.large_bytes("<Q"),
            pickle.BINUNICODE: lambda self: self.large_text("<I"),
            pickle.BINUNICODE8: lambda self: self.large_text("<Q"),
        }
        return taken | {opcode[0]: act for opcode, act in ours.items()}


Unpickler.dispatch = Unpickler.opcodes()


def unpickle(
    stream: Stream,
    known: Mapping[str, Any],
    persistent: Callable[[Any], Any] | None = None,
    strict: bool = False,
) -> Any:
    """Read the pickle that begins at the stream's place, and leave the stream behind it; raises ``CheckpointError``."""
    try:
        return Unpickler(stream, known, persistent, strict).load()
    except CheckpointError:
        raise
    except (
        pickle.UnpicklingError, ArithmeticError, AssertionError, AttributeError, LookupError, MemoryError, struct.error,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        raise CheckpointError(f"{stream.path}: damaged: what should describe its tensors makes no sense.") from error
