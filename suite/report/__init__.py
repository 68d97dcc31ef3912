"""Makes tables, charts, Markdown and the HTML page from records."""
