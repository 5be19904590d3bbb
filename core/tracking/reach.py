"""Whether a web server answers at all, in bounded time."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request


def answers(url: str, seconds: float) -> bool:
    """Whether a server answers within so many seconds, with whatever status; follows proxies."""
    found: list[bool] = []

    def ask() -> None:
        try:
            urllib.request.urlopen(url, timeout=seconds).close()
            found.append(True)
        except urllib.error.HTTPError as error:
            error.close()
            found.append(True)
        except (OSError, ValueError):
            found.append(False)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return found == [True]
