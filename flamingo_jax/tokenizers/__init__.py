"""Tokenizers: SentencePiece and Hugging Face behind one interface, with the new tokens."""
