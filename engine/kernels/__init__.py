"""Triton kernels of a BERT encoder, and what times and tunes them. Importing this needs no Triton; its modules do."""
