"""The first promise in one place: a twin to measure on, and all that keeps training as it would be without."""
