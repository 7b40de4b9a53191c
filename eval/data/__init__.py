"""The small data set of our own writing, for the demo and the tests (see LICENSE.md)."""
