"""More than one machine's worth of speech: tables of texts spoken into files, by one machine or by many."""
