"""Probes of what layers hold."""
