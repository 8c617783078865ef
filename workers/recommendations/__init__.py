"""Keeps what recommendations are made of."""
