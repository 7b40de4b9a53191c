"""Results folders -> curves: which results belong together, the headline metric, cautions."""
