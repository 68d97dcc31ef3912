"""Comparisons of records and their statistics. This package neither runs tasks nor renders output."""
