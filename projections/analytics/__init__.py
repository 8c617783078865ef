"""Analytics: what happens around videos, counted by hour and day."""
