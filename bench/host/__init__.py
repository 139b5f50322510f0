"""What the host does for a layer on a GPU: Python, torch's dispatcher, Triton's launcher; measured without a GPU."""
