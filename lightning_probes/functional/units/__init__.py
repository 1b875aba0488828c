"""Units that can be exchanged without a change of the function, found in the module itself."""
