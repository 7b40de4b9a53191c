"""The data: access to public sets, and a small set for the demo and the tests (see LICENSE.md)."""
