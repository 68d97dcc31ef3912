"""Records of runs: schema, files and their layout, collections and frames, checks, gate, machine."""
