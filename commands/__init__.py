"""The write side: commands, the bus that executes them in batches, and their HTTP application."""
