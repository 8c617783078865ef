"""The console script, and `python -m backlot`."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; Ctrl-C is no fault, also while the modules are still imported."""
    try:
        from backlot.cli import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
