"""What tests and benchmarks share: running meshes, provider stand-ins, harnesses."""
