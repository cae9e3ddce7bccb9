"""What Python 3.10 lacks. Goes away with its support."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 11):
    from typing import Self, assert_never
else:
    from typing_extensions import Self, assert_never

__all__ = ["Self", "assert_never"]
