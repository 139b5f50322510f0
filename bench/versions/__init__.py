"""`make versions`: every combination of versions that is claimed, tried, and docs/versions.md written of it."""
