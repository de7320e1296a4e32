"""Warm starts, in a job's own process: its work is handed over to a fork of one that has the libraries.

That process is the worker of `warm_worker.py`, which says what this is for.
"""

import json
import os
import resource
import signal
import socket
import sys
from contextlib import suppress

WORKER = "DITSCOPE_WARM"  # in the environment of jobs: the socket that the worker listens on
LIMITS = sorted({number for name, number in vars(resource).items() if name.startswith("RLIMIT_")})


def hand_over() -> None:
    """Have a fork of the worker run this process's script, and end as it ends; return where there is no worker.

    An interrupt from the terminal reaches the fork by itself.
    """
    if WORKER not in os.environ:
        return
    work = {
        "pids": [os.getpid(), os.getppid()],
        "argv": sys.argv,
        "cwd": os.getcwd(),
        "environ": dict(os.environ),
        "limits": [(limit, resource.getrlimit(limit)) for limit in LIMITS],
    }
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as worker:
        try:
            worker.connect(os.environ[WORKER])
            socket.send_fds(worker, [json.dumps(work).encode()], [0, 1, 2])
            fork = int(worker.recv(64) or 0)
        except OSError:
            return
        if not fork:  # the worker could not import
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        status = worker.recv(64)
    if not status:
        with suppress(ProcessLookupError):
            os.kill(fork, signal.SIGKILL)
        raise SystemExit("Error: the process that jobs are forked from was killed, and this job with it")
    code = os.waitstatus_to_exitcode(int(status))
    if code < 0:
        with suppress(OSError):  # SIGKILL has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    raise SystemExit(code)
