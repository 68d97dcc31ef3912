"""Comparisons of records and their statistics; nothing here runs or shows anything."""
