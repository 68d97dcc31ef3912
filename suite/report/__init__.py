"""Records as Markdown, HTML and terminal tables."""
