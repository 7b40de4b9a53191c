"""At which model size, and at which step, an instruction begins to reduce bias."""
