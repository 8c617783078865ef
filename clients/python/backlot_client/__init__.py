"""A client of Backlot's API; `backlot_client.generated` is made by `make clients`."""
