"""A job's process, started by file name: reads its job from standard input, and stops when that ends."""

import _thread
import json
import os
import signal
import sys
import threading
import time

_GRACE = 60.0  # seconds to stop in, when the sweep's process is gone


def _watch() -> None:
    """Wait for the end of standard input: the sweep's process is gone, so stop as after Ctrl-C."""
    while os.read(0, 1):  # not through sys.stdin, which a thread must not hold when Python ends
        pass
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)  # also wakes it from a wait
    else:
        _thread.interrupt_main()
    time.sleep(_GRACE)
    os._exit(1)


def _main() -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored by default in background jobs of a shell
    header = json.loads(sys.stdin.buffer.readline())
    payload = sys.stdin.buffer.read(header["size"])
    threading.Thread(target=_watch, daemon=True).start()
    sys.path[:], sys.argv[:] = header["path"], header["argv"]
    try:
        from recdepth.sweeps.job import run

        return run(payload)
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(_main())
