"""Which videos a user may like: what is known of the user, candidates, their order, the reasons."""
