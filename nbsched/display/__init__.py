"""How a job looks while it runs: registers the displays with the client.

Importing this costs nothing to speak of: the views, and with them anywidget, are
imported when something is first shown. The client never imports this package; it
asks `nbsched.client.progress.view_factory`.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

from nbsched.client.progress import set_view_factory

if TYPE_CHECKING:
    from nbsched.display.views import Views


@functools.cache
def factory() -> Views:
    """The displays of this process."""
    from nbsched.display.views import Views

    return Views()


set_view_factory(factory)
