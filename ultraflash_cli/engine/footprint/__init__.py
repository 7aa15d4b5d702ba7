"""The memory of a job, known before anything is loaded."""
