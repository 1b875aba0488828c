"""Following the functions of a pass and its data, without touching the module's code."""
