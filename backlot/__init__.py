"""The console script, the composition of a process, and the commands of operators."""
