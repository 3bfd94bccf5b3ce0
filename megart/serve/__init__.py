"""A bank behind an HTTP endpoint that assistants know: OpenAI's, Ollama's, and a page for people."""
