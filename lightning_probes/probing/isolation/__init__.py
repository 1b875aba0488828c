"""Everything that keeps training undisturbed: a private copy of the module to measure on, and the state restored after.

The copy is called the twin.
"""
