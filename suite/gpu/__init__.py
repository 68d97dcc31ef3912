"""What runs on a GPU machine without network: steps, kit, rehearsal."""
