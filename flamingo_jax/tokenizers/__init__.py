"""Tokenizers.

SentencePiece and Hugging Face, under one interface, with the tokens that Flamingo adds.
"""
