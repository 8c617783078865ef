"""`backlot projections`: read models on the command line."""
