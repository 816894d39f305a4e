"""Reads a web crawl as pages of text and images: WARC, HTML, boilerplate, language, images."""
