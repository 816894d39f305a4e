"""Turns stored records into batches: images, videos, interleaving, packing, and the mixture."""
