"""Kill what a test run leaves behind when it dies without tidying up.

Started with a pipe as standard input. Each line names a process: `+PID` takes it on, `-PID` lets it go, `+0` is the
end. The end of the pipe means that the test run is gone, however it went (a timeout's hard exit and SIGKILL included).
"""

import contextlib
import os
import signal
import sys


def main() -> None:
    # Interrupts are meant for the test run, which lets go of its processes itself.
    for interrupt in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(interrupt, signal.SIG_IGN)
    held: set[int] = set()
    for line in sys.stdin:
        number = int(line)
        if not number:
            break
        if number > 0:
            held.add(number)
        else:
            held.discard(-number)
    for pid in held:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    main()
