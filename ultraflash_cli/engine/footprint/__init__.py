"""The memory that a job will take, computed before anything is loaded."""
