"""Many cases of one project: which are annotated, what is proposed for the others, and which comes next."""
