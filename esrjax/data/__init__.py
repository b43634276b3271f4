"""Images and datasets: reading, resizing, TFDS records, verification, similarity search."""
