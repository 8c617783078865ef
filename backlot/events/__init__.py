"""`backlot events`: the event log on the command line."""
