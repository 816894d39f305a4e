"""Records to batches.

Schema, tokenizer, images and videos, interleaving, the mixture, and the way to the devices.
"""
