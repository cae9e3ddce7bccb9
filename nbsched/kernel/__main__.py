"""``python -m nbsched.kernel``: started by the worker daemon, never by hand."""

from __future__ import annotations

import sys

from nbsched.kernel.loop import main

if __name__ == "__main__":
    main(sys.argv[1:])
