"""Read models built again beside the live ones, compared, and switched in."""
