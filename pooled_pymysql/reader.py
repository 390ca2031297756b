"""What a session reads from: the bytes that have arrived and that nobody has taken yet."""

from typing import Protocol

AHEAD = 16_384  # bytes to ask for at least, as a rule: a buffer of that size is made each time
_LARGEST = 262_144  # and at most


class Source(Protocol):
    """A socket, as far as it is read from."""

    def recv(self, size: int, /) -> bytes:
        """Return up to so many bytes, at least one; none at the end."""


class Reader:
    """Stands in for the BufferedReader that PyMySQL makes of a socket.

    That one runs SocketIO's Python code at each read, holds a lock and keeps 8 KiB for each connection for ever. This
    one keeps what has arrived and nothing else, and shows it as `data`: whoever has used some of that puts the rest
    there. For one thread at a time, the one whose turn it is.
    """

    __slots__ = ("_source", "ahead", "data")

    ahead: int
    data: bytes

    def __init__(self, source: Source, ahead: int = AHEAD) -> None:
        self._source = source
        self.data = b""
        self.ahead = ahead  # bytes to ask for where fewer are needed; 1: never more than that

    def peek(self) -> bytes:
        """Return what is there, receiving once if that is nothing; b"" at the end."""
        data = self.data
        if not data:
            data = self.data = self._source.recv(self.ahead)
        return data

    def read(self, size: int) -> bytes:
        """Take so many bytes, fewer only at the end."""
        data = self.data
        missing = size - len(data)
        if missing > 0:
            chunks = [data]
            self.data = b""
            while missing > 0 and (chunk := self._source.recv(min(max(missing, self.ahead), _LARGEST))):
                chunks.append(chunk)
                missing -= len(chunk)
            data = b"".join(chunks)
        self.data = data[size:]
        return data[:size]

    def close(self) -> None:
        """Forget what is there; the socket is closed by whoever owns it."""
        self.data = b""
