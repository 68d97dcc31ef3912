"""SIGIR eCom 2021 data challenge (Coveo), both tasks, as the prize-winning teams did them."""
