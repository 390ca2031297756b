"""One server session, from after its opening until its end."""

import _socket
import contextlib
import enum
import socket
import struct
import time
import weakref
from collections.abc import Callable
from typing import Any

from pymysql import err
from pymysql.constants import COMMAND

from .liveness import is_only_data, readable
from .replies import Tracked
from .restoration import LightReply, NotRestorable, Reply, Restoration, Script, packet, skip_good
from .tracking import TOUCHED

try:
    from ssl import SSLWantReadError
except ImportError:  # a Python without TLS

    class SSLWantReadError(OSError):  # type: ignore[no-redef]
        """Never raised."""


_CHUNK = 65536  # bytes read at once
_LIGHT_CHUNK = 512  # the same of light replies: a buffer of that size is made each time
# Where the system can be asked for what has arrived: not TLS, nor gevent's and eventlet's sockets.
_DONT_WAIT = getattr(socket, "MSG_DONTWAIT", None)
_RECV = None if _DONT_WAIT is None else _socket.socket.recv

RESTORE_TIMEOUT = 10.0  # seconds that the server has to restore a session, where that is waited for at release
VALIDATION_TIMEOUT = 2.0  # seconds for a reset that has nothing to undo
ROLLBACK_TIMEOUT = 600.0  # seconds for one that may have a large transaction to undo
FAREWELL_TIMEOUT = (
    0.1  # seconds that closing waits for what is still owed, lest the server's answer meet a closed socket
)

# Attributes that a connection has from its server; a lease that connects again takes these from its new session.
SERVER_ATTRIBUTES = (
    "_auth_plugin_name", "_closed", "_current_timeout", "_next_seq_id", "_rfile", "_secure", "_sock", "client_flag",
    "ctx", "db", "host_info", "password", "protocol_version", "salt", "server_capabilities", "server_charset",
    "server_language", "server_status", "server_thread_id", "server_version", "user",
)  # fmt: skip


class Mail(enum.Enum):
    """What became of the replies that a session owes."""

    READ = enum.auto()  # all of them came, and all is well
    UNDER_WAY = enum.auto()
    BAD = enum.auto()  # an error, a lost connection, or not the replies that were expected


class Session:
    """One authenticated server session.

    Owned by its pool while idle and by one lease while in use; whoever owns it may call its methods, nobody else.
    """

    __slots__ = (
        "__weakref__",
        "_inbox",
        "_is_light",
        "_recipe",
        "ahead",
        "answer_by",
        "asked_at",
        "end_reason",
        "expires_at",
        "first_status",
        "has_tracking",
        "holder",
        "idle_limit",
        "idle_since",
        "lease",
        "leased_at",
        "looked_at",
        "marks",
        "missing_since",
        "observed_since",
        "opened_at",
        "opening_took",
        "overlaid",
        "overlaid_by",
        "owed",
        "pid",
        "poll",
        "pristine",
        "restore_mask",
        "sock",
        "validate_at",
    )

    answer_by: float
    asked_at: float
    end_reason: str
    expires_at: float
    first_status: int
    has_tracking: bool
    holder: int
    idle_limit: float
    idle_since: float
    looked_at: float
    marks: int
    opened_at: float
    opening_took: float
    pid: int
    poll: Callable[[int], object]
    restore_mask: int
    sock: Any
    validate_at: float

    def __init__(self, wire: Tracked, recipe: Restoration, started: float, max_lifetime: float | None) -> None:
        now = time.monotonic()
        self._recipe = recipe
        self.pristine: dict[str, Any] = vars(wire)
        self.first_status = int(wire.server_status)
        self.has_tracking = wire._has_tracking
        self.sock = wire._sock
        self.poll = readable(self.sock)
        self.opened_at = self.idle_since = now
        self.opening_took = now - started
        self.expires_at = float("inf") if max_lifetime is None else now + max_lifetime
        self.end_reason = "max_lifetime"
        self.asked_at = now
        self.looked_at = now  # when it was last known to be alive, or earlier
        self.validate_at = self.answer_by = self.idle_limit = float("inf")
        self.holder = 0  # the thread that leased it last
        self.observed_since: float | None = None  # when it was leased, where an observer was told so
        self.leased_at: float | None = None  # with leak_threshold, until the lease was reported
        self.pid = int(wire._connect_attrs["_pid"])
        # The lease, from when it was made until it parts from the session.
        self.lease: weakref.ref[Any] | None = None
        self.missing_since: float | None = None  # when the housekeeper first found it in use by no lease
        # The attributes of a lease, and the overlay they were made with: most leases of a session have the same one.
        self.overlaid: dict[str, Any] = {}
        self.overlaid_by: dict[str, Any] | None = None
        # What the last lease left: written when it parts from the session. Marks outside the mask need no restoring.
        self.marks = 0
        self.restore_mask = recipe.mask()
        # What is to be sent in front of the next statement, in the same write.
        self.ahead: Script | None = None
        # The replies that nobody has read yet, oldest first, and their bytes that have arrived.
        self.owed: list[Reply | LightReply] = []
        self._is_light = False  # none of them is waited for; see owes_little
        self._inbox = bytearray()

    @property
    def thread_id(self) -> int:
        """The server's CONNECTION_ID() of this session."""
        return int(self.pristine["server_thread_id"][0])

    # Restoring

    def restore(self) -> str | None:
        """Send what undoes the last lease's doings, by its marks; the replies are read later (see `owed`).

        What nobody but the next lease could see is sent with its first statement (see `ahead`). Returns why the session
        cannot be restored and must be closed, or None. Does not wait for the server, unless `one_write` is off.
        """
        recipe = self._recipe
        try:
            script = recipe.script(self.marks)
            if not script.data:
                return None
            if script.is_light and recipe.one_write:
                if script.is_private:
                    self.ahead = script
                    return None
                self.owe(script)
                self.sock.sendall(script.data)
            else:
                if script.resets:  # which does what was still to be sent, too
                    self.ahead = None
                self._send(script, recipe.one_write)
            self.answer_by = time.monotonic() + ROLLBACK_TIMEOUT
        except NotRestorable as reason:
            return str(reason)
        except OSError:
            return "lost"
        return None

    def validate(self, now: float) -> str | None:
        """Send a reset to an idle session: it fails where a ping succeeds, on a Galera node that lost its cluster.

        Returns and raises as restore() does; the reply is due within VALIDATION_TIMEOUT.
        """
        self.marks = TOUCHED
        self.asked_at = now
        broken = self.restore()
        self.answer_by = now + VALIDATION_TIMEOUT
        return broken

    @property
    def owes_little(self) -> bool:
        """Whether a statement may be sent behind the owed replies without waiting for them.

        Only behind a ROLLBACK that undoes nothing and behind `DO`, under the rule that a bad reply to them fails the
        statement as a lost connection.
        """
        return self._is_light and not self._inbox

    def owe(self, script: Script) -> None:
        """Expect the replies to a script that is sent in one write."""
        if script.is_light:
            self._is_light = self._is_light or not self.owed
            self.owed += script.light_replies
        else:
            self._is_light = False
            self.owed += [Reply(command, self.has_tracking) for command in script.commands]

    def _send(self, script: Script, one_write: bool) -> None:
        if one_write:
            self.owe(script)
            self.sock.sendall(script.data)
            return
        self._is_light = False
        for command in script.commands:
            self.owed.append(Reply(command, self.has_tracking))
            self.sock.sendall(command.packet)
            if self.collect(time.monotonic() + RESTORE_TIMEOUT) is not Mail.READ:
                raise NotRestorable("not restored")

    def collect(self, deadline: float | None = None) -> Mail:
        """Read the owed replies that have arrived, or until `deadline` (monotonic seconds) all of them.

        Never blocks without a deadline, TLS included.
        """
        sock = self.sock
        timeout = sock.gettimeout()
        at_once = deadline is None and timeout is None and type(sock).recv is _RECV
        try:
            self._sort_inbox()
            while self.owed:
                if at_once:
                    chunk = sock.recv(_CHUNK, _DONT_WAIT)
                else:
                    left = 0.0 if deadline is None else deadline - time.monotonic()
                    if not self.poll(0) and left <= 0 and not self._has_pending():
                        return Mail.UNDER_WAY
                    sock.settimeout(max(left, 0.0))
                    chunk = sock.recv(_CHUNK)
                if not chunk:
                    return Mail.BAD
                self._inbox += chunk
                self._sort_inbox()
        except (BlockingIOError, TimeoutError, SSLWantReadError):
            return Mail.UNDER_WAY
        except (OSError, NotRestorable, err.MySQLError, ValueError, IndexError, struct.error):
            return Mail.BAD
        finally:
            if not at_once and sock.fileno() >= 0:
                sock.settimeout(timeout)
        return Mail.BAD if self._inbox else Mail.READ

    def is_ready(self) -> bool:
        """Say whether a statement may be sent now, as far as can be told at once; takes light replies that have come.

        False is no verdict: what is owed, or has arrived, must be looked at.
        """
        arrived = self.poll(0)
        if not self.owed:
            return not arrived
        if not self._is_light or self._inbox:
            return False
        return not arrived or self._take_good_replies(arrived)

    def _take_good_replies(self, arrived: object) -> bool:
        """Take the light replies that have come, after what poll has told; say whether that was all."""
        sock = self.sock
        if type(sock).recv is not _RECV or not is_only_data(arrived):
            return False
        try:
            data = sock.recv(_LIGHT_CHUNK)  # which has something to return, and nobody else reads
        except OSError:
            return False
        taken = skip_good(data, self.owed)
        if taken < len(data):
            self._inbox += data[taken:]
        return taken == len(data) > 0

    def is_still_ready(self) -> bool:
        """Say whether a session that was ready is so a while later; does not wait, reads what it owes.

        Where a reply has come in parts it is not: nothing can be sent behind it.
        """
        return self.is_ready() or (bool(self.owed) and self.collect() is Mail.READ and not self.poll(0))

    def _has_pending(self) -> bool:
        """Say whether TLS holds decrypted bytes that poll does not see."""
        pending = getattr(self.sock, "pending", None)
        return pending is not None and pending() > 0

    def _sort_inbox(self) -> None:
        """Feed whole packets to the replies they belong to."""
        inbox = self._inbox
        while self.owed and len(inbox) >= 4:
            stop = 4 + (inbox[0] | inbox[1] << 8 | inbox[2] << 16)
            if len(inbox) < stop:
                return
            if self.owed[0].feed(inbox[3], bytes(inbox[4:stop])):
                del self.owed[0]
            del inbox[:stop]

    # The end

    def is_missing(self) -> bool:
        """Say whether no lease holds this session, though it is in use: for a moment while it is handed over."""
        lease = None if self.lease is None else self.lease()
        return lease is None or lease._session is not self

    def interrupt(self) -> None:
        """Make whoever reads from or writes to the socket fail as on a lost connection; callable from any thread."""
        with contextlib.suppress(OSError):
            socket.socket.shutdown(
                self.sock, socket.SHUT_RDWR
            )  # not SSLSocket's, which would take TLS away from under it

    def close(self, patience: float = 0.0) -> None:
        """Say goodbye and close the socket; never raises, waits for up to `patience` s for what is still owed."""
        try:
            if self.owed and patience:
                self.collect(time.monotonic() + patience)
            if self.sock.fileno() >= 0:
                self.sock.settimeout(0)  # a goodbye that does not go out at once is not worth waiting for
                self.sock.sendall(packet(COMMAND.COM_QUIT))
        except OSError:
            pass
        with contextlib.suppress(OSError):
            self.sock.close()

    def abandon(self) -> None:
        """Close a forked child's descriptor without a byte on the wire."""
        with contextlib.suppress(OSError):
            socket.close(self.sock.detach())
