"""Architectures that no library has, and faster forms of their layers."""
