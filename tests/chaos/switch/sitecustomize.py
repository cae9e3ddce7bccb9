"""Runs at the start of every daemon and kernel of a schedule, and nowhere else: this folder
is on their PYTHONPATH only. Puts witnesses in place, lets the wall clock jump, and plants
bugs. What a process is, its command line says: nothing is imported that it would not import.
"""

import os
import sys

if os.environ.get("CHAOS_FOLDER"):
    from chaos import witness

    witness.begin(" ".join(sys.orig_argv))
