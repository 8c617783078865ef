"""Carries out what operators ask for, and has its end recorded."""
