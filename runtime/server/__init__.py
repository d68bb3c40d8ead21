"""HTTP APIs over an engine: OpenAI's chat, completions and responses, Anthropic's messages."""
