"""What shows that a read model is right: two copies compared, every event accounted for."""
