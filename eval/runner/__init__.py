"""Which questions are pending, how they are scored and kept, by one process or several."""
