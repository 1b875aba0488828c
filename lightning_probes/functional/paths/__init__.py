"""Points between points in parameter space, and how the loss behaves there."""
