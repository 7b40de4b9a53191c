"""The data: access to public sets, and a small one written for the demo and the tests (see LICENSE.md)."""
