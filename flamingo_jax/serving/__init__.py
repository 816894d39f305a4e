"""A server that speaks the OpenAI chat-completions format; README.md has its parts."""
