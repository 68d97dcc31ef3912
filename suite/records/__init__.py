"""Records of runs: their schema, files, folder layout, collections, data frames, checks and gate, and facts about the machine."""
