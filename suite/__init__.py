"""The harness: command line, run plan, budgets, clock, records, gate and leaderboard."""
