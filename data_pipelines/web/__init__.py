"""From what a crawl leaves behind to pages of text and images.

WARC, HTML, boilerplate, language, images.
"""
