"""The steps of a federated job, in the order in which they run; each reuses by hash what it finished before."""
