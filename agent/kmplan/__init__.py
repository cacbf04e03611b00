"""What the tool, the agent and the bench all know: the cluster file, the address plan, the PKI, and how to run a process."""
