"""--scorer vllm: a model in vLLM's offline engine."""
