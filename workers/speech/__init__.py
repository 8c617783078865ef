"""What is said in completed uploads, written down by Whisper where that is installed."""
