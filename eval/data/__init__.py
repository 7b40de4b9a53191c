"""The small data set for the demo and the tests, written for this project (see LICENSE.md), and access to public data."""
