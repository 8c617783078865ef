"""Read models: what is read, made from the events alone, and made anew when that is wanted."""
