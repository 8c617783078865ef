"""Trending: the formula, the sums that it is made from, and the ranking."""
