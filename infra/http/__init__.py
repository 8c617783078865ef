"""HTTP: the application that both APIs are made with, its outer layer, callers and problems."""
