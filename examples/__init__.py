"""Small applications on the engine alone."""
