"""--scorer endpoint: a model behind a server that speaks OpenAI's API."""
