"""Records: schema, integrity, gate, machine."""
