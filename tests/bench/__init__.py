"""`make bench`: what a request, a change and a signature cost, beside the peers, measured in one run (docs: benchmarks)."""
