"""`python -m backlot` is the console script."""

from __future__ import annotations

from backlot.cli import main

if __name__ == "__main__":
    main()
