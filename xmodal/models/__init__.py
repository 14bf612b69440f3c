"""Towers and the dual encoder that trains them."""
