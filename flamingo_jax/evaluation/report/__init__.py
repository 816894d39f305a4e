"""What an evaluation writes for readers: tables, curves, pages, and the numbers of others."""
