"""The folder of static pages: data as scripts beside them, so that they open from disk."""
