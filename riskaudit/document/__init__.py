"""Typesetting that knows no audit: typed blocks, plots, and HTML, PDF and Markdown of them."""
