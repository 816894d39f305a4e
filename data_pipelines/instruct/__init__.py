"""Instruction data to records of conversations: `--pipeline=instruct`."""
