"""Many cases of one project: which are annotated, what an adapter proposes for the others, and which comes next."""
