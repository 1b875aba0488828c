"""One drop-in callback a file: what to measure, and which results it makes."""
