"""Tables of texts spoken into files, on one machine or on a Ray cluster; and the server on a Ray cluster."""
