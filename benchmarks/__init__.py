"""Side-by-side ratios: the probes, other people's tools, and a plain pass over the same samples."""
