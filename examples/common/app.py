"""How every app ends: done, with a line on what the user can fix, or stopped by the user."""

from __future__ import annotations

import signal
import sys
import types
from collections.abc import Callable

from common.errors import UserError

DONE, MISTAKEN, STOPPED = 0, 2, 130


def run(name: str, action: Callable[[], int | None], stopped: str = "Stopped.") -> int:
    """Runs an app; a user's mistake and Ctrl-C become a line.

    Args:
        name: The app's file, which messages begin with.
        action: The app; may return an exit code.
        stopped: What to say when the user stops it.

    Returns:
        The exit code: 0 or the action's, 2 after a mistake of the user, 130 when stopped.
    """
    interrupted = _Interrupted()
    interrupted.listen()
    try:
        return action() or DONE
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return MISTAKEN
    except KeyboardInterrupt:
        print(f"\n{stopped}")
        return STOPPED
    except Exception:
        # Ctrl-C in the middle of an import or of TensorFlow's tracing may end in another error.
        if not interrupted.happened:
            raise
        print(f"\n{stopped}")
        return STOPPED
    finally:
        interrupted.restore()


class _Interrupted:
    """Remembers that Ctrl-C was pressed, whatever becomes of the KeyboardInterrupt it raises."""

    def __init__(self) -> None:
        self.happened = False
        self._handler: object = None
        self._hook = sys.unraisablehook

    def listen(self) -> None:
        try:
            self._handler = signal.signal(signal.SIGINT, self._interrupt)
        except ValueError:  # not in the main thread, which alone gets signals
            return
        sys.unraisablehook = self._unraisable

    def restore(self) -> None:
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)  # type: ignore[arg-type]
            sys.unraisablehook = self._hook

    def _interrupt(self, number: int, frame: types.FrameType | None) -> None:
        self.happened = True
        raise KeyboardInterrupt

    def _unraisable(self, problem: sys.UnraisableHookArgs) -> None:
        """Python reports here what is raised in a destructor or a C callback, and goes on."""
        if not (self.happened and isinstance(problem.exc_value, KeyboardInterrupt)):
            self._hook(problem)
