"""Model classes for the evaluation harnesses of others: lmms-eval and VLMEvalKit."""
