"""Safe access to a running Trainer: the base of every probe, and what it sees."""
