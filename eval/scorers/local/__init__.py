"""--scorer transformers: a model in this process, scored by the fastest tier that passes a numeric check."""
