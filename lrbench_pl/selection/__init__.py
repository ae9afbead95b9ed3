"""Find a policy: racing sweeper, policy database, look-up."""
