"""RecSys Challenge 2021 (Twitter): the winning solution (Schifferer et al., RecSys Challenge 2021)."""
