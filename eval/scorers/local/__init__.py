"""--scorer transformers: a model in this process, by the fastest tier that is right."""
