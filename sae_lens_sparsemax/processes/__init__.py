"""Several processes that torchrun started for one job; of one process alone, nothing here changes what it does."""
