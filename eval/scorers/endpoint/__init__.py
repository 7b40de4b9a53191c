"""--scorer endpoint: a model behind a server of the OpenAI routes."""
