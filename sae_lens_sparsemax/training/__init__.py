"""What a training run needs beside the host's trainer: exact resume and saves that are never half-written."""
