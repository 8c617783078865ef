"""Event sourcing without any feature: a log, its commands, subscriptions, projections and audit."""
