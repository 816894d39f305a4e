"""Records to batches: schema, tokenizer, images and videos, interleaving, the mixture, and the way to the devices."""
