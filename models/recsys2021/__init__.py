"""RecSys Challenge 2021 (Twitter), as the winners did it (Schifferer et al., RecSys Challenge 2021)."""
