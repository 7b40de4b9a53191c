"""From which size, and which step, an instruction reduces bias."""
