"""Types into a program on a terminal of its own, as a person does.

Usage: chat.py STEPS COMMAND...; STEPS is a JSON list of [what to wait for, what to type]. Prints all
that the program has written. Exits with the program's code, or with 99 if something did not come.
"""

import json
import os
import pty
import select
import sys
import time

DEADLINE = 60

steps = json.loads(sys.argv[1])
pid, terminal = pty.fork()
if pid == 0:
    os.environ["TERM"] = "xterm"
    os.execvp(sys.argv[2], sys.argv[2:])

seen = b""
looked = 0


def read(until):
    """Reads what comes; false once there is no more, or the time is over."""
    global seen
    ready, _, _ = select.select([terminal], [], [], max(0, until - time.monotonic()))
    if not ready:
        return False
    try:
        chunk = os.read(terminal, 4096)
    except OSError:
        return False
    seen += chunk
    return bool(chunk)


for wanted, typed in steps:
    until = time.monotonic() + DEADLINE
    while (at := seen.find(wanted.encode(), looked)) < 0:
        if not read(until):
            sys.stdout.buffer.write(seen)
            print(f"\n{wanted!r} did not come", file=sys.stderr)
            os.kill(pid, 9)
            sys.exit(99)
    looked = at + len(wanted.encode())
    os.write(terminal, typed.encode())

until = time.monotonic() + DEADLINE
while read(until):
    pass
sys.stdout.buffer.write(seen)
_, status = os.waitpid(pid, 0)
sys.exit(os.waitstatus_to_exitcode(status))
