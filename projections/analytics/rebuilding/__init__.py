"""What the event log tells of the analytics, built aside, compared, and mended where it differs."""

from projections.analytics.rebuilding.arriving import AnalyticsMeans
from projections.analytics.rebuilding.rebuild import NAME, Found, Rebuild, Stopped

__all__ = ["NAME", "AnalyticsMeans", "Found", "Rebuild", "Stopped"]
