"""Memory required by a job, computed before anything is loaded."""
