"""Everything that keeps training undisturbed: a private copy of the module to measure on, and state that is restored.

The copy is called the twin.
"""
