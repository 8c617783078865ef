"""Everything that talks to the outside: stores, servers, clocks and keys; no business rules."""
