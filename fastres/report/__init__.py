"""What is told about a network: which parts are fused and why, its layers, its structure."""
