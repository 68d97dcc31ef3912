"""Tables, charts, Markdown and the HTML page, made from records."""
